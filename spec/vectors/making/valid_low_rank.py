"""A valid vector of version 1.4: chunks of codec `dare` that tell a product of two thin matrices first."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs import LOSSLESS, SAMPLED
from tallstore.kernels.dare import Sampling

from .build import CHUNK, Item, spans
from .numbers import Tensor, bits, floats, narrow, noise_bytes, wide
from .valid import Case, case
from .valid_dare import LEVELS, OF_TYPE, PARENT, back, drawing, moved, numbers, words_of
from .valid_dither import steps
from .valid_lossless import ODD
from .valid_relatives import Family

SHAPE = (60, 25)
ODD_HALF = [0, 0x8000, 0x7C00, 0xFC00, 0x7E01, 0xFC55, 1, 0x8001, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]
"""Bits of float16: zeros, infinities, NaN, subnormal numbers, one, the largest."""
NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
"""What becomes of one that is added to."""
Whole = npt.NDArray[np.int64]


class Product(NamedTuple):
    """What is added: `u` of components and rows, `v` of components and columns."""

    scale: float
    shifts: Sequence[int]
    u: Whole
    v: Whole
    gone: int = 0

    def told(
        self, modes: Sequence[int | None] = (None, None), after: bytes = b"", *, with_columns: bool = True
    ) -> bytes:
        """As bytes, and what follows; `modes`: of the chunks of `lattice`, by number, or whichever is the smallest.

        Without columns, those that the tensor's first chunk tells must be these, or begin with them.
        """
        parts = []
        for each, mode in zip((self.u, self.v), modes, strict=True):
            before = np.repeat(np.arange(len(each)) // 4 + 1 << 7, each.shape[1]).astype(np.uint16)
            parts.append(steps(before, (before + each.reshape(-1)).astype(np.uint16), mode))
        parts[1] = parts[1] if with_columns else b""
        head = struct.pack("<BBIIf", 3, len(self.shifts), self.v.shape[1], self.gone, self.scale)
        return head + bytes(self.shifts) + struct.pack("<II", *map(len, parts)) + b"".join(parts) + after

    def plus(self, before: Tensor) -> Tensor:
        """What elements become by what dare.md says."""
        row, column = np.divmod(self.gone + np.arange(before.numel), self.v.shape[1])
        times = np.array([1 << shift for shift in self.shifts])
        total: Whole = (self.u[:, row] * self.v[:, column] * times[:, None]).sum(0)
        with np.errstate(all="ignore"):
            value = wide(before.dtype, before.data, "F32") + np.float32(self.scale) * total.astype(np.float32)
            words = words_of(Tensor(before.dtype, before.shape, narrow(before.dtype, value)))
        words = np.where(np.isnan(value.astype(float)), words.dtype.type(NAN[before.dtype]), words)
        kept = np.where(total == 0, words_of(before), words)
        return Tensor(before.dtype, before.shape, kept.astype(words.dtype).tobytes())


def whole_numbers(seed: str, shape: tuple[int, int], most: int = 127) -> Whole:
    """From −most to most, a fifth of them 0, and of one row or column in seven all."""
    rolls = np.frombuffer(noise_bytes(seed, 2 * shape[0] * shape[1]), "<u2").reshape(shape).astype(np.int64)
    found: Whole = (rolls % (2 * most + 1) - most) * (rolls % 5 > 0)
    found[:, ::7] = 0
    return found


def of_rank(seed: str, n: int, width: int, gone: int, shifts: Sequence[int], scale: float, most: int = 127) -> Product:
    """Any numbers."""
    u, v = (
        whole_numbers(f"{seed} {name}", (len(shifts), count), most)
        for name, count in (("rows", -(-(gone + n) // width)), ("columns", width))
    )
    return Product(scale, shifts, u, v, gone)


def cut(tensor: Tensor, a: int, b: int) -> Tensor:
    """Some elements."""
    return Tensor(tensor.dtype, (b - a,), tensor.cut(a, b))


def as_array(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """Its bytes."""
    return np.frombuffer(tensor.data, np.uint8)


def item(base: str, own: Tensor, coded: list[bytes], chunk: int = CHUNK, **more: object) -> Item:
    """An entry of kind `sampled`."""
    facts = {"kind": "sampled", "dtype": own.dtype, "shape": list(own.shape), "base": base}
    return facts | {"codec": "dare", "chunk": chunk} | more, coded


def then(own: Tensor, start: Tensor, sampling: Sampling | None, first: int) -> tuple[bytes, Tensor]:
    """What follows a product, in mode 2 or, where nothing is lost, in mode 0; and what comes back."""
    if sampling is None:
        return b"\0" + LOSSLESS["lattice"].encode(as_array(own), as_array(start), own.dtype), own
    rest = SAMPLED["dare"].encode(as_array(own), as_array(start), own.dtype, sampling, first)
    assert rest[0] == 2
    return rest, back(own, start, sampling, first)


@case
def low_rank() -> Case:
    """Codec `dare` in mode 3: both types, ranks up to the last, rows that chunks cut, and what follows in both modes."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    for dtype in OF_TYPE:
        base = family.base[dtype] = numbers(dtype, f"low rank {dtype}", SHAPE)
        scale = 2.0**-22 if dtype == "BF16" else 2.0**-16
        two_chunks(family, "a", f"{dtype} one", base, (0,), scale)
        two_chunks(family, "a", f"{dtype} ten", base, (0, 1, 2, 3, 4, 4, 0, 2, 1, 3), scale)
        two_chunks(family, "a", f"{dtype} few", base, (4, 0, 1), 40 * scale, most=3, modes=(2, 1))
        two_chunks(family, "a", f"{dtype} all", base, (1, 2), 1.7 * scale, lossless=True)
        _odd(family, dtype)
        last_rank(family, dtype)
    two_chunks(family, "b", "BF16 one", family.decoded["a"]["BF16 one"], (3, 0), 2.0**-24, start=[])
    nothing = Product(1.0, (0,), np.zeros((1, 60), np.int64), np.ones((1, 25), np.int64))
    due = family.base["BF16"]
    family.put("a", "nothing", item("BF16", due, [nothing.told((0, 2), b"\0\0")], 2048), due)
    archive = family.archive()
    archive.since("1.4", "mask", "relative")
    about = "codec dare in mode 3: ranks from 1 to 64, shifts, rows cut by chunks, sums of 0, the largest sums, both modes behind"
    return Case(about, archive, family.decoded, file=True)


