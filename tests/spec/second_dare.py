"""The second reader's codec `dare`, written from `spec/codecs/dare.md` alone."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from .second_codecs import LATTICE, decode_lattice
from .second_numbers import BYTES, must, rounded, to_work

NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
"""What becomes a NaN in mode 3."""


def decode_dare(data: bytes, base: bytes, dtype: str, first: bytes | None = None) -> bytes:
    """dare.md; `first`: the tensor's first chunk, of those behind it."""
    must(dtype in {"F32", "BF16", "F16"} and data, "another type, or an empty chunk")
    if data[0] == 0:
        must(len(data) > 1, "no chunk of lattice")
        return decode_lattice(data[1:], base, dtype)
    if data[0] == 3:
        rest, moved = _low_rank(data, base, dtype, first)
        must(rest and rest[0] in {0, 2}, "a mode that does not follow, or a chunk cut off")
        return decode_dare(rest, moved, dtype)
    must(data[0] == 2 and len(data) > 86, "an unknown mode, or a chunk cut off")
    s, m, _ = LATTICE[dtype]
    low, first, *rest = struct.unpack_from("<BI16H16H16B", data, 1)
    shares, widths, contexts = rest[:16], rest[16:32], rest[32:]
    must(low <= m and max(widths) <= 0x7F7F, "the lowest exponent, or a width")
    must(all(x >> 4 <= 4 and x % 16 + (15 >> (x >> 4)) <= 15 for x in contexts), "contexts")
    size = BYTES[dtype]
    words = [int.from_bytes(base[at : at + size], "little") for at in range(0, len(base), size)]
    places, levels, before = [], [], b""
    for i, word in enumerate(words):
        x = (first + i) % (1 << 32)
        x = (x ^ x >> 16) * 0x7FEB352D % (1 << 32)
        x = (x ^ x >> 15) * 0x846CA68B % (1 << 32)
        drawn = (x ^ x >> 16) >> 8
        level = min(max((word >> s & m) - low, 0), 15)
        share = shares[level] + 1
        if drawn < share << 8:
            places.append(i)
            levels.append(level)
            k = (drawn >> 8) * ((1 << 20) // share) >> 16
            c = contexts[level] % 16 + (k >> (contexts[level] >> 4))
            before += ((c + 1) << 7).to_bytes(2, "little")
    steps = _steps(data[86:], before)
    a = to_work(b"".join(base[size * i : size * i + size] for i in places), dtype, np.float32)
    w = to_work(b"".join(widths[level].to_bytes(2, "little") for level in levels), "BF16", np.float32)
    with np.errstate(all="ignore"):
        moved = rounded(a + steps.astype(np.float32) * w, dtype)
    out = bytearray(base)
    for at, (i, q) in enumerate(zip(places, steps, strict=True)):
        if q:
            out[size * i : size * i + size] = moved[size * at : size * at + size]
    return bytes(out)


def _steps(chunk: bytes, before: bytes) -> np.ndarray:
    """dare.md: the steps from there, as signed whole numbers of 16 bits."""
    after = decode_lattice(chunk, before, "BF16")
    start, stop = (np.frombuffer(each, "<u2").astype(np.int64) for each in (before, after))
    start, stop = (np.where(each >> 15, each ^ 0x7FFF, each) for each in (start, stop))
    return ((stop - start + 0x8000) & 0xFFFF) - 0x8000


def _low_rank(data: bytes, base: bytes, dtype: str, first: bytes | None) -> tuple[bytes, bytes]:
    """dare.md, "Low rank": the chunk that follows, and base'."""
    of = _product(data)
    rank, width, size = of.rank, of.width, BYTES[dtype]
    n = len(base) // size
    rows = -(-(of.gone + n) // width)
    must(rank * rows <= n, "more numbers of rows than elements")
    must(rank * width <= 64 * n, "more numbers of columns than 64 an element")
    u, teller = _whole_numbers(of.rows, rank, rows), of
    if not of.columns:
        must(first is not None, "the first chunk tells no columns")
        teller = _product(first or b"")
        must(teller.columns and teller.width == width and teller.rank >= rank, "a first chunk of other columns")
    v = _whole_numbers(teller.columns, teller.rank, width)
    sums = []
    for i in range(n):
        row, column = divmod(of.gone + i, width)
        sums.append(sum(int(u[k, row]) * int(v[k, column]) << shift for k, shift in enumerate(of.shifts)))
    with np.errstate(all="ignore"):
        wide = to_work(base, dtype, np.float32) + np.float32(of.scale) * np.array(sums, np.float32)
        moved = bytearray(rounded(wide, dtype))
    for i, total in enumerate(sums):
        if total == 0:
            moved[size * i : size * i + size] = base[size * i : size * i + size]
        elif np.isnan(wide[i]):
            moved[size * i : size * i + size] = NAN[dtype].to_bytes(size, "little")
    return of.rest, bytes(moved)


class _Product(NamedTuple):
    """dare.md, mode 3: what a chunk says, however many elements it has."""

    rank: int
    width: int
    gone: int
    scale: float
    shifts: bytes
    rows: bytes
    columns: bytes
    rest: bytes


def _product(data: bytes) -> _Product:
    must(len(data) >= 14 and data[0] == 3, "another mode, or a head cut off")
    rank, width, gone, scale = struct.unpack_from("<BIIf", data, 1)
    must(1 <= rank <= 64 and gone < width, "a rank, or what is gone of a row")
    must(rank * width <= 1 << 22, "more numbers of columns than any chunk may tell")
    must(0 < scale < float("inf"), "a scale")
    sizes = 14 + rank
    must(len(data) >= sizes + 8, "a head cut off")
    shifts, (a, b) = data[14:sizes], struct.unpack_from("<II", data, sizes)
    must(max(shifts) <= 4, "a shift")
    middle, end = sizes + 8 + a, sizes + 8 + a + b
    must(a and end <= len(data), "two chunks of lattice")
    return _Product(rank, width, gone, scale, shifts, data[sizes + 8 : middle], data[middle:end], data[end:])


def _whole_numbers(chunk: bytes, rank: int, count: int) -> np.ndarray:
    """So many of each component."""
    before = b"".join(((k // 4 + 1) << 7).to_bytes(2, "little") * count for k in range(rank))
    numbers = _steps(chunk, before)
    must((np.abs(numbers) <= 127).all(), "a number")
    return numbers.reshape(rank, count)
