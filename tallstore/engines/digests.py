"""Hashes of tensors, at the speed of memory, on the device that they are on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash
from torch import Tensor, nn

from tallstore.tensors import as_bytes

__all__ = ["digest_of", "hash_of", "hash_of_all"]

_RUN = 1 << 24
"""Elements that a device sums at once."""


@torch.no_grad()
def digest_of(module: nn.Module) -> str:
    """A hash of the names, types, shapes and values of what the module's state is, in hex.

    On the CPU of every byte; on another device of two sums of every run of its elements, one of them weighted by the
    place: what leaves the device is a few numbers.
    """
    digest = xxhash.xxh3_128()
    seen: dict[tuple[int, int, tuple[int, ...]], str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if not tensor.numel() or tensor.is_meta:
            continue
        key = (tensor.data_ptr(), tensor.numel(), tensor.stride())
        if key not in seen:
            seen[key] = hash_of(tensor)
        digest.update(seen[key].encode())
    return digest.hexdigest()


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
