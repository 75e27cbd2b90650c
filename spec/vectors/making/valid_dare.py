"""A valid vector of version 1.4: tensors of whose changes a share is kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallstore.kernels.dare import Sampling

from .build import Archive, Facts, sampled, whole
from .numbers import BYTES, Tensor, bits, converted, floats, narrow, noise, noise_bytes, wide
from .valid import Case, case
from .valid_lossless import ODD
from .valid_relatives import Family

SHAPE, N = (50, 60), 3000
PARENT: Facts = {"method": "linear", "weights": [1]}
OF_TYPE = {"BF16": (7, 255), "F16": (10, 31)}
"""Bits behind the exponent, and the highest exponent."""
OF_EVERY_TYPE = OF_TYPE | {"F32": (23, 255)}
LOW = {"BF16": 114, "F16": 4, "F32": 114}
"""So that elements of the noise below have all levels, the first and the last one too for exponents beyond."""
LEVELS: dict[str, list[tuple[int, int, int]]] = {
    "all": [(65535, 0, 0)] * 16,
    "next to none": [(0, 8, 0), (1, 9, 0)] * 8,
    "some": [(4095 + 4096 * n, (15 - n) // 4, n % 3) for n in range(16)],
    "mixed": [
        *(
            (255, 5, 3),
            (65535, 0, 0),
            (43690, 1, 33),
            (65534, 2, 0),
            (0, 8, 1),
            (32767, 1, 0),
            (65535, 3, 64),
            (2, 7, 0),
        ),
        *(
            (9999, 2, 127),
            (65535, 40, 0),
            (3, 6, 0),
            (50000, -1, 5),
            (65535, -3, 0),
            (512, 4, 2),
            (77, 5, 0),
            (40000, 0, 90),
        ),
    ],
}
"""Of each level its share, and its width: an octave, from a unit in the last place on, and what stands behind it."""


def drawing(dtype: str, levels: list[tuple[int, int, int]], low: int | None = None) -> Sampling:
    """These, as the codec takes them."""
    low = LOW[dtype] if low is None else low
    behind, most = OF_EVERY_TYPE[dtype]
    widths = [low + n - most // 2 - behind + octave + 127 << 7 | more for n, (_, octave, more) in enumerate(levels)]
    return Sampling(low, np.array([share for share, _, _ in levels], np.uint16), np.array(widths, np.uint16))


def drawn(first: int, n: int) -> list[int]:
    """What the hash of places draws."""
    found = []
    for i in range(n):
        x = (first + i) & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        found.append((x ^ x >> 16) >> 8)
    return found


def words_of(tensor: Tensor) -> npt.NDArray[np.unsignedinteger]:
    """Its elements' bits."""
    return np.frombuffer(tensor.data, f"<u{BYTES[tensor.dtype]}")


def back(task: Tensor, base: Tensor, sampling: Sampling, first: int = 0) -> Tensor:
    """What a tensor comes back as by what dare.md says. Places go on from chunk to chunk, so that these do not matter."""
    behind, most = OF_EVERY_TYPE[base.dtype]
    before = words_of(base)
    level = np.clip(((before >> behind).astype(int) & most) - sampling.low, 0, 15)
    share, width = sampling.shares.astype(int)[level] + 1, wide("BF16", sampling.widths.tobytes(), "F32")[level]
    place = np.array(drawn(first, len(before)))
    start, stop = (wide(base.dtype, each.data, "F32") for each in (base, task))
    steps = np.abs(stop - start).astype(float) / (width.astype(float) * share / 65536)
    times = np.maximum(np.ceil(steps - place / (256 * share)), 0).astype(np.float32) * np.sign(stop - start)
    moved = np.frombuffer(narrow(base.dtype, start + times * width), before.dtype)
    return Tensor(task.dtype, task.shape, np.where((place < 256 * share) & (times != 0), moved, before).tobytes())


