"""Tensors that several tasks have alike: stored once, whatever becomes of the tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spec.second_reader import Archive
from support import State, assert_same, noise

import tallstore
from relatives import test_found
from relatives.test_found import tuned
from tallstore.tensors import as_bytes

SHAPES = {"emb.weight": (128, 96), "fc.weight": (32, 64), "norm.weight": (64,)}
"""Just large enough that what is alike is stored once: the second reader takes seconds for a megabyte."""


def base_of(dtype: torch.dtype) -> State:
    return {name: noise(*shape, size=0.05, seed=n, dtype=dtype) for n, (name, shape) in enumerate(SHAPES.items())}


def zoo(dtype: torch.dtype = torch.bfloat16, base: State | None = None) -> tuple[State, dict[str, State]]:
    base = base or base_of(dtype)
    tasks = {f"t{n}": tuned(base, n + 1) for n in range(3)}
    tower = noise(64, 160, seed=77, dtype=dtype)
    for name in ("t0", "t2"):
        tasks[name] = {"tower.weight": tower, **tasks[name], "emb.weight": tasks["t0"]["emb.weight"]}
    return base, tasks  # a tensor that was tuned once, and one that the base has not


def check(path: Path, tasks: dict[str, State], owner: str = "t0", *, second_reader: bool = True) -> None:
    with tallstore.open(path) as opened:
        opened.verify()
        for name in opened.tasks:
            assert_same(opened.state_dict(name), tasks[name])
            assert not second_reader or {
                n: as_bytes(t.contiguous()).tobytes() for n, t in opened.state_dict(name).items()
            } == {n: data for n, (_, _, data) in Archive(path).decode(name).items()}
        facts = opened.manifest.tasks
        assert facts[owner].relatives is None
        if "t2" in facts and owner != "t2":
            relatives = facts["t2"].relatives
            assert relatives is not None
            assert relatives.tasks == (owner,)
        assert opened.manifest.version == "1.2"
        assert sum(int(t.measured["bytes"]) for t in facts.values()) <= sum(
            record.size for part, record in opened.manifest.parts.items() if part.startswith(("tasks/", "common/"))
        )


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
def test_a_tensor_of_two_tasks_is_stored_once(form: str, tmp_path: Path) -> None:
    base, tasks = zoo()
    tallstore.pack(base, tasks, tmp_path / form, quality="lossless")
    apart = tallstore.pack(base, tasks, tmp_path / "apart.tall", quality="lossless", relatives=False)
    check(tmp_path / form, tasks)
    with tallstore.open(tmp_path / form) as opened:
        own = {name: int(task.measured["bytes"]) for name, task in opened.manifest.tasks.items()}
    assert own["t0"] == apart.tasks["t0"].bytes
    assert own["t2"] < 0.75 * apart.tasks["t2"].bytes


def test_it_is_found_when_the_second_is_added(tmp_path: Path) -> None:
    base, tasks = zoo()
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {name: tasks[name] for name in ("t0", "t1")}, path, quality="lossless")
    plain = tallstore.pack(base, tasks, tmp_path / "apart.tall", quality="lossless", relatives=False)
    report = tallstore.add(path, {"t2": tasks["t2"]})
    assert report.added["t2"].bytes < 0.75 * plain.tasks["t2"].bytes
    check(path, tasks)


def test_with_some_loss_it_is_what_each_would_get(tmp_path: Path) -> None:
    base, tasks = zoo(torch.float32)
    tallstore.pack(base, tasks, tmp_path / "apart.tall", relatives=False)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as once, tallstore.open(tmp_path / "apart.tall") as apart:
        once.verify()
        for name in tasks:
            assert_same(once.state_dict(name), apart.state_dict(name))
        assert once.manifest.tasks["t2"].relatives is not None
        assert sum(r.size for r in once.manifest.parts.values()) < sum(r.size for r in apart.manifest.parts.values())


def test_it_is_no_parent_that_it_comes_from(tmp_path: Path) -> None:
    """With tensors so large that parents are looked for."""
    base, tasks = zoo(base=test_found.base_of(torch.bfloat16))
    tasks["t2"]["emb.weight"] = tuned(base, 9)["emb.weight"]
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="lossless")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        relatives = opened.manifest.tasks["t2"].relatives
        assert relatives is not None
        assert relatives.shares
        assert relatives.parent is None
        assert opened.info()["tasks"]["t2"]["relatives"]["merge"]["weights"] == [0.0]
    check(tmp_path / "zoo.tall", tasks, second_reader=False)


def test_a_subset_brings_the_tensor(tmp_path: Path) -> None:
    base, tasks = zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="lossless")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        opened.write_subset(["t2"], tmp_path / "t2.tall")
        opened.write_subset(["t1"], tmp_path / "t1.tall")
    check(tmp_path / "t2.tall", tasks)
    with tallstore.open(tmp_path / "t1.tall") as opened:
        assert opened.tasks == ("t1",)


def test_damage_to_it_is_found_in_every_task_that_has_it(tmp_path: Path) -> None:
    base, tasks = zoo()
    path = tmp_path / "zoo"
    tallstore.pack(base, tasks, path, quality="lossless")
    part = path / "tasks/t0/private.safetensors"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with tallstore.open(path) as opened:
        assert_same(opened.state_dict("t1"), tasks["t1"])
        for name in ("t0", "t2"):
            with pytest.raises(tallstore.errors.DamagedError, match="tasks/t0/private"):
                opened.state_dict(name)


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
def test_whoever_goes_the_others_keep_it(form: str, tmp_path: Path) -> None:
    base, tasks = zoo()
    tasks["t2"]["emb.weight"] = tuned(base, 9)["emb.weight"]
    tasks["t3"] = {**tuned(base, 12), "tower.weight": tasks["t0"]["tower.weight"]}
    path = tmp_path / form
    tallstore.pack(base, tasks, path, quality="lossless")
    whole = path.stat().st_size if path.is_file() else 0
    tallstore.remove(path, "t0")
    check(path, tasks, owner="t2")
    with tallstore.open(path) as opened:
        assert opened.tasks == ("t1", "t2", "t3")
        relatives = opened.manifest.tasks["t3"].relatives
        assert relatives is not None
        assert relatives.tasks == ("t2",)
    assert not whole or path.stat().st_size < whole - 10_000
    tallstore.compact(path)
    check(path, tasks, owner="t2")
    tallstore.remove(path, ["t3"])
    tallstore.remove(path, ["t1"])
    check(path, tasks, owner="t2")


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
def test_compacting_finds_it(form: str, tmp_path: Path) -> None:
    base, tasks = zoo()
    path = tmp_path / form
    apart = tallstore.pack(base, tasks, path, quality="lossless", relatives=False)
    report = tallstore.compact(path)
    assert report.bytes["total"] < apart.bytes["total"] - 20_000
    check(path, tasks)
    assert tallstore.compact(path).bytes_new == 0
