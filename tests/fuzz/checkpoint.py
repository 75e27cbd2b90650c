"""Checkpoints from strangers: safetensors files, indices of shards, and pickles, which load weights and nothing else."""

from __future__ import annotations

import io
import math
import random
import shutil
import zipfile
from collections.abc import Iterator

import torch

from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError

from . import headers, texts
from .archive import scratch
from .base import VALID, Plain, Target
from .signed import NO_ZIP

MOST = 1 << 24
"""Bytes that are read of what a checkpoint says it holds."""
KINDS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def run(data: bytes) -> None:
    """The first byte says which file of a folder the rest is."""
    if not data:
        return
    name = KINDS[data[0] % len(KINDS)]
    folder = scratch() / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(data[1:])
    if name.endswith("index.json"):
        for shard in ("a", "b"):
            shutil.copy(SHARD, folder / f"model-{shard}.safetensors")
    try:
        opened = open_checkpoint(folder, "x")
    except CheckpointError:
        return
    try:
        for tensor, info in opened.tensors.items():
            if math.prod(info.shape) < MOST:
                assert opened.read(tensor, 0, math.prod(info.shape)).numel() == math.prod(info.shape)
    finally:
        opened.close()


def mutate(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    if not data or chance.random() < 0.05:
        return plain(data, most)
    kind, rest = data[0] % len(KINDS), data[1:]
    ways = (headers.mutate_safetensors, texts.mutate, _mutate_pickle)
    return bytes([kind]) + ways[kind](rest, most - 1, chance, plain)


def _mutate_pickle(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    """One file within torch's zip, and its checksums made right by zipping it again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as held:
            files = {name: held.read(name) for name in held.namelist()}
    except NO_ZIP:
        return plain(data, most)
    name = chance.choice([n for n in files if n.endswith("data.pkl")] or list(files) or [""])
    if chance.random() < 0.2:
        name = chance.choice(list(files) or [""])
    files[name] = plain(files.get(name, b""), len(files.get(name, b"")) + 32)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for each, content in files.items():
            made.writestr(each, content)
    return out.getvalue()


def seeds() -> Iterator[bytes]:
    for data in headers.safetensors_seeds():
        yield b"\0" + data
    yield b'\1{"metadata":{},"weight_map":{"w":"model-a.safetensors","x":"model-b.safetensors"}}'
    states = (
        {"w": torch.zeros(3, 2)},
        {"state_dict": {"w": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(1)}},
        {"model": {"w": torch.nn.Parameter(torch.zeros(2))}, "epoch": 3},
    )
    for state in states:
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(state, out, _use_new_zipfile_serialization=zipped)
            yield b"\2" + out.getvalue()


SHARD = VALID / "minimal" / "decoded" / "a.safetensors"
TARGETS = {"checkpoint": Target(run=run, seeds=seeds, mutate=mutate, max_len=1 << 13)}
