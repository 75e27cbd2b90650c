"""Hashes of tensors, at the speed of memory, on the device that they are on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import torch
import xxhash
from torch import Tensor, nn

from tallstore.concurrency import run_all
from tallstore.tensors import as_bytes

__all__ = ["digest_of", "hash_of", "hash_of_all", "hashes_of"]

_LARGE = 1 << 18
"""Bytes from which on a tensor is worth a thread's turn."""
_RUN = 1 << 24
"""Elements that a device sums at once."""


@torch.no_grad()
def digest_of(module: nn.Module) -> str:
    """A hash of the names, types, shapes and values of what the module's state is, in hex.

    On the CPU of every byte; on another device of two sums of every run of its elements, one of them weighted by the
    place: what leaves the device is a few numbers.
    """
    digest = xxhash.xxh3_128()
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    held = {name: tensor for name, tensor in state.items() if tensor.numel() and not tensor.is_meta}
    keys = {name: (tensor.data_ptr(), tensor.numel(), tensor.stride()) for name, tensor in held.items()}
    first = {key: name for name, key in reversed(keys.items())}
    hashes = hashes_of({name: held[name] for name in first.values()})
    for name, tensor in state.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if name in held:
            digest.update(hashes[first[keys[name]]].encode())
    return digest.hexdigest()


def hashes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hash of each tensor, by name; large ones side by side."""
    large = [name for name, tensor in tensors.items() if tensor.nbytes >= _LARGE]
    hashes = {name: hash_of(tensor) for name, tensor in tensors.items() if tensor.nbytes < _LARGE}

    def hash_one(name: str) -> None:
        hashes[name] = hash_of(tensors[name])

    run_all([partial(hash_one, name) for name in large], os.cpu_count() or 1, "tallstore-hash")
    return {name: hashes[name] for name in tensors}


def hash_of_all(hashes: Mapping[str, str]) -> str:
    """One hash, in hex, of several by name, in whatever order they are."""
    digest = xxhash.xxh3_128()
    for name in sorted(hashes):
        digest.update(f"{name}\0{hashes[name]}\0".encode())
    return digest.hexdigest()


def hash_of(tensor: Tensor) -> str:
    """Of a tensor's values, whatever its strides."""
    flat = tensor.detach()
    if flat.layout is not torch.strided:
        return ""
    if not flat.is_contiguous():
        flat = flat.contiguous()
    data = flat.reshape(-1).view(torch.uint8)
    if data.device.type == "cpu":
        return xxhash.xxh3_128_hexdigest(as_bytes(data).data)
    sums: list[int] = []
    place = torch.arange(1, min(_RUN, len(data)) + 1, device=data.device)
    for start in range(0, len(data), _RUN):
        run = data[start : start + _RUN].long()
        sums += [int(run.sum()), int((run * place[: len(run)]).sum())]
    return repr(sums)
