"""Zoos and archives that hypothesis makes up: what checkpoints hold, and what the format allows beyond the packer."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import FLOATS, ROOT, State, near, noise, spoilt

import tallstore
from tallstore import codecs
from tallstore.recipes import RECIPES

sys.path.insert(0, str(ROOT / "spec" / "vectors"))
from making import build
from making.numbers import Tensor as Raw
from making.numbers import floats, noise_bytes
from making.numbers import noise as raw_noise
from making.numbers import symbols as raw_symbols

Draw = Any
MASKABLE = ("F32", "BF16", "F16", "F64")
SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (7,), (255,), (256,), (257,), (1023,), (1024,), (1025,), (2049,), (3000,)]),
    st.tuples(st.integers(1, 70), st.integers(1, 45)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30)),
)
CHANGES = st.sampled_from(
    ["near", "near", "near", "near", "near", "frozen", "grown", "shrunk", "nan", "inf", "huge", "minus zero", "sparse"]
)
SEEDS = st.integers(0, 1 << 30)


@dataclass
class Zoo:
    """What is packed, and how."""

    base: State = field(default_factory=dict)
    tasks: dict[str, State] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    folder: bool = False

    def write(self, root: Path) -> tuple[Path, Path | None]:
        """Pack it; the archive, and the base where that is outside."""
        save_file({name: t.clone().contiguous() for name, t in self.base.items()}, root / "base.safetensors")
        path = root / ("zoo" if self.folder else "zoo.tall")
        tallstore.pack(self.base, self.tasks, path, allow_distant=True, **self.options)
        return path, root / "base.safetensors" if self.options["base_storage"] == "reference" else None


def changed(tensor: torch.Tensor, how: str, dtype: torch.dtype, size: float, seed: int) -> torch.Tensor:
    """What a task has in a base tensor's place."""
    moved = near(tensor, seed, size).to(dtype)
    if how == "frozen":
        return tensor.to(dtype)
    if how in {"nan", "inf", "huge", "minus zero"} and moved.numel():
        value = {"nan": math.nan, "inf": -math.inf, "huge": torch.finfo(dtype).max, "minus zero": -0.0}[how]
        return spoilt(moved, value, seed % moved.numel())
    if how == "sparse":
        still = torch.rand(moved.shape, generator=torch.Generator().manual_seed(seed)) < 0.97
        return torch.where(still, tensor.to(dtype), moved)
    if how == "grown" and moved.dim():
        return torch.cat([moved, noise(3, *moved.shape[1:], seed=seed, dtype=dtype)])
    if how == "shrunk" and moved.dim() and len(moved) > 2:
        return moved[: len(moved) - len(moved) // 3].clone()
    return moved


@st.composite
def zoos(draw: Draw) -> Zoo:
    """A base and a few tasks of it, with heads, ties, buffers, resized, frozen and spoilt tensors."""
    seed, size = draw(SEEDS), draw(st.sampled_from([1e-6, 0.01, 0.01, 0.05, 1.0]))
    zoo = Zoo(folder=draw(st.booleans()))
    shapes = draw(st.lists(st.tuples(SHAPES, st.sampled_from(FLOATS)), min_size=1, max_size=4))
    for i, (shape, dtype) in enumerate(shapes):
        zoo.base[f"layers.{i}.weight"] = noise(*shape, seed=seed + i, dtype=dtype)
    if draw(st.booleans()):
        zoo.base["ids"] = torch.arange(seed % 9)
    tied, alike = draw(st.booleans()), draw(st.booleans())
    if tied and draw(st.booleans()):
        zoo.base["lm_head.weight"] = zoo.base["layers.0.weight"]
    types = draw(st.lists(st.sampled_from([None, *FLOATS]), min_size=len(shapes), max_size=len(shapes)))
    for t in range(draw(st.integers(1, 3))):
        state: State = {}
        for i, own in enumerate(types):
            base, how = zoo.base[f"layers.{i}.weight"], draw(CHANGES)
            if alike and how in {"grown", "shrunk"}:
                how = "near"
            state[f"layers.{i}.weight"] = changed(base, how, own or base.dtype, size, seed + 97 * t + i)
        if "ids" in zoo.base:
            state["ids"] = zoo.base["ids"] + draw(st.integers(0, 1))
        if alike or draw(st.booleans()):
            state["head.weight"] = noise(2 + t, 5, seed=seed + t)
            state["head.mask"] = torch.tensor([True, False, t % 2 == 0])
        if tied:
            state["lm_head.weight"] = state["layers.0.weight"]
        zoo.tasks[f"task{t}"] = state
    recipe = draw(st.sampled_from([*RECIPES, "solo", "solo", "solo"]))
    zoo.options = {
        "recipe": recipe,
        "mask": draw(st.sampled_from(list(codecs.ASKED))),
        "base_codec": draw(st.sampled_from(list(codecs.WHOLE))),
        "base_storage": draw(st.sampled_from(["embed", "embed", "reference"])),
        "exact": draw(st.sampled_from(["all", (), ()])),
    }
    if recipe == "solo":
        zoo.options |= draw(st.sampled_from([{}, {"quality": "high"}, {"kappa": 1.0}, {"bits": 3.0}, {"bits": 0.4}]))
    else:
        zoo.options["vector"] = draw(st.sampled_from(list(codecs.SHARED)))
    return zoo


# Archives that no packer of ours writes.

CHUNKS = st.sampled_from([1024, 1024, 2048, 4096])


def _raw(dtype: str, shape: tuple[int, ...], seed: str) -> Raw:
    return floats(dtype, raw_noise(seed, math.prod(shape), 100, 124), shape)


def _codable(codec: str, values: np.ndarray) -> np.ndarray:
    """Values that are few where the codec takes no others: their signs and exponents."""
    return (values.view(np.uint32) & np.uint32(0xFF800000)).view(np.float32) if codec == "dither-levels" else values


@st.composite
def archives(draw: Draw) -> tuple[build.Archive, dict[str, Raw] | None]:
    """An archive from its pieces: chunks, rows, scales, codecs and cuts of every sort. And the base if it is outside."""
    seed = str(draw(SEEDS))
    base: dict[str, Raw] = {}
    vectors: dict[str, build.Item] = {}
    chunk: dict[str, int] = {}
    for i in range(draw(st.integers(1, 3))):
        name, dtype = f"b{i}", draw(st.sampled_from(MASKABLE))
        shape = draw(st.sampled_from([(5,), (1030,), (2500,), (70, 33), (41, 9, 7), ()]))
        base[name], chunk[name] = _raw(dtype, shape, seed + name), draw(CHUNKS)
        codec = draw(st.sampled_from(list(codecs.VECTOR)))
        values = raw_noise(f"{seed}v{i}", math.prod(shape), 90, 122)
        vectors[name] = build.vector(_codable(codec, np.where(values > 0.001, values, 0)), shape, codec, chunk[name])
    base["any"] = Raw("F32", (300,), noise_bytes(f"{seed} any bits, NaN too", 1200))
    tasks = {}
    for task in ("a", "b")[: draw(st.integers(1, 2))]:
        masks: dict[str, build.Item] = {}
        private: dict[str, build.Item] = {}
        for name, tensor in base.items():
            for j in range(draw(st.integers(1, 2)) if name != "any" else 1):
                kind = draw(st.sampled_from(["binary", "signed", "delta", "base"])) if name != "any" else "base"
                dtype = draw(st.sampled_from(MASKABLE)) if name != "any" else "F32"
                own = f"{task}.{name}.{j}"
                rows = draw(st.integers(0, tensor.shape[0])) if tensor.shape and draw(st.booleans()) else None
                more = draw(st.integers(0, 2)) if rows is not None else 0
                shape = tensor.shape if rows is None else (rows + more, *tensor.shape[1:])
                covered = tensor.numel if rows is None else rows * math.prod(tensor.shape[1:])
                masks[own] = _entry(draw, kind, dtype, shape, name, covered, chunk.get(name, 1024), seed + own)
                if rows is not None:
                    masks[own][0]["rows"] = rows
                if more:
                    whole = _raw(dtype, (more, *tensor.shape[1:]), seed + own + "rows")
                    private[own] = build.whole(whole, draw(st.sampled_from(list(codecs.WHOLE))), draw(CHUNKS))
        first = next(iter(masks))
        masks[f"{task}.tied"] = {"kind": "tied", "to": first}, None
        head = Raw(draw(st.sampled_from(["U8", "I64", "F8_E4M3", "C64", "BOOL", "BF16"])), (9,), b"")
        head = Raw(head.dtype, head.shape, noise_bytes(seed + task, 9 * build_bytes(head.dtype)))
        masks[f"{task}.head"], private[f"{task}.head"] = build.noted(head), build.whole(head)
        tasks[task] = {
            "mask": _cut(draw, masks, "mask", task, f"tasks/{task}/mask"),
            "private": _cut(draw, private, "private", task, f"tasks/{task}/private"),
        }
    outside = draw(st.booleans())
    wholes = {name: build.whole(t, draw(st.sampled_from(list(codecs.WHOLE))), draw(CHUNKS)) for name, t in base.items()}
    archive = build.Archive(
        base=base,
        base_parts={} if outside else _cut(draw, wholes, "base", "", "base/base"),
        storage="reference" if outside else "embed",
        groups=[("0", list(tasks), _cut(draw, vectors, "vector", "0", "vector/0"))],
        tasks=tasks,
    )
    return archive, base if outside else None


def build_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "BF16": 2, "I64": 8, "C64": 8}[dtype]


