"""Decoding under the defaults of another: torch's default device and type are the caller's, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_same, same_bits, tiny_zoo

import tallstore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"recipe": "fit"},
        {"recipe": "ties", "vector": "q4"},
        {"recipe": "emr", "vector": "bf16"},
        {"bits": 2.5},
        {"quality": "lossless"},
        {"exact": ["a"]},
    ],
    ids=str,
)
def test_a_task_is_the_same_under_any_defaults(how: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path, base_storage="reference", **how)
    with tallstore.open(path, base=base) as zoo:
        wanted, merged = zoo.state_dict("a"), zoo.merged("arithmetic", alpha=0.5)
        zoo.export("a", tmp_path / "wanted")
    with tallstore.open(path, base=base) as zoo, torch.device("meta"):  # as where transformers builds a model
        torch.set_default_dtype(dtype)
        try:
            assert_same(zoo.state_dict("a"), wanted)
            assert same_bits(zoo.weights("a").get_slice("fc.weight")[2:5], wanted["fc.weight"][2:5])
            assert_same(zoo.merged("arithmetic", alpha=0.5), merged)
            assert same_bits(zoo.base("fc.weight"), base["fc.weight"])
            # The type is the process's: another thread that makes a model's layers meanwhile is to get its own.
            during: set[torch.dtype] = set()
            zoo.verify(against={"b": tasks["b"]}, progress=lambda *_: during.add(torch.get_default_dtype()))
            zoo.export("a", tmp_path / "found", progress=lambda *_: during.add(torch.get_default_dtype()))
            assert during == {dtype}
            assert torch.get_default_dtype() is dtype
            assert torch.empty(0).is_meta
        finally:
            torch.set_default_dtype(torch.float32)
    assert (tmp_path / "found/model.safetensors").read_bytes() == (tmp_path / "wanted/model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["linear", "arithmetic", "consensus", "ties", "slerp"])
def test_merges_that_are_kept_are_the_same_under_any_defaults(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path)
    tallstore.add_merge(path, "mix", "0.6*a + 0.4*b", method=method)
    with tallstore.open(path) as zoo:
        wanted = zoo.state_dict("mix")
    with tallstore.open(path) as zoo, torch.device("meta"):
        torch.set_default_dtype(dtype)
        try:
            assert_same(zoo.state_dict("mix"), wanted)
        finally:
            torch.set_default_dtype(torch.float32)
