"""`CheckpointContract`: what packing relies on in every checkpoint."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.concurrency import ordered
from tallstore.tensors import NAME, as_bytes

__all__ = ["CheckpointContract"]


def _state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.weight": torch.randn(30, 50, generator=generator),
        "a.weight": torch.randn(40, 7, generator=generator).bfloat16(),
        "a.bias": torch.randn(40, generator=generator).half(),
        "steps": torch.arange(9),
        "scalar": torch.tensor(2.5),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
    }


def _raw(tensor: Tensor) -> bytes:
    return bytes(as_bytes(tensor.detach().contiguous().reshape(-1)).data)


class CheckpointContract(ABC):
    """Inherit as `class TestX(CheckpointContract)`."""

    ordered: ClassVar[bool] = True
    """Whether the kind keeps the order in which tensors were written."""

    @abstractmethod
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> AbstractContextManager[Checkpoint]:
        """A checkpoint of exactly these tensors, open. `folder` is empty and the test's own."""

    def test_it_says_what_there_is(self, tmp_path: Path) -> None:
        """Names, types by the format's names, and shapes."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            there = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
            assert there == {name: (NAME[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
            assert not self.ordered or list(checkpoint.tensors) == list(state)
            assert checkpoint.where

    def test_any_run_of_elements_is_what_the_tensor_has_there(self, tmp_path: Path) -> None:
        """To the last bit: NaN and −0 too."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            for name, tensor in state.items():
                flat, n = tensor.reshape(-1), tensor.numel()
                for start, stop in {(0, n), (0, 1), (n // 2, n), (n - 1, n), (n // 3, n // 2)}:
                    given = checkpoint.read(name, start, stop)
                    assert (given.dtype, given.shape, given.device.type) == (tensor.dtype, (stop - start,), "cpu")
                    assert _raw(given) == _raw(flat[start:stop]), (name, start, stop)
                    out = torch.empty(stop - start, dtype=tensor.dtype)
                    checkpoint.read_into(name, start, out)
                    assert _raw(out) == _raw(flat[start:stop]), (name, start, stop)

    def test_several_runs_are_read_into_one_memory(self, tmp_path: Path) -> None:
        """One behind the other."""
        state = _state()
        runs = [(0, 3), (100, 700), (1499, 1500)]
        with self.opened(state, tmp_path) as checkpoint:
            out = torch.empty(604)
            checkpoint.read_runs("b.weight", runs, out)
            assert _raw(out) == _raw(torch.cat([state["b.weight"].reshape(-1)[a:b] for a, b in runs]))

    def test_a_place_in_a_file_is_the_tensor(self, tmp_path: Path) -> None:
        """Where a checkpoint has one: native readers read there."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            for name, tensor in state.items():
                place = checkpoint.place(name)
                if place is not None:
                    assert os.pread(place[0], tensor.nbytes, place[1]) == _raw(tensor)

    def test_mapping_changes_no_value(self, tmp_path: Path) -> None:
        """Whatever it does."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            checkpoint.map()
            for name, tensor in state.items():
                assert _raw(checkpoint.read(name, 0, tensor.numel())) == _raw(tensor)

    def test_threads_read_side_by_side(self, tmp_path: Path) -> None:
        """Each gets its own elements."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            jobs = [(name, at) for name, tensor in state.items() for at in range(0, tensor.numel(), 53)] * 2
            given = ordered((partial(checkpoint.read, name, at, at + 1) for name, at in jobs), 8, ahead=99)
            assert [_raw(each) for each in given] == [_raw(state[name].reshape(-1)[at : at + 1]) for name, at in jobs]

    def test_a_fingerprint_tells_other_tensors(self, tmp_path: Path) -> None:
        """The same twice; another one of other values."""
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        with self.opened(_state(), first) as one, self.opened(_state(1), second) as other:
            assert one.fingerprint() == one.fingerprint()
            assert one.fingerprint() != other.fingerprint()

    def test_bytes_are_held_to_their_sha256(self, tmp_path: Path) -> None:
        """Right ones match, others do not."""
        state = _state()
        with self.opened(state, tmp_path) as checkpoint:
            data = checkpoint.read("b.weight", 0, 1500)
            assert checkpoint.matches(data, sha256(_raw(state["b.weight"])).hexdigest())
            assert not checkpoint.matches(data, sha256(b"other").hexdigest())
