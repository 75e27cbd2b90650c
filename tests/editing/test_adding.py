"""Adding tasks: what was there stays byte for byte, what is new is as if it had been packed with the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import assert_same, bytes_of, near, noise, read_all, tiny_zoo

import tallstore
from tallstore.errors import (
    BaseNeededError,
    CheckpointError,
    InputError,
    NotAnArchiveError,
    OptionError,
    OutputError,
    TallstoreError,
    TaskNameError,
    WrongBaseError,
)

from .conftest import FORMS, Models, decoded, verified

PARTS = {"tasks/d/mask.safetensors", "tasks/d/private.safetensors", "tasks/d/files/config.json"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("recipe", "vector"), [("solo", set()), ("fit", {"vector/1.safetensors"})])
def test_what_is_there_stays_and_the_new_task_has_parts_of_its_own(
    form: str, recipe: str, vector: set[str], models: Models
) -> None:
    path = models.pack(form, recipe=recipe)
    before, weights = read_all(path), decoded(path)
    report = tallstore.add(path, {"d": models.folders["d"]})
    after = read_all(path)
    assert {name for name in after if after[name] != before.get(name)} == {*PARTS, *vector, "config.json", "tall.json"}
    assert set(before) <= set(after)
    assert report.bytes_new == sum(len(data) for name, data in after.items() if data != before.get(name))
    assert report.bytes["total"] == sum(map(len, after.values()))
    assert (list(report.added), report.tasks) == (["d"], ("a", "b", "c", "d"))
    found = decoded(path)
    for task, state in weights.items():
        assert_same(found[task], state)
    with verified(path) as zoo:
        assert zoo.tasks == ("a", "b", "c", "d")
        error = zoo.verify(against={"d": models.folders["d"]}).against["d"].relative_error
        assert error == pytest.approx(report.added["d"].relative_error, rel=1e-4)
        assert report.added["d"].bytes == zoo.info()["tasks"]["d"]["bytes"]
        assert zoo.manifest.tasks["d"].files["vocab.txt"] == "common/vocab.txt", "the same file is there already"
        assert json.loads(after["config.json"])["tasks"] == ["a", "b", "c", "d"]


def test_an_added_task_of_its_own_vector_decodes_as_if_packed_alone(models: Models) -> None:
    path = models.pack("zoo", recipe="fit")
    tallstore.add(path, {"d": models.folders["d"]})
    tallstore.pack(models.base, {"d": models.folders["d"]}, models.home / "alone", recipe="fit")
    assert_same(decoded(path)["d"], decoded(models.home / "alone")["d"])


def test_tasks_that_share_nothing_join_the_group_that_is_there(models: Models) -> None:
    path = models.pack("zoo", "ab")
    tallstore.add(path, {"c": models.folders["c"]})
    tallstore.add(path, {"d": models.folders["d"]})
    with verified(path) as zoo:
        assert [(g.id, g.tasks) for g in zoo.manifest.groups] == [("0", ("a", "b", "c", "d"))]
    tallstore.remove(path, "d")
    report = tallstore.add(path, {"d": models.folders["d"]}, quality="small")
    assert report.groups == {"0": ("a", "b", "c"), "3": ("d",)} or len(report.groups) == 2
    with verified(path) as zoo:
        assert zoo.manifest.groups[1].recipe["options"]["quality"] == "small", "it says where it differs"


def test_a_vector_of_ones_gets_the_tensors_that_only_the_new_task_moves(tmp_path: Path) -> None:
    base = {"w": noise(300, 50, seed=1), "u": noise(300, 50, seed=2)}
    tuned = {name: near(w, 5, size=0.05) for name, w in base.items()}
    tallstore.pack(base, {"a": {**base, "w": tuned["w"]}}, tmp_path / "zoo", bits=0.4)
    report = tallstore.add(tmp_path / "zoo", {"b": tuned})
    assert report.groups == {"0": ("a", "b")}
    with verified(tmp_path / "zoo") as zoo:
        assert zoo.manifest.groups[0].parts == ("vector/0.safetensors", "vector/0-1.safetensors")
        assert {zoo.tensors("b")[name].kind for name in base} == {"signed"}
        assert zoo.vector("u").eq(1).all()


def test_tasks_added_one_by_one_are_not_wrong_in_the_same_places(tmp_path: Path) -> None:
    """Equal fine-tunes get marks that are drawn anew for each, as when they are packed together."""
    base = {"w": noise(400, 100, seed=1)}
    tuned = {"w": near(base["w"], 5)}
    tallstore.pack(base, {"a": tuned}, tmp_path / "zoo", bits=0.7)
    tallstore.add(tmp_path / "zoo", {"b": tuned})
    tallstore.add(tmp_path / "zoo", {"c": tuned})
    with verified(tmp_path / "zoo") as zoo:
        masks = [zoo.mask(task, "w") for task in "abc"]
    assert not masks[0].equal(masks[1])
    assert not masks[1].equal(masks[2])


def test_options_are_those_of_the_archive_unless_others_are_given(models: Models) -> None:
    path = models.pack(
        "zoo", recipe="tall", lam={"a": 0.2, "b": 0.4, "c": 0.6}, exact=["a"], mask="bits", vector="bf16"
    )
    tallstore.add(path, {"d": models.folders["d"]}, lam=0.5)
    with verified(path) as zoo:
        assert zoo.info()["tasks"]["d"]["lambda"] == 0.5
        assert {facts.codec for facts in zoo.tensors("d").values() if facts.kind == "binary"} == {"bits"}
        assert "exact" not in zoo.manifest.tasks["d"].parts
        assert zoo.manifest.options["lam"] == {"a": 0.2, "b": 0.4, "c": 0.6}
    tallstore.remove(path, "d")
    tallstore.add(path, {"d": models.folders["d"]}, recipe="fit", exact="all")
    with verified(path) as zoo:
        assert zoo.manifest.groups[-1].recipe["id"] == "fit"
        assert_same(zoo.state_dict("d", exact=True), dict(sorted(models.states["d"].items())))


def test_a_promise_is_kept_for_the_new_task_too(models: Models) -> None:
    path = models.pack("zoo", max_error=0.05)
    report = tallstore.add(path, {"d": models.folders["d"]})
    assert (report.added["d"].relative_error or 0) <= 0.05
    scored = models.pack("scored", evaluate=lambda state, task: 1.0, min_retention=0.9)
    assert "min_retention" in tallstore.add(scored, {"d": models.folders["d"]}).warnings[0]


def test_a_referenced_base_is_given_and_checked(models: Models) -> None:
    path = models.pack("zoo", base_storage="reference")
    before = read_all(path)
    with pytest.raises(BaseNeededError, match="give it with base="):
        tallstore.add(path, {"d": models.folders["d"]})
    other = {name: near(w, 77) for name, w in tiny_zoo()[0].items()}
    with pytest.raises(WrongBaseError, match=r"'emb\.weight' differs"):
        tallstore.add(path, {"d": models.folders["d"]}, base=other)
    with pytest.raises(WrongBaseError, match=r"'norm\.weight' is in one of them alone"):
        tallstore.add(path, {"d": models.folders["d"]}, base={n: w for n, w in other.items() if n != "norm.weight"})
    assert read_all(path) == before
    tallstore.add(path, {"d": models.folders["d"]}, base=models.base)
    with verified(path, base=models.base) as zoo:
        assert zoo.manifest.base.storage == "reference"
        assert zoo.tasks == ("a", "b", "c", "d")


def test_a_base_of_many_chunks_and_types_is_read_as_it_was(tmp_path: Path) -> None:
    """Sampled in the middle of chunks, tied, of integers and of bf16."""
    import torch

    big = noise(1200, 1000, seed=3).to(torch.bfloat16)
    base = {"big": big, "tied": big, "ids": torch.arange(50), "bias": noise(300, seed=4)}
    tasks = {
        t: {n: near(w, s) if n in {"big", "bias"} else w for n, w in base.items()} for s, t in ((5, "a"), (6, "b"))
    }
    for state in tasks.values():
        state["tied"] = state["big"]
    tallstore.pack(base, {"a": tasks["a"]}, tmp_path / "zoo", kappa=1)
    tallstore.add(tmp_path / "zoo", {"b": tasks["b"]})
    tallstore.pack(base, {"b": tasks["b"]}, tmp_path / "alone", kappa=1)
    found, alone = decoded(tmp_path / "zoo")["b"], decoded(tmp_path / "alone")["b"]
    assert_same(found, alone)
    assert found["tied"].data_ptr() == found["big"].data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_refit_packs_everything_anew_beside_the_same_base(form: str, models: Models) -> None:
    path = models.pack(form, recipe="fit")
    tallstore.add(path, {"d": models.folders["d"]})
    with_base = {name: data for name, data in read_all(path).items() if name.startswith("base/")}
    report = tallstore.add(path, dict(reversed(models.folders.items())), refit=True)
    assert report.groups == {"0": ("a", "b", "c", "d")}
    together = models.pack("together", "abcd", recipe="fit")
    found, wanted = read_all(path), read_all(together)
    assert {n: d for n, d in found.items() if n.startswith("base/")} == with_base
    assert {n: d for n, d in found.items() if n != "tall.json"} == {n: d for n, d in wanted.items() if n != "tall.json"}
    with verified(path) as zoo, verified(together) as other:
        assert zoo.info() == other.info()


def spoilt_run(models: Models, **change: Any) -> Path:
    from support import write_folder

    return write_folder(models.home / "spoilt", {**models.states["a"], **change})


REFUSED: dict[str, tuple[Any, dict[str, Any], type[TallstoreError], str]] = {
    "there already": (lambda m: {"a": m.folders["d"]}, {}, TaskNameError, "'a' is in the archive already"),
    "there in other letters": (lambda m: {"A": m.folders["d"]}, {}, TaskNameError, "'A'"),
    "no folder name": (lambda m: {"x/y": m.folders["d"]}, {}, TaskNameError, "x/y"),
    "nothing": (lambda m: {}, {}, InputError, "no task was given"),
    "nothing there": (lambda m: {"d": m.home / "none"}, {}, CheckpointError, "no such folder"),
    "another base": (
        lambda m: {"d": {n: noise(*w.shape, seed=i + 50) for i, (n, w) in enumerate(m.states["d"].items())}},
        {},
        WrongBaseError,
        "does not look like its base",
    ),
    "another architecture": (lambda m: {"d": {"x": noise(500)}}, {}, WrongBaseError, "is not its base"),
    "no option": (lambda m: {"d": m.folders["d"]}, {"speed": 3}, OptionError, "no such option"),
    "a settled option": (lambda m: {"d": m.folders["d"]}, {"base_storage": "reference"}, OptionError, "was settled"),
    "exact for another": (lambda m: {"d": m.folders["d"]}, {"exact": ["a"]}, OptionError, "no task 'a'"),
    "refit, one missing": (
        lambda m: {n: f for n, f in m.folders.items() if n != "b"}, {"refit": True}, InputError, "b not given",
    ),
    "refit, two swapped": (
        lambda m: {**m.folders, "a": m.folders["b"], "b": m.folders["a"]}, {"refit": True}, InputError,
        "not the checkpoint that task 'a' was packed from",
    ),
    "refit, a head that differs": (
        lambda m: {**m.folders, "a": spoilt_run(m, **{"fc.bias": noise(32, seed=1)})}, {"refit": True}, InputError,
        "stored whole differ",
    ),
    "refit, other tensors": (
        lambda m: {**m.folders, "a": spoilt_run(m, more=noise(5))}, {"refit": True}, InputError, "'more' is in one alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_archive_as_it_was(form: str, case: str, models: Models) -> None:
    tasks, options, error, words = REFUSED[case]
    models.pack(form)
    given = tasks(models)
    before = bytes_of(models.home)
    with pytest.raises(error, match=words):
        tallstore.add(models.home / form, given, **options)
    assert bytes_of(models.home) == before


def test_places_that_cannot_be_changed(models: Models, tmp_path: Path) -> None:
    more = {"d": models.folders["d"]}
    with pytest.raises(NotAnArchiveError, match="there is nothing there"):
        tallstore.add(tmp_path / "none", more)
    with pytest.raises(NotAnArchiveError, match=r"without tall\.json"):
        tallstore.add(models.base, more)
    with pytest.raises(InputError, match="pull it, change it, push it"):
        tallstore.add("hf://user/zoo", more)
    path = models.pack("zoo")
    manifest = (path / "tall.json").read_text()
    (path / ".git").mkdir()
    with pytest.raises(OutputError, match="change a copy"):
        tallstore.add(path, more)
    (path / ".git").rmdir()
    assert (path / "tall.json").read_text() == manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "runs", "zoo"]


def test_files_beside_an_archive_stay(models: Models) -> None:
    path = models.pack("zoo")
    (path / "README.md").write_text("my own card")
    (path / "notes").mkdir()
    (path / "notes" / "x.txt").write_text("mine")
    tallstore.add(path, {"d": models.folders["d"]})
    assert (path / "README.md").read_text() == "my own card"
    assert (path / "notes" / "x.txt").read_text() == "mine"
