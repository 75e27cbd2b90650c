"""A valid vector of version 1.3: a chain of tasks, each coded given the one before and the base."""

from __future__ import annotations

import numpy as np

from tallstore.codecs.drift import written
from tallstore.codecs.lattice_model import lowest
from tallstore.kernels.drift import DriftModel, encode, tell
from tallstore.kernels.lattice import LATTICES, prepare, segments_of

from .build import Facts, kept, lossless
from .numbers import BYTES, Tensor, bits, converted, noise, noise_bytes
from .valid import Case, case
from .valid_lossless import ODD, stepped
from .valid_relatives import Family

TYPES = ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
PARENT: Facts = {"method": "linear", "weights": [1]}


def between(base: Tensor, start: Tensor, seed: str) -> Tensor:
    """What the base has, or what it moved to: as an earlier checkpoint than `start`."""
    word = np.dtype(f"<u{BYTES[base.dtype]}")
    first, last = (np.frombuffer(each.data, word) for each in (base, start))
    gone = noise(seed, len(first)) < 0
    return Tensor(base.dtype, base.shape, np.where(gone, first, last).astype(word).tobytes())


def segmented(task: Tensor, start: Tensor, base: Tensor) -> bytes:
    """One chunk of mode 4 whose segments have shifts, the first being shorter than the others; with still elements."""
    kind = LATTICES[task.dtype]
    after, before, origin = (np.frombuffer(each.data, kind.word) for each in (task, start, base))
    low, n = lowest(kind, before), len(before)
    steps, segments = prepare(kind, after, before, low), segments_of(n, 100, 30)
    every = 2 * int(np.abs(steps.symbols).max()) + 1
    weights = np.frombuffer(noise_bytes("drift weights", 5 * every), np.uint8).reshape(5, every) % 20 + np.uint8(20)
    weights[3, 1:] = 0
    model = DriftModel(
        bits=11,
        low=low,
        unit=1,
        grades=np.frombuffer(noise_bytes("drift grades", 16), np.uint8) % np.uint8(8),
        width=100,
        first=30,
        shifts=np.arange(segments, dtype=np.uint8) % np.uint8(3),
        table=np.frombuffer(noise_bytes("drift tables", 130), np.uint8) % np.uint8(5),
        weights=weights,
    )
    return written(encode(steps, tell(kind, before, origin, model.unit, model.grades), model, 16), model)


def far(base: Tensor) -> tuple[Tensor, Tensor, bytes]:
    """A start, a task and its chunk of mode 4 in which all elements are still, and exceptions far from each other."""
    kind, before = LATTICES[base.dtype], np.frombuffer(base.data, "<u2")
    start, after = (before + np.uint16(1)).astype("<u2"), (before + np.uint16(1)).astype("<u2")
    after[[70_000, 70_001, len(after) - 1]] += np.uint16(20)
    steps, grades = prepare(kind, after, start, 0), np.zeros(16, np.uint8)
    one, none = np.zeros(1, np.uint8), np.zeros(128, np.uint8)
    model = DriftModel(
        bits=8,
        low=0,
        unit=0,
        grades=grades,
        width=0,
        first=0,
        shifts=one,
        table=none,
        weights=np.ones((1, 1), np.uint8),
    )
    chunk = written(encode(steps, tell(kind, start, before, 0, grades), model, 8), model)
    return (*(Tensor(base.dtype, base.shape, each.tobytes()) for each in (start, after)), chunk)


@case
def drift() -> Case:
    """Codec `drift`: every type, segments with shifts, several chunks, odd numbers; chains of two links."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    family.made_of("c", ["b"], PARENT)
    for dtype in TYPES:
        n, shape = 3000, (50, 60)
        base = Tensor(dtype, shape, noise_bytes(f"drift {dtype}", n * BYTES[dtype]))
        if dtype in {"F32", "BF16"}:
            base = Tensor(dtype, shape, converted(Tensor("F32", shape, noise(f"drift {dtype}", n).tobytes()), dtype))
        family.base[dtype] = before = base
        for task in "abc":
            seed = f"drift {task} {dtype}"
            own = stepped(base, seed, 2.0) if task == "a" else between(base, before, seed)
            more = {} if task == "a" else {"start": [], "codec": "drift"}
            item = lossless(own, before, dtype, **_coding(more, base), **more)
            family.put(task, dtype, item, own)
            before = own
    family.base["odd"] = odd = bits("BF16", ODD * 50, (60, 10))
    turned = [bits("BF16", (ODD[at:] + ODD[:at]) * 50, (60, 10)) for at in (1, 5, 6)]
    for task, own, before in zip("abc", turned, [odd, *turned], strict=False):
        more = {} if task == "a" else {"start": [], "codec": "drift"}
        family.put(task, "odd", lossless(own, before, "odd", **_coding(more, odd), **more), own)
    for dtype in ("BF16", "F32"):
        base, before = family.base[dtype], family.decoded["a"][dtype]
        name, own = f"{dtype} in segments", between(base, before, f"drift segments {dtype}")
        family.base[name] = base
        family.put("a", name, lossless(before, base, name, "lattice"), before)
        facts, _ = lossless(own, before, name, "drift", chunk=4096, origin=base, start=[])
        family.put("b", name, (facts, [segmented(own, before, base)]), own)
        family.put("c", name, kept(dtype, own.shape, name, start=[1]), own)
    _unlike_chunks(family)
    long = Tensor("BF16", (3, 70_000), noise_bytes("drift far", 2 * 210_000))
    start, own, chunk = far(long)
    family.base["far"] = long
    family.put("a", "far", lossless(start, long, "far", "lattice", chunk=1 << 18), start)
    facts, _ = lossless(own, start, "far", "drift", chunk=1 << 18, origin=long, start=[])
    family.put("b", "far", (facts, [chunk]), own)
    family.put("c", "far", kept("BF16", own.shape, "far", start=[1]), own)
    found = family.case("kind lossless with codec drift: every type, segments, odd numbers, chains of two links")
    found.archive.since("1.3", "relative")
    return found


def _unlike_chunks(family: Family) -> None:
    """A chain whose links are cut into chunks of three sizes."""
    before = base = Tensor("BF16", (90, 70), converted(Tensor("F32", (90, 70), noise("links", 6300).tobytes()), "BF16"))
    family.base["links"] = base
    for task, chunk in (("a", 4096), ("b", 2048), ("c", 1024)):
        own = stepped(base, "links a", 2.0) if task == "a" else between(base, before, f"links {task}")
        more = {} if task == "a" else {"start": [], "codec": "drift"}
        family.put(task, "links", lossless(own, before, "links", **_coding(more, base), **more, chunk=chunk), own)
        before = own


def _coding(more: Facts, base: Tensor) -> Facts:
    """How a tensor is coded: the root of the chain against the base alone."""
    codec = more.pop("codec", "lattice")
    return {"codec": codec, "origin": base if codec == "drift" else None}
