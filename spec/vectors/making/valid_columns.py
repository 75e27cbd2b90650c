"""A valid vector of version 1.4: products of which a tensor's first chunk tells columns for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tallstore.codecs import LOSSLESS

from .build import CHUNK, spans
from .numbers import Tensor, bits
from .valid import Case, case
from .valid_dare import LEVELS, OF_TYPE, PARENT, drawing, moved, numbers
from .valid_lossless import ODD
from .valid_low_rank import ODD_HALF, Product, Whole, as_array, cut, item, of_rank, then, whole_numbers
from .valid_relatives import Family

SCALES = {"BF16": 2.0**-22, "F16": 2.0**-16, "F32": 2.0**-24}
SHAPE = (150, 40)


class Chunk(NamedTuple):
    """What is told of a chunk."""

    shifts: Sequence[int] = ()
    """Of as many components; of none, there is no product."""
    with_columns: bool = False
    lossless: bool = False
    """Whether mode 0 follows."""


CHUNKS = (
    Chunk((0, 3, 1, 2, 4), with_columns=True),
    Chunk((4, 0, 1, 1, 2)),
    Chunk((2, 2), lossless=True),
    Chunk(),
    Chunk((1, 0, 2, 0, 1, 3, 0), with_columns=True),
    Chunk((3, 1, 0)),
)
"""All components of the first chunk's, fewer, no product, columns of a chunk's own, and the first chunk's again."""


@case
def low_rank_columns() -> Case:
    """Codec `dare` in mode 3 without columns: all that the first chunk tells, or the first of them."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    for dtype in OF_TYPE:
        base = family.base[dtype] = numbers(dtype, f"columns {dtype}", SHAPE)
        by_chunks(family, "a", dtype, base, CHUNKS)
        by_chunks(family, "b", dtype, family.decoded["a"][dtype], CHUNKS[:2] + CHUNKS[1:2] * 3 + CHUNKS[5:], start=[])
        wide = family.base[f"wide {dtype}"] = numbers(dtype, f"columns wide {dtype}", (4, 1500))
        chunks = (Chunk((0, 2, 1), with_columns=True), *[Chunk((1, 1, 0)), Chunk((4,))] * 3)
        by_chunks(family, "a", f"wide {dtype}", wide, chunks[:6])
        full = family.base[f"full {dtype}"] = numbers(dtype, f"columns full {dtype}", (32, 64))
        by_chunks(family, "a", f"full {dtype}", full, (Chunk([1] * 64, with_columns=True), Chunk([0, 1] * 32)))
        _odd(family, dtype)
    _most(family)
    archive = family.archive()
    archive.since("1.4", "mask", "relative")
    about = (
        "codec dare in mode 3 without columns: those of a tensor's first chunk, all or the first of them; rows of all 0 in "
        "front of numbers that nothing is added to; columns of a chunk's own; as many rows' and columns' numbers as there may be"
    )
    return Case(about, archive, family.decoded, file=True)


def by_chunks(family: Family, task: str, name: str, before: Tensor, chunks: Sequence[Chunk], **more: object) -> None:
    """A tensor, chunk by chunk: most begin within a row."""
    width, seed = before.shape[1], f"columns {task} {name}"
    sampling, coded, due = drawing(before.dtype, LEVELS["some"]), [], b""
    first = of_rank(seed, CHUNK, width, 0, chunks[0].shifts, SCALES[before.dtype])
    for (a, b), chunk in zip(spans(before.numel), chunks, strict=True):
        start, product = cut(before, a, b), first
        if a and chunk.shifts:
            product = of_rank(f"{seed} {a}", b - a, width, a % width, chunk.shifts, SCALES[before.dtype] * 1.5)
            if not chunk.with_columns:
                product = product._replace(v=first.v[: len(chunk.shifts)])
        start = product.plus(start) if chunk.shifts else start
        own = moved(start, f"{seed} moved {a}")
        rest, own = then(own, start, None if chunk.lossless else sampling, a)
        coded.append(product.told(after=rest, with_columns=chunk.with_columns) if chunk.shifts else rest)
        due += own.data
    found = Tensor(before.dtype, before.shape, due)
    family.put(task, name, item(name, found, coded, **more), found)


def _odd(family: Family, dtype: str) -> None:
    """A first chunk with numbers that nothing may be added to: its rows are all 0, and it tells columns all the same."""
    words, name, width = ODD if dtype == "BF16" else ODD_HALF, f"odd {dtype}", 33
    head = bits(dtype, (words * CHUNK)[:CHUNK])
    tail = numbers(dtype, f"columns {name}", (1500 - CHUNK,))
    family.base[name] = Tensor(dtype, (1500,), head.data + tail.data)
    v = whole_numbers(f"columns {name} columns", (3, width))
    zeros: Whole = np.zeros((3, -(-CHUNK // width)), np.int64)
    own = bits(dtype, (words[5:] + words[:5]) * CHUNK).cut(0, CHUNK)
    first = Product(SCALES[dtype], (0, 1, 2), zeros, v)
    rest = b"\0" + LOSSLESS["lattice"].encode(np.frombuffer(own, np.uint8), as_array(head), dtype)
    gone = CHUNK % width
    u = whole_numbers(f"columns {name} rows", (2, -(-(gone + tail.numel) // width)))
    later = Product(SCALES[dtype], (2, 0), u, v[:2], gone)
    assert first.plus(head) == head
    due = Tensor(dtype, (1500,), own + later.plus(tail).data)
    coded = [first.told(after=rest), later.told(after=b"\0\0", with_columns=False)]
    family.put("a", name, item(name, due, coded), due)


def _most(family: Family) -> None:
    """As many columns' numbers as there may be, 64 an element; of the last chunk, which has fewer, a component less."""
    name, numel = "most", 2 * CHUNK - 16
    base = family.base[name] = numbers("BF16", f"columns {name}", (numel,))
    v = whole_numbers(f"columns {name} columns", (64, CHUNK), 7)
    coded, due = [], b""
    for (a, b), rank in zip(spans(numel), (64, 63), strict=True):
        u = whole_numbers(f"columns {name} rows {a}", (rank, 1))
        u[0] = 127
        product = Product(2.0**-22, [a % 3] * rank, u, v[:rank], 0)
        coded.append(product.told((None, 1), b"\0\0", with_columns=not a))
        due += product.plus(cut(base, a, b)).data
    found = Tensor("BF16", (numel,), due)
    family.put("a", name, item(name, found, coded), found)
