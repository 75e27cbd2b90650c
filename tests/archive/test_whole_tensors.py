"""Why tensors are stored whole: the packer's word, what is told of it, and what is told where there is none."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from support import ROOT, State, near, noise, same_bits, spoilt, tiny_zoo

import tallstore
from tallstore.archive.manifests import read_manifest
from tallstore.archive.reader import Reader
from tallstore.format.part import WHY
from tallstore.stores import open_store

NAN = float("nan")
NO_SUCH = "the base has no such tensor"


def words(path: Path, task: str) -> dict[str, str | None]:
    """The packer's words, out of the headers."""
    with closing(open_store(path)) as store:
        manifest = read_manifest(store)
        places = Reader(store, manifest).places(manifest.tasks[task].parts["mask"], "mask", task)
    return {name: place.entry.why for name, place in places.items() if place.entry.kind == "private"}


def told(path: Path, task: str) -> dict[str, str]:
    with tallstore.open(path) as zoo:
        return {name: whole.why for name, whole in zoo.wholes(task).items()}


def zoo() -> tuple[State, State]:
    base = {
        "w": noise(60, 40, seed=1),
        "few": noise(20, seed=2),
        "count": torch.arange(400),
        "turned": torch.arange(500),
        "other": noise(50, 30, seed=3),
        "spoilt": noise(30, 30, seed=4),
        "rows": noise(20, 30, seed=5),
    }
    task = {name: near(base[name], n) for n, name in enumerate(("w", "few", "spoilt"), 10)}
    task["spoilt"] = spoilt(task["spoilt"], NAN)
    task |= {"count": base["count"] + 1, "turned": noise(500, seed=6), "other": noise(7, 9, seed=7)}
    task |= {"rows": torch.cat([near(base["rows"], 8), noise(2, 30, seed=9)]), "head": noise(3, 40, seed=11)}
    return base, task


def test_the_packer_says_why(tmp_path: Path) -> None:
    base, task = zoo()
    report = tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall")
    assert words(tmp_path / "zoo.tall", "a") == {
        "few": "small",
        "spoilt": "numbers",
        "count": "type",
        "turned": "type",
        "other": "unmatched",
        "head": "unmatched",
    }
    assert told(tmp_path / "zoo.tall", "a") == {
        "few": "small: a mask would save nothing",
        "spoilt": "it or the base's holds NaN, Inf or numbers too large to add",
        "count": "of type I64, which no mask fits",
        "turned": "the base's is of type I64 that no mask fits",
        "other": "the base's has another shape: [50, 30]",
        "rows": "rows beyond the base's",
        "head": NO_SUCH,
    }
    assert report.tasks["a"].private["turned"] == "of type I64", "whose type it is: the base's"
    assert report.tasks["a"].private["few"] == "small"


def test_a_promise_of_no_error_takes_nothing_whole_that_can_be_coded(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", max_error=0.0)
    assert words(tmp_path / "zoo.tall", "a") == {"fc.bias": "small"}
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert {facts.kind for facts in zoo.tensors("a").values()} == {"private", "lossless"}
        assert all(same_bits(zoo.state_dict("a")[name], tensor) for name, tensor in tasks["a"].items())


def test_an_archive_without_the_word_is_read_as_before() -> None:
    golden = ROOT / "tests" / "golden" / "1.0" / "defaults" / "zoo.tall"
    assert set(words(golden, "a").values()) == {None}
    assert told(golden, "a") == {"e": "rows beyond the base's", "head": NO_SUCH, "odd": NO_SUCH}


def test_what_is_no_word_says_nothing_and_is_shown_nowhere(tmp_path: Path) -> None:
    path = next((ROOT / "spec" / "vectors" / "valid" / "reasons").glob("archive*"))
    found = words(path, "a")
    assert set(found.values()) == {*WHY, None}
    shown = told(path, "a")
    assert {shown[name] for name, word in found.items() if word is None} == {NO_SUCH}
    with tallstore.open(path) as zoo:
        page = zoo.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert not [harm for harm in ("onclick", "2031", "xxxx") if harm in page]
    assert "small: a mask would save nothing" in page
