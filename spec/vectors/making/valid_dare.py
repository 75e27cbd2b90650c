"""A valid vector of version 1.4: tensors of whose changes a share is kept."""

from __future__ import annotations

import numpy as np

from .build import Archive, Facts, sampled, whole
from .numbers import BYTES, Tensor, bits, converted, floats, narrow, noise, noise_bytes, wide
from .valid import Case, case
from .valid_lossless import ODD
from .valid_relatives import Family

SHAPE, N = (50, 60), 3000
PARENT: Facts = {"method": "linear", "weights": [1]}
OF_TYPE = {"BF16": (7, 255), "F16": (10, 31)}
"""Bits behind the exponent, and the highest exponent."""
LOW = {"BF16": 114, "F16": 4}
"""So that elements of the noise below have all levels, the first and the last one too for exponents beyond."""
RATES = {
    "all": [0] * 16,
    "none": [192, 255] * 8,
    "some": [47, 40, 33, 31, 24, 23, 20, 17, 16, 13, 11, 9, 8, 5, 1, 0],
    "mixed": [255, 8, 0, 16, 192, 3, 0, 12, 191, 7, 6, 5, 4, 3, 2, 24],
}


def drawn(first: int, n: int) -> list[int]:
    """What the hash of places draws."""
    found = []
    for i in range(n):
        x = (first + i) & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        found.append((x ^ x >> 16) >> 8)
    return found