def _entry(
    draw: Draw, kind: str, dtype: str, shape: tuple[int, ...], base: str, covered: int, chunk: int, seed: str
) -> build.Item:
    if kind == "base":
        return build.kept(dtype, shape, base)
    if kind == "delta":
        codec = draw(st.sampled_from(list(codecs.VECTOR)))
        facts, coded = build.vector(_codable(codec, raw_noise(seed, covered, 90, 122)), shape, codec, draw(CHUNKS))
        return {**facts, "kind": "delta", "dtype": dtype, "base": base}, coded
    marks = raw_symbols(seed, covered, kind, draw(st.sampled_from([0.0, 0.004, 0.3, 1.0])))
    more: dict[str, Any] = {"chunk": chunk}
    if draw(st.booleans()):
        scales = raw_noise(seed + "s", -(-covered // chunk), 120, 130)
        more["scales"] = [float(s) for s in scales]
    return build.mask(marks, kind, dtype, shape, base, draw(st.sampled_from(list(codecs.MASK))), **more)


def _cut(draw: Draw, items: dict[str, build.Item], part: str, owner: str, path: str) -> dict[str, build.Part]:
    """In one part or in two, the coded bytes in the entries' order or in another."""
    names = list(items)
    at = draw(st.integers(0, len(names) - 1)) if len(names) > 1 else 0
    runs = [names[:at], names[at:]] if at else [names]
    found = {}
    for i, run in enumerate(runs):
        stored = sorted((n for n in run if items[n][1] is not None), reverse=draw(st.booleans()))
        found[f"{path}-{i}.safetensors"] = build.Part(part, owner, {n: items[n] for n in run}, stored=stored)
    return found


def write_archive(
    made: tuple[build.Archive, dict[str, Raw] | None], root: Path, *, folder: bool
) -> tuple[Path, Path | None]:
    """Into files; the archive, and the base where that is outside."""
    archive, given = made
    path = root / ("zoo" if folder else "zoo.tall")
    (build.write_folder if folder else build.write_tall)(archive.build(), path)
    if given is None:
        return path, None
    build.write_safetensors(given, root / "base.safetensors")
    return path, root / "base.safetensors"
