"""A valid vector of version 1.3: a chain of tasks, each coded given the one before and the base."""

from __future__ import annotations

import numpy as np

from .build import Facts, lossless
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


@case
def drift() -> Case:
    """Codec `drift`: every type and mode, segments of a shift each, several chunks, odd numbers, rows; two links."""
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
    found = family.case("kind lossless with codec drift: every type, chains of two links, odd numbers")
    found.archive.version = "1.3"
    for part in found.archive.parts().values():
        part.version = "1.3" if part.part == "relative" else part.version
    return found


def _coding(more: Facts, base: Tensor) -> Facts:
    """How a tensor is coded: the root of the chain against the base alone."""
    codec = more.pop("codec", "lattice")
    return {"codec": codec, "origin": base if codec == "drift" else None}
