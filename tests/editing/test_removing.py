"""Removing tasks: no trace of them, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import assert_same, bytes_of, near, read_all, tiny_zoo, write_folder

import tallstore
from tallstore.errors import InputError, NoSuchTaskError, TallstoreError
from tallstore.hub.card import MARKER

from .conftest import FORMS, Models, decoded, verified


@pytest.fixture
def named(tmp_path: Path) -> dict[str, Path]:
    """Tasks with names that nothing else has in it, files of their own, and one that two of them share."""
    base, states = tiny_zoo(3)
    folders = {}
    for name, state in zip(("zebra", "yak", "walrus"), states.values(), strict=True):
        folders[name] = write_folder(tmp_path / name, {**state, f"{name}.head": near(state["fc.weight"], 3)}, name=name)
    write_folder(tmp_path / "base", base)
    return {"base": tmp_path / "base", **folders}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", ["solo", "tall"])
def test_no_trace_is_left(form: str, recipe: str, named: dict[str, Path], tmp_path: Path) -> None:
    base, tasks = named["base"], {name: path for name, path in named.items() if name != "base"}
    how = {"lam": dict.fromkeys(tasks, 0.4)} if recipe == "tall" else {}
    path = tmp_path / form
    tallstore.pack(base, tasks, path, recipe=recipe, exact=list(tasks), **how)  # type: ignore[arg-type]
    kept = {name: state for name, state in decoded(path).items() if name != "zebra"}
    if path.is_dir():
        (path / "README.md").write_text(f"{MARKER}\n| zebra | 0.5 |")
        (path / "tasks/zebra/left.txt").write_text("what somebody put there")
        (path / ".cache/huggingface").mkdir(parents=True)
        (path / ".cache/huggingface/zebra.metadata").write_text("zebra")
    before = read_all(path)
    report = tallstore.remove(path, "zebra")
    after = bytes_of(path) if path.is_dir() else {path.name: path.read_bytes()}
    for name, data in after.items():
        assert b"zebra" not in data, name
        assert "zebra" not in name
    assert report.removed == ("zebra",)
    assert report.tasks == ("yak", "walrus")
    found = read_all(path)
    assert {n: found[n] for n in found if n not in {"tall.json", "config.json"}} == {
        n: before[n] for n in found if n not in {"tall.json", "config.json"}
    }
    assert report.bytes_new == sum(len(found[n]) for n in ("tall.json", "config.json"))
    for task, state in decoded(path).items():
        assert_same(state, kept[task])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*named, form])


@pytest.mark.parametrize("form", FORMS)
def test_a_group_goes_with_its_last_task_and_a_common_file_with_its_last_user(form: str, models: Models) -> None:
    path = models.pack(form, "ab", recipe="fit")
    (models.folders["c"] / "vocab.txt").write_text("three")
    (models.folders["c"] / "extra.txt").write_text("alike in two")
    (models.folders["d"] / "extra.txt").write_text("alike in two")
    tallstore.add(path, {task: models.folders[task] for task in "cd"})
    assert {"vector/1.safetensors", "common/extra.txt", "tasks/c/files/vocab.txt"} <= set(read_all(path))
    tallstore.remove(path, ["c"])
    assert {"vector/1.safetensors", "common/extra.txt"} <= set(read_all(path))
    report = tallstore.remove(path, ["d"])
    assert report.groups == {"0": ("a", "b")}
    left = read_all(path)
    assert not {"vector/1.safetensors", "common/extra.txt"} & set(left)
    wanted = read_all(models.pack("again", "ab", recipe="fit"))
    assert {n: d for n, d in left.items() if n != "tall.json"} == {n: d for n, d in wanted.items() if n != "tall.json"}
    with verified(path) as zoo, verified(models.home / "again") as other:
        assert zoo.info() == other.info()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("tasks", "error", "words"),
    [
        ("x", NoSuchTaskError, "no task 'x'; there are a, b, c"),
        (["a", "x"], NoSuchTaskError, "no task 'x'"),
        ([], InputError, "no task was named"),
        (["a", "b", "c"], InputError, "none would be left: delete it instead"),
    ],
)
def test_what_is_refused(
    form: str, tasks: str | list[str], error: type[TallstoreError], words: str, models: Models
) -> None:
    path = models.pack(form)
    before = bytes_of(models.home)
    with pytest.raises(error, match=words):
        tallstore.remove(path, tasks)
    assert bytes_of(models.home) == before


def test_a_card_of_ones_own_is_left_alone_and_pointed_at(models: Models) -> None:
    path = models.pack("zoo")
    (path / "README.md").write_text("My zoo: task a, task b, task c")
    report = tallstore.remove(path, "a")
    assert (path / "README.md").read_text().startswith("My zoo")
    assert report.warnings == ("README.md is yours and speaks of a: edit it",)


def test_a_subset_names_no_other_task_in_its_options(models: Models) -> None:
    path = models.pack("zoo", recipe="tall", lam={"a": 0.2, "b": 0.4, "c": 0.6}, exact=["a", "b"])
    with tallstore.open(path) as zoo:
        zoo.write_subset(["b"], models.home / "one")
    with tallstore.open(models.home / "one") as zoo:
        assert (zoo.manifest.options["lam"], zoo.manifest.options["exact"]) == ({"b": 0.4}, ["b"])


@pytest.mark.parametrize("form", FORMS)
def test_who_has_it_open_keeps_what_it_has(form: str, models: Models) -> None:
    path = models.pack(form, recipe="fit")
    before = decoded(path)
    with tallstore.open(path) as zoo:  # nothing but the manifest was read
        tallstore.add(path, {"d": models.folders["d"]})
        tallstore.remove(path, ["a", "b"])
        tallstore.compact(path)
        assert zoo.tasks == ("a", "b", "c")
        for task, state in before.items():
            assert_same(zoo.state_dict(task), state)
        with tallstore.open(path) as now:
            assert now.tasks == ("c", "d")
    assert sorted(p.name for p in models.home.iterdir()) == ["base", "runs", form]
