"""Checkpoints in memory: state dicts and modules. Also what `torch.load` gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tallstore.checkpoints.base import Checkpoint, TensorInfo, mark_of
from tallstore.errors import CheckpointError, FormatError
from tallstore.format.dtypes import PACKED
from tallstore.format.names import check_tensor_name
from tallstore.tensors import NAME, named_shape


class MemoryCheckpoint(Checkpoint):
    """A state dict. Tensors that are one and the same memory are tied.

    `reopen` are the files that it was loaded from, if it was, and what loads them: another process does it itself.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        where: str,
        reopen: tuple[Callable[[Sequence[Path], str], MemoryCheckpoint], Sequence[Path]] | None = None,
    ) -> None:
        self.where = where
        self._reopen = reopen
        self._state = {name: _plain(name, value, where) for name, value in state.items()}
        if not self._state:
            raise CheckpointError(f"{where}: holds no tensor")
        self.tensors = {
            name: TensorInfo(NAME[t.dtype], named_shape(NAME[t.dtype], t)) for name, t in self._state.items()
        }
        self.ties = _ties(self._state)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self._state[name]
        if tensor.numel() and not tensor.is_contiguous():
            # Only the rows that are asked for: flattening copies, and a tensor is read in many pieces.
            row = tensor.numel() // len(tensor)
            first = start // row
            tensor, start, stop = tensor[first : -(-stop // row)], start - first * row, stop - first * row
        return tensor.reshape(-1)[start:stop].contiguous().cpu()

    def whole(self, name: str) -> Tensor:
        """A tensor as it lies in memory."""
        return self._state[name]

    def fingerprint(self) -> str:
        if self._reopen is None:
            return super().fingerprint()
        try:
            facts = [(path, path.stat()) for path in self._reopen[1]]
        except OSError as error:
            raise CheckpointError(f"{self.where}: cannot be read ({error.strerror})") from error
        return repr([(str(path.absolute()), mark_of(fact)) for path, fact in facts])

    def __reduce__(self) -> tuple[Callable[[Sequence[Path], str], MemoryCheckpoint], tuple[Sequence[Path], str]]:
        if self._reopen is None:
            raise CheckpointError(
                f"{self.where}: lies in the memory of this process, where other workers cannot see it: "
                "save it to a file first, or pack with threads"
            )
        load, paths = self._reopen
        return load, ([path.absolute() for path in paths], self.where)


def _plain(name: str, value: Any, where: str) -> Tensor:
    try:
        check_tensor_name(name)
    except FormatError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{where}: {name!r} is a {type(value).__name__}, not a tensor: give a plain state dict")
    if why := _odd(value):
        raise CheckpointError(
            f"{where}: tensor {name!r} ({value.dtype}, {value.layout}, device {value.device}) cannot be stored: {why}"
        )
    return value.detach().resolve_conj().resolve_neg()


def _odd(tensor: Tensor) -> str:
    """Why a tensor is none that can be stored, and what helps; nothing if it is one."""
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped:
        return (
            f"it is a {type(tensor).__name__}, which holds other tensors: save the model with its own library "
            "(save_pretrained), and give what that wrote"
        )
    if tensor.is_quantized or tensor.dtype not in NAME:
        return f"safetensors has no such type: convert it; known are {', '.join(sorted(str(d)[6:] for d in NAME))}"
    if tensor.is_meta or tensor.layout != torch.strided:
        return "give dense tensors with values"
    if NAME[tensor.dtype] in PACKED and not tensor.dim():
        return "a scalar of a type that holds several numbers per element has no shape in a file: give it a dimension"
    return ""


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    ties = {}
    for name, tensor in state.items():
        if not tensor.numel():
            continue
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        if (other := first.setdefault(place, name)) != name:
            ties[name] = other
    return ties
