"""Codec `lanes`: any bytes against any others, small where codes are one step apart; what is damaged is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallstore.codecs import LOSSLESS
from tallstore.codecs.zstd import compress
from tallstore.errors import DamagedError, FormatError
from tallstore.format.dtypes import ITEM_BYTES

LANES = LOSSLESS["lanes"]


def round_trip(raw: np.ndarray, base: np.ndarray, dtype: str) -> bytes:
    coded = LANES.encode(raw, base, dtype)
    out = base.copy()
    LANES.decode(coded, out, dtype)
    assert np.array_equal(out, raw)
    return coded


@given(dtype=st.sampled_from(sorted(ITEM_BYTES)), n=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_anything_comes_back(dtype: str, n: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    base = draw.integers(0, 256, n * ITEM_BYTES[dtype], np.uint8)
    other = draw.integers(0, 256, len(base), np.uint8)
    round_trip(np.where(draw.random(len(base)) < share, other, base), base, dtype)


@pytest.mark.parametrize(("dtype", "step", "bits"), [("U8", 0x10, 4), ("I32", 0x01, 4), ("I8", 1, 8)])
def test_steps_take_little(dtype: str, step: int, bits: int) -> None:
    draw = np.random.default_rng(5)
    base = draw.integers(0, 256, 1 << 16, np.uint8)
    if bits == 4:
        moves = np.where(draw.random((len(base), 2)) < 0.05, draw.choice([1, 15], (len(base), 2)), 0).astype(np.uint8)
        raw = ((base & 15) + moves[:, 0] & 15) | ((base >> 4) + moves[:, 1] & 15) << 4
    else:
        raw = (base + np.where(draw.random(len(base)) < 0.5, draw.integers(0, 5, len(base)), 0)).astype(np.uint8)
    coded = round_trip(raw.astype(np.uint8), base, dtype)
    # Bits of entropy per lane: of 5 % that move by ±1, and of half that move by one of five.
    most = {4: 2 * (0.286 + 0.05), 8: 0.98 + 0.5 * 2.33}[bits]
    assert len(coded) * 8 / len(base) < 1.25 * most
    assert round_trip(base, base, dtype) == b"\0"


def head(a: int, b: int) -> bytes:
    return struct.pack("<II", a, b)


FRAME = compress(np.ones(8, np.uint8))
ZEROS = compress(np.zeros(1, np.uint8))
MASK = b"\0" + compress(np.array([1], np.uint8))
DAMAGED = {
    "empty": b"",
    "the base's and more": b"\0\0",
    "lanes of 5 bits": b"\5" + head(0, len(FRAME)) + FRAME,
    "lanes wider than an element": b"\x10" + head(0, len(FRAME)) + FRAME,
    "cut in the head": b"\4" + head(0, len(FRAME))[:5],
    "cut in the frame": b"\4" + head(0, len(FRAME)) + FRAME[:-1],
    "followed by something": b"\4" + head(0, len(FRAME)) + FRAME + b"\0",
    "a frame of another size": b"\4" + head(0, len(ZEROS)) + ZEROS,
    "no frame": b"\4" + head(0, 4) + b"none",
    "marked and 0": b"\4" + head(len(MASK), len(ZEROS)) + MASK + ZEROS,
    "a mask of no known form": b"\4" + head(1, len(ZEROS)) + b"\7" + ZEROS,
    "more than there is": b"\4" + head(0, 2**32 - 1) + FRAME,
    "own elements, cut": b"\1\0",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises((FormatError, DamagedError)):
        LANES.decode(data, np.zeros(8, np.uint8), "U8")
