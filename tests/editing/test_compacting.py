"""Compacting: fewer bytes, the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import assert_same, bytes_of, read_all

import tallstore
from tallstore.errors import WrongBaseError

from .conftest import FORMS, Models, decoded, verified, wide_zoo


def weight(path: Path) -> int:
    return sum(len(data) for name, data in read_all(path).items() if name != "tall.json")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "gone", "what"),
    [
        ({"recipe": "fit"}, "abcd", "resolved"),
        ({"recipe": "fit"}, "abc", "resolved"),
        ({"recipe": "tall", "lam": 0.4}, "abcd", "resolved"),
        ({"recipe": "emr"}, "abcd", "resolved"),
        ({"recipe": "fit", "vector": "f32"}, "abcd", "resolved"),
        ({"recipe": "fit", "vector": "bf16"}, "abcd", "pruned"),
        ({"recipe": "fit", "vector": "q8"}, "abcd", "resolved"),
    ],
)
def test_few_tasks_left_of_a_vector(
    form: str, options: dict[str, object], gone: str, what: str, tmp_path: Path
) -> None:
    base, tasks = wide_zoo()
    path = tmp_path / form
    tallstore.pack(base, tasks, path, **options)  # type: ignore[arg-type]
    tallstore.remove(path, list(gone))
    before, size = decoded(path), weight(path)
    report = tallstore.compact(path)
    assert getattr(report, what) == ("0",)
    assert weight(path) <= size if options.get("vector") == "bf16" else weight(path) < size
    found = decoded(path)
    assert list(found) == list(before)
    for task, state in before.items():
        assert_same(found[task], state)
    kinds = {"resolved": {"delta"}, "pruned": {"binary"}}[what]
    with verified(path) as zoo:
        assert {facts.kind for facts in zoo.tensors("e").values()} == kinds
        assert ("vector/0.safetensors" in read_all(path)) == (what == "pruned")
        assert zoo.info()["tasks"]["e"]["bytes"] == sum(len(d) for n, d in read_all(path).items() if "tasks/e/" in n)
    again = bytes_of(tmp_path)
    assert not tallstore.compact(path).changed
    assert bytes_of(tmp_path) == again


def test_what_makes_a_task_exact_still_does(tmp_path: Path) -> None:
    base, tasks = wide_zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit", exact=["e"])
    tallstore.remove(tmp_path / "zoo", list("abcd"))
    assert tallstore.compact(tmp_path / "zoo").resolved == ("0",)
    with verified(tmp_path / "zoo") as zoo:
        assert_same(zoo.state_dict("e", exact=True), tasks["e"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_type_decodes_to_the_same_bits(dtype: str, tmp_path: Path) -> None:
    """A float64's product is not rounded to float32, so such a mask cannot become a delta; its vector is pruned."""
    import torch

    base, tasks = wide_zoo()
    narrow = {task: {n: w.to(getattr(torch, dtype)) for n, w in state.items()} for task, state in tasks.items()}
    tallstore.pack(base, narrow, tmp_path / "zoo", recipe="fit")
    tallstore.remove(tmp_path / "zoo", list("abcd"))
    before = decoded(tmp_path / "zoo")["e"]
    report = tallstore.compact(tmp_path / "zoo")
    assert (report.pruned if dtype == "float64" else report.resolved) == ("0",)
    assert_same(decoded(tmp_path / "zoo")["e"], before)


def test_a_full_group_stays(tmp_path: Path) -> None:
    base, tasks = wide_zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit")
    before = bytes_of(tmp_path)
    report = tallstore.compact(tmp_path / "zoo")
    assert (report.changed, report.bytes_new, report.bytes_gone) == (False, 0, 0)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_groups_that_share_nothing_become_one(form: str, models: Models) -> None:
    path = models.pack(form, "ab", bits=1.0)
    tallstore.add(path, {"c": models.folders["c"]}, bits=2.0)
    tallstore.add(path, {"d": models.folders["d"]}, bits=0.8)
    before = decoded(path)
    with verified(path) as zoo:
        assert len(zoo.manifest.groups) == 3
    report = tallstore.compact(path)
    assert report.merged == ("1", "2")
    assert report.groups == {"0": ("a", "b", "c", "d")}
    found = decoded(path)
    for task, state in before.items():
        assert_same(found[task], state)


def test_vectors_are_not_merged_and_small_files_are_shared(models: Models) -> None:
    (models.folders["a"] / "notes.txt").write_text("the same")
    (models.folders["c"] / "notes.txt").write_text("the same")
    path = models.pack("zoo", "ab", recipe="fit")
    tallstore.add(path, {task: models.folders[task] for task in "cd"})
    before = decoded(path)
    report = tallstore.compact(path)
    assert (report.merged, report.shared) == ((), ("notes.txt",))
    assert {n for n in read_all(path) if n.endswith("notes.txt")} == {"common/notes.txt"}
    with verified(path) as zoo:
        zoo.write_files("c", models.home)
    assert (models.home / "notes.txt").read_text() == "the same"
    for task, state in decoded(path).items():
        assert_same(state, before[task])


def test_a_referenced_base_is_needed_to_do_without_a_vector(tmp_path: Path) -> None:
    base, tasks = wide_zoo()
    path = tmp_path / "zoo"
    tallstore.pack(base, tasks, path, recipe="fit", base_storage="reference")
    tallstore.remove(path, list("abcd"))
    before = decoded(path, base=base)
    report = tallstore.compact(path)
    assert report.pruned == ("0",)
    assert "that needs base=… (--base)" in report.warnings[0]
    with pytest.raises(WrongBaseError):
        tallstore.compact(path, base={**base, "big": base["big"] + 1})
    assert tallstore.compact(path, base=base).resolved == ("0",)
    assert_same(decoded(path, base=base)["e"], before["e"])