def two_chunks(
    family: Family,
    task: str,
    name: str,
    before: Tensor,
    shifts: Sequence[int],
    scale: float,
    *,
    most: int = 127,
    modes: Sequence[int | None] = (None, None),
    lossless: bool = False,
    **more: object,
) -> None:
    """A matrix in two chunks, the second of which begins with the last element of a row; each has numbers of its own."""
    coded, due = [], b""
    sampling, width = drawing(before.dtype, LEVELS["some" if len(shifts) % 2 else "mixed"]), SHAPE[1]
    for a, b in spans(before.numel):
        here = cut(before, a, b)
        product = of_rank(f"low rank {task} {name} {a}", b - a, width, a % width, shifts, scale, most)
        assert len(shifts) * product.u.shape[1] <= b - a
        start = product.plus(here)
        own = moved(start, f"low rank {task} {name} moved {a}")
        rest, own = then(own, start, None if lossless else sampling, a)
        coded.append(product.told(modes, rest))
        due += own.data
    found = Tensor(before.dtype, before.shape, due)
    family.put(task, name, item(before.dtype, found, coded, **more), found)


def _odd(family: Family, dtype: str) -> None:
    """Numbers that no writer tells a product of: where nothing is added they stay, elsewhere they are added to."""
    words = ODD if dtype == "BF16" else ODD_HALF
    name = f"odd {dtype}"
    base = family.base[name] = bits(dtype, words * 50, (600,))
    for what, scale in (("added", 0.75), ("too large", 3e38)):
        product = of_rank(f"low rank {name}", 600, 23, 9, (2, 0, 1), scale, most=1 if scale < 1 else 127)
        due = product.plus(base)
        family.put("a", f"{name}, {what}", item(name, due, [product.told(after=b"\0\0")]), due)


def last_rank(family: Family, dtype: str) -> None:
    """Of 64 components with the largest numbers and shifts: the base takes away all but the last unit of the sum.

    16 · (61 · 127² + 127 · 122 + 61) = 244 · 2^16, which both types have.
    """
    last = np.arange(-64, 64)
    v = np.full((64, 128), 127)
    v[61], v[62], v[63] = 122, 61, last
    u = np.full((64, 128), 127)
    u[62], u[63] = 1, 1
    u[:, 1::2] *= -1
    product = Product(2.0**-8, [4] * 63 + [0], u, v)
    sign = np.where(np.arange(128) % 2, -1.0, 1.0)[:, None]
    name = f"last rank {dtype}"
    base = family.base[name] = floats(dtype, np.repeat(-sign * 244 * 2.0**8, 128, axis=1))
    due = product.plus(base)
    assert np.array_equal(wide(dtype, due.data, "F32").reshape(128, 128) * 256, sign * last)
    family.put("a", name, item(name, due, [product.told(after=b"\0\0")], 16384), due)