def numbers(dtype: str, seed: str, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Numbers of the exponents that have a level, and of some beyond on either side."""
    low, high = (114, 134) if dtype == "F16" else (110, 132)
    return floats(dtype, noise(seed, int(np.prod(shape)), low, high), shape)


def moved(base: Tensor, seed: str) -> Tensor:
    """One unit in the last place to either side, or two, or none: −0 and what is subnormal stay."""
    words = words_of(base)
    steps = np.frombuffer(noise_bytes(seed, len(words)), np.uint8) % 5
    return Tensor(base.dtype, base.shape, (words + steps - words.dtype.type(2)).astype(words.dtype).tobytes())


@case
def dare() -> Case:
    """Codec `dare`: both types and modes, all kinds of levels, both ends of them, several chunks, rows, a start."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    for dtype in OF_TYPE:
        family.base[dtype] = base = numbers(dtype, f"dare {dtype}")
        for name, levels in LEVELS.items():
            task, first, sampling = moved(base, f"dare {dtype} {name}"), 0xFFFFFB00, drawing(dtype, levels)
            item = sampled(task, base, dtype, sampling, first)
            assert all(coded[0] == 2 for coded in item[1] or ())
            family.put("a", f"{dtype} {name}", item, back(task, base, sampling, first))
        for name, low, at, unit in (
            ("first level alone", OF_TYPE[dtype][1], 0, -OF_TYPE[dtype][1] // 2),
            ("last level alone", 0, 15, OF_TYPE[dtype][1] // 2 - 15),
        ):
            task = moved(base, f"dare {dtype} {name}")
            levels = [(20000 if n == at else 0, unit + 3, 9) for n in range(16)]
            sampling = drawing(dtype, levels, low)
            item = sampled(task, base, dtype, sampling)
            assert all(coded[0] == 2 for coded in item[1] or ())
            family.put("a", f"{dtype} {name}", item, back(task, base, sampling))
        _onward(family, dtype)
    _by_hand(family)
    archive = _with_rows(family)
    archive.since("1.4", "mask", "relative")
    about = "kind sampled with codec dare: both types and modes, levels of all kinds, the ends of levels, rows, a start"
    return Case(about, archive, family.decoded, file=True)


def _onward(family: Family, dtype: str) -> None:
    """A task that goes on from what came back of another, with a base and without; and a base of another type."""
    start, sampling = family.decoded["a"][f"{dtype} some"], drawing(dtype, LEVELS["some"])
    for name, more in ((f"{dtype} some", {"start": []}), (f"{dtype} all", {"start": [1]})):
        before = family.decoded["a"][name]
        own = moved(before, f"dare onward {name}")
        item = sampled(own, before, dtype, sampling, 99, **more)
        if more["start"]:
            del item[0]["base"]
        family.put("b", name, item, back(own, before, sampling, 99))
    family.base[f"F32 of {dtype}"] = other = floats("F32", wide(dtype, start.data, "F32") * np.float32(1.0001), SHAPE)
    before = Tensor(dtype, SHAPE, converted(other, dtype))
    own = moved(before, f"dare other {dtype}")
    item = sampled(own, before, f"F32 of {dtype}", sampling, 7)
    family.put("a", f"{dtype} of F32", item, back(own, before, sampling, 7))


def _by_hand(family: Family) -> None:
    """Numbers that are coded in mode 0, and −0 and numbers whose sums are ties."""
    family.base["odd"] = odd = bits("BF16", ODD * 50, (60, 10))
    own = bits("BF16", (ODD[5:] + ODD[:5]) * 50, (60, 10))
    item = sampled(own, odd, "odd", drawing("BF16", LEVELS["some"]))
    assert item[1] is not None
    assert [coded[0] for coded in item[1]] == [0]
    family.put("a", "mode 0", item, own)
    half = bits("F16", [0x7C00, 0x3C00, 0x8000, 0xFC00, 0x7E01, 0x3C01] * 100, (600,))
    family.base["odd half"] = half
    item = sampled(half, half, "odd half", drawing("F16", LEVELS["some"], 0))
    family.put("a", "mode 0 of F16", item, half)
    zeros = [0x8000, 0x0000, 0xBF80, 0x3F7F, 0x3F7F, 0x3F80, 0x8000, 0x4180]
    family.base["zeros"] = base = bits("BF16", zeros * 75, (600,))
    own = bits("BF16", [0x8000, 0x0000, 0xBF7F, 0x3F80, 0x3F81, 0x3F82, 0x3C00, 0x417F] * 75, (600,))
    sampling = Sampling(120, np.full(16, 16383, np.uint16), np.full(16, 0x3C80, np.uint16))
    item = sampled(own, base, "zeros", sampling)
    assert item[1] is not None
    assert item[1][0][0] == 2, "a −0 that stays is not dropped, but kept as it is"
    family.put("a", "zeros and ties", item, back(own, base, sampling))


def _with_rows(family: Family) -> Archive:
    """The archive, with a tensor of two rows more than the base's."""
    base = family.base["BF16"]
    head, sampling = moved(base, "dare rows"), drawing("BF16", LEVELS["some"])
    found = back(head, base, sampling, 5)
    more = Tensor("BF16", (2, SHAPE[1]), noise_bytes("dare more rows", 2 * SHAPE[1] * BYTES["BF16"]))
    wanted = Tensor("BF16", (SHAPE[0] + 2, SHAPE[1]), found.data + more.data)
    facts, coded = sampled(head, base, "BF16", sampling, 5)
    item = facts | {"shape": list(wanted.shape), "rows": SHAPE[0]}, coded
    family.put("a", "rows", item, wanted)
    family.privates.setdefault("a", {})["rows"] = whole(more)
    return family.archive()
