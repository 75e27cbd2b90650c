"""Buffers, mixed types, frozen tensors, and tensors that are hardly there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import (
    assert_same,
    formula,
    kinds,
    near,
    noise,
    packed,
    raw,
    read_all,
    same_bits,
    slots,
    tiny_base,
    tiny_zoo,
)

import tallstore


def test_integer_and_bool_buffers(target: Path) -> None:
    base, tasks = tiny_zoo(2)
    base |= {
        "position_ids": torch.arange(500),
        "num_batches_tracked": torch.tensor(10),
        "flags": torch.rand(300, generator=torch.Generator().manual_seed(1)) > 0.5,
        "bytes": torch.arange(256, dtype=torch.uint8),
    }
    for name in ("position_ids", "num_batches_tracked", "flags", "bytes"):
        for state in tasks.values():
            state[name] = base[name].clone()
    tasks["b"]["position_ids"] = base["position_ids"].flip(0)
    tasks["b"]["num_batches_tracked"] = torch.tensor(-(2**62))
    tasks["b"]["flags"] = ~base["flags"]
    tasks["b"]["bytes"] = base["bytes"].to(torch.int32)
    with packed(base, tasks, target) as zoo:
        for task, state in tasks.items():
            found = zoo.state_dict(task)
            for name in ("position_ids", "num_batches_tracked", "flags", "bytes"):
                assert same_bits(found[name], state[name]), f"{task}: {name}"
                assert kinds(zoo, task)[name] == ("base" if task == "a" else "private")


def test_every_other_type_comes_back_whole(target: Path) -> None:
    floats = noise(700, seed=1)
    odd = {
        "f8": floats.to(torch.float8_e4m3fn),
        "f8b": floats.to(torch.float8_e5m2),
        "complex": torch.complex(floats, -floats),
        "i8": (floats * 30).to(torch.int8),
        "i16": (floats * 30).to(torch.int16),
        "i32": (floats * 30).to(torch.int32),
        "u16": torch.arange(700).to(torch.uint16),
        "u32": torch.arange(700).to(torch.uint32),
        "u64": torch.arange(700).to(torch.uint64),
    }
    base, tasks = tiny_zoo(2)
    for codec in ("raw", "planes+zstd"):
        path = target.with_name(f"{codec[:3]}-{target.name}")
        a = tasks["a"] | odd
        b = tasks["b"] | {name: tensor.reshape(70, 10).T.reshape(-1) for name, tensor in odd.items()}
        with packed(base | odd, {"a": a, "b": b}, path, base_codec=codec) as zoo:
            for name, tensor in odd.items():
                assert kinds(zoo, "a")[name] == "base"
                assert same_bits(zoo.state_dict("a")[name], tensor)
                assert kinds(zoo, "b")[name] == "private"
                assert same_bits(zoo.state_dict("b")[name], b[name])


def test_frozen_tensors_store_nothing(target: Path) -> None:
    base, tasks = tiny_zoo(3)
    base["frozen.weight"] = noise(100, 100)
    for state in tasks.values():
        state["frozen.weight"] = base["frozen.weight"].clone()
    tasks["c"]["emb.weight"] = base["emb.weight"].clone()
    with packed(base, tasks, target, recipe="fit") as zoo:
        for task in tasks:
            facts = zoo.tensors(task)["frozen.weight"]
            assert (facts.kind, facts.bytes) == ("base", 0)
            assert same_bits(zoo.state_dict(task)["frozen.weight"], base["frozen.weight"])
            assert not zoo.mask(task, "frozen.weight").any()
        assert kinds(zoo, "c")["emb.weight"] == "base"
        assert not zoo.vector("frozen.weight").any()
    files = read_all(target)
    for path in ("vector/0.safetensors", *(f"tasks/{t}/mask.safetensors" for t in tasks)):
        assert "frozen.weight" not in slots(files[path])[1]
    assert "emb.weight" not in slots(files["tasks/c/mask.safetensors"])[1]


def test_a_task_that_is_the_base(target: Path) -> None:
    base, tasks = tiny_zoo(1)
    report = tallstore.pack(base, {"same": dict(base), **tasks}, target)
    assert report.tasks["same"].relative_error is None
    assert report.tasks["same"].density == 0
    with tallstore.open(target) as zoo:
        zoo.verify(against={"same": base})
        assert_same(zoo.state_dict("same"), base)
    tallstore.pack(base, {"same": dict(base)}, target.with_name("only.tall"))
    with tallstore.open(target.with_name("only.tall")) as zoo:
        zoo.verify()
        assert_same(zoo.state_dict("same"), base)
        zoo.export("same", target.with_name("out"))
    assert set(load_file(target.with_name("out") / "model.safetensors")) == set(base)


@pytest.mark.parametrize("task_type", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("base_type", [torch.float32, torch.bfloat16])
def test_base_and_task_of_other_types(base_type: torch.dtype, task_type: torch.dtype, tmp_path: Path) -> None:
    """A tensor that was only converted has not moved."""
    base = {
        "moved": noise(900, seed=1).to(base_type),
        "kept": noise(900, seed=2).to(base_type),
        "small": noise(9).to(base_type),
    }
    task = {
        "moved": near(base["moved"].to(task_type), 5, size=0.1),
        "kept": base["kept"].to(task_type),
        "small": base["small"].to(task_type),
    }
    with packed(base, {"t": task}, tmp_path / "zoo.tall", recipe="fit", vector="f32") as zoo:
        found = zoo.state_dict("t")
        assert [found[name].dtype for name in task] == [task_type] * 3
        assert kinds(zoo, "t")["kept"] == "base"
        assert same_bits(found["kept"], task["kept"])
        assert same_bits(found["small"], task["small"])
        assert raw(found["moved"]).tobytes() == formula(zoo, "t", "moved").tobytes()
        gap = (found["moved"].double() - task["moved"].double()).norm() / (
            task["moved"].double() - base["moved"].double()
        ).norm()
        assert gap < 0.05


def test_scalars_and_empty_tensors(target: Path) -> None:
    base = tiny_base() | {
        "scale": torch.tensor(2.5),
        "kept": torch.tensor(1.5),
        "nothing": torch.empty(0),
        "no rows": torch.empty(0, 7),
        "no columns": torch.empty(7, 0),
        "grew": torch.empty(0, 4),
    }
    task = {name: near(tensor, 3) for name, tensor in base.items()} | {
        "kept": base["kept"].clone(),
        "grew": noise(3, 4),
        "own scalar": torch.tensor(-0.0),
        "own nothing": torch.empty(3, 0, 2, dtype=torch.int64),
    }
    with packed(base, {"t": task}, target) as zoo:
        found = zoo.state_dict("t")
        for name, tensor in task.items():
            assert found[name].shape == tensor.shape
            if name not in {"emb.weight", "fc.weight", "norm.weight"}:
                assert same_bits(found[name], tensor), name
        for name, tensor in base.items():
            assert same_bits(zoo.base(name), tensor)
        zoo.export("t", target.with_name("out"))
    exported = load_file(target.with_name("out") / "model.safetensors")
    assert all(same_bits(exported[name], found[name]) for name in task)


def test_zoos_without_anything_to_mask(target: Path) -> None:
    """Only scalars and empty tensors: there is no vector at all."""
    base = {"s": torch.tensor(1.0), "e": torch.empty(0)}
    with packed(base, {"t": {"s": torch.tensor(1.5), "e": torch.empty(0)}}, target) as zoo:
        assert float(zoo.state_dict("t")["s"]) == 1.5
