"""Hashes of tensors, at the speed of memory, on the device that they are on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
import xxhash
from torch import Tensor, nn

from tallstore.concurrency import ordered
from tallstore.engines.cores import cores, unbind
from tallstore.tensors import as_bytes

__all__ = ["digest_of", "hash_of", "hash_of_all", "hashes_of"]

_LARGE = 1 << 23
"""Bytes that are worth a thread's turn."""
_RUN = 1 << 24
"""Elements that a device sums at once."""


@torch.no_grad()
def digest_of(module: nn.Module, without: Iterable[Tensor] = ()) -> str:
    """A hash of the names, types, shapes and values of what the module's state is, in hex.

    `without`: what it holds of values that are compared otherwise: of these all but the values.

    On the CPU of every byte; on another device of two sums of every run of its elements, one of them weighted by the
    place: what leaves the device is a few numbers.
    """
    digest = xxhash.xxh3_128()
    with torch._C.DisableTorchFunctionSubclass():  # an engine's kinds of parameters are as good as plain ones here
        state, others = _state_of(module), {each.data_ptr() for each in without}
        held = {name: t for name, t in state.items() if t.numel() and not t.is_meta and t.data_ptr() not in others}
        keys = {name: (t.data_ptr(), t.numel(), t.stride()) for name, t in held.items()}
        first = {key: name for name, key in reversed(keys.items())}
        hashes = hashes_of({name: state[name] for name in first.values()})
    for name, tensor in state.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if name in keys:
            digest.update(hashes[first[keys[name]]].encode())
    return digest.hexdigest()


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by every name that they have."""
    modules = list(module.named_modules(remove_duplicate=False))
    held = [(path, own._parameters) for path, own in modules] + [(path, own._buffers) for path, own in modules]
    return {f"{path}.{leaf}": each for path, own in held for leaf, each in own.items() if each is not None}


def hashes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hash of each tensor, by name; many of them side by side, on every core that there is."""
    jobs = [partial(_hashes, batch) for batch in _batches(tensors)]
    if len(jobs) < 2:
        return _hashes(tensors)
    hashes: dict[str, str] = {}
    threads = len(cores()) or 1
    for each in ordered(jobs, threads, ahead=2 * threads, name="tallstore-hash", initializer=unbind):
        hashes |= each
    return hashes


def _hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: hash_of(tensor) for name, tensor in tensors.items()}


def _batches(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors that one thread hashes in one turn."""
    batch: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        batch[name] = tensor
        size += tensor.nbytes
        if size >= _LARGE:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


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