def back(task: Tensor, base: Tensor, low: int, rates: list[int], first: int = 0) -> Tensor:
    """What a tensor comes back as by what dare.md says. Places go on from chunk to chunk, so that these do not matter."""
    behind, most = OF_TYPE[base.dtype]
    before, after = (np.frombuffer(each.data, "<u2") for each in (base, task))
    exponents = (before >> behind).astype(int) & most
    rate = np.array(rates)[np.clip(exponents - low, 0, 15)]
    share = np.array([round(2 ** (24 - r % 8 / 8)) >> r // 8 if r < 192 else 0 for r in rate.tolist()])
    place = np.array(drawn(first, len(before)))
    times = 2**24 // np.maximum(share, 1) + (place < 2**24 % np.maximum(share, 1))
    start, stop = (wide(base.dtype, each.data, "F32") for each in (base, task))
    moved = np.frombuffer(narrow(base.dtype, start + times.astype(np.float32) * (stop - start)), "<u2")
    own = np.where((times == 1) | (before == after), after, moved)
    return Tensor(task.dtype, task.shape, np.where(place < share, own, before).astype("<u2").tobytes())


def numbers(dtype: str, seed: str, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Numbers of the exponents that have a level, and of some beyond on either side."""
    low, high = (110, 132) if dtype == "BF16" else (114, 134)
    return floats(dtype, noise(seed, int(np.prod(shape)), low, high), shape)


def moved(base: Tensor, seed: str) -> Tensor:
    """One unit in the last place to either side, or two, or none: −0 and what is subnormal stay."""
    words = np.frombuffer(base.data, "<u2")
    steps = np.frombuffer(noise_bytes(seed, len(words)), np.uint8) % 5
    return Tensor(base.dtype, base.shape, (words + steps - np.uint16(2)).astype("<u2").tobytes())


@case
def dare() -> Case:
    """Codec `dare`: both types and modes, all rates, both ends of levels, several chunks, rows, a start."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    for dtype in OF_TYPE:
        family.base[dtype] = base = numbers(dtype, f"dare {dtype}")
        for name, rates in RATES.items():
            task, first = moved(base, f"dare {dtype} {name}"), 0xFFFFFB00
            found = back(task, base, LOW[dtype], rates, first)
            item = sampled(task, base, dtype, LOW[dtype], rates, first)
            assert all(coded[0] == 1 for coded in item[1] or ())
            family.put("a", f"{dtype} {name}", item, found)
        for name, low, rates in (
            ("first level alone", OF_TYPE[dtype][1], [12, *[255] * 15]),
            ("last level alone", 0, [*[255] * 15, 12]),
        ):
            task = moved(base, f"dare {dtype} {name}")
            family.put("a", f"{dtype} {name}", sampled(task, base, dtype, low, rates), back(task, base, low, rates))
        _onward(family, dtype)
    _by_hand(family)
    archive = _with_rows(family)
    archive.version = "1.4"
    for part in archive.parts().values():
        part.version = "1.4" if part.part in {"mask", "relative"} else part.version
    about = "kind sampled with codec dare: both types and modes, rates of all kinds, the ends of levels, rows, a start"
    return Case(about, archive, family.decoded, file=True)


def _onward(family: Family, dtype: str) -> None:
    """A task that goes on from what came back of another, with a base and without; and a base of another type."""
    start, low, rates = family.decoded["a"][f"{dtype} some"], LOW[dtype], RATES["some"]
    for name, more in ((f"{dtype} some", {"start": []}), (f"{dtype} all", {"start": [1]})):
        before = family.decoded["a"][name]
        own = moved(before, f"dare onward {name}")
        item = sampled(own, before, dtype, low, rates, 99, **more)
        if more["start"]:
            del item[0]["base"]
        family.put("b", name, item, back(own, before, low, rates, 99))
    family.base[f"F32 of {dtype}"] = other = floats("F32", wide(dtype, start.data, "F32") * np.float32(1.0001), SHAPE)
    before = Tensor(dtype, SHAPE, converted(other, dtype))
    own = moved(before, f"dare other {dtype}")
    item = sampled(own, before, f"F32 of {dtype}", low, rates, 7)
    family.put("a", f"{dtype} of F32", item, back(own, before, low, rates, 7))


def _by_hand(family: Family) -> None:
    """Numbers that are coded in mode 0, and −0 and numbers whose sums are ties."""
    family.base["odd"] = odd = bits("BF16", ODD * 50, (60, 10))
    own = bits("BF16", (ODD[5:] + ODD[:5]) * 50, (60, 10))
    item = sampled(own, odd, "odd", 114, RATES["some"])
    assert item[1] is not None
    assert [coded[0] for coded in item[1]] == [0]
    family.put("a", "mode 0", item, own)
    half = bits("F16", [0x7C00, 0x3C00, 0x8000, 0xFC00, 0x7E01, 0x3C01] * 100, (600,))
    family.base["odd half"] = half
    item = sampled(half, half, "odd half", 0, RATES["some"])
    family.put("a", "mode 0 of F16", item, half)
    zeros = [0x8000, 0x0000, 0xBF80, 0x3F7F, 0x3F7F, 0x3F80, 0x8000, 0x4180]
    family.base["zeros"] = base = bits("BF16", zeros * 75, (600,))
    own = bits("BF16", [0x8000, 0x0000, 0xBF7F, 0x3F80, 0x3F81, 0x3F82, 0x3C00, 0x417F] * 75, (600,))
    rates = [20] * 16
    item = sampled(own, base, "zeros", 120, rates)
    assert item[1] is not None
    assert item[1][0][0] == 1, "a −0 that stays is not dropped, but kept as it is"
    family.put("a", "zeros and ties", item, back(own, base, 120, rates))


def _with_rows(family: Family) -> Archive:
    """The archive, with a tensor of two rows more than the base's."""
    base = family.base["BF16"]
    head = moved(base, "dare rows")
    found = back(head, base, LOW["BF16"], RATES["some"], 5)
    more = Tensor("BF16", (2, SHAPE[1]), noise_bytes("dare more rows", 2 * SHAPE[1] * BYTES["BF16"]))
    wanted = Tensor("BF16", (SHAPE[0] + 2, SHAPE[1]), found.data + more.data)
    facts, coded = sampled(head, base, "BF16", LOW["BF16"], RATES["some"], 5)
    item = facts | {"shape": list(wanted.shape), "rows": SHAPE[0]}, coded
    family.put("a", "rows", item, wanted)
    family.privates.setdefault("a", {})["rows"] = whole(more)
    return family.archive()
