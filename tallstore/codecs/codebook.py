"""Vector codecs `q8`, `q5`, `q4`: each value is an index into a small table of float32, the indices entropy-coded.

The table travels with the chunk, so a reader needs no knowledge of how the levels were chosen, and an encoder is
free to choose them well. This one places them by Lloyd's algorithm (Lloyd 1982, Max 1960) on the magnitudes, begun
from a logarithmic scale, the same levels for both signs.

    u16 K | u8 bits an index (4 or 8) | u8 0 | K × f32 | zstd frame of the packed indices

Index 0 stands for 0. Two indices a byte (the earlier one in the low half) where the table has at most 16 levels.
"""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs import zstd
from tallstore.codecs.base import Buffer, Bytes, Floats, VectorCodec
from tallstore.errors import FormatError

_HEAD = struct.Struct("<HBB")
_SAMPLE = 1 << 16
_ROUNDS = 12
_OCTAVES = 6.0


class Codebook(VectorCodec):
    """Spec: `spec/codecs/codebook.md`. At most `levels` table entries."""

    def __init__(self, id_: str, levels: int) -> None:
        self.id = id_
        self.levels = levels

    def encode(self, values: Floats) -> bytes:
        """Choose the table for this chunk, and code the nearest level of each value."""
        table = design(values, self.levels)
        indices = nearest(values, table)
        used = np.bincount(indices, minlength=len(table)) > 0
        used[0] = True
        indices = (np.cumsum(used) - 1).astype(np.uint8)[indices]
        table = table[used]
        bits = 4 if len(table) <= 16 else 8
        packed = _pack_nibbles(indices) if bits == 4 else indices
        return _HEAD.pack(len(table), bits, 0) + table.tobytes() + zstd.compress(packed)

    def decode(self, data: Buffer, n: int) -> Floats:
        """Look every index up."""
        view = memoryview(data).cast("B")
        if len(view) < _HEAD.size:
            raise FormatError("a codebook is cut off")
        count, bits, zero = _HEAD.unpack_from(view)
        end = _HEAD.size + 4 * count
        if not 1 <= count <= self.levels or bits not in {4, 8} or zero or (bits == 4 and count > 16) or len(view) < end:
            raise FormatError(f"a codebook of {count} levels with {bits}-bit indices is not one of {self.id}")
        table = np.frombuffer(view[_HEAD.size : end], "<f4")
        if not np.isfinite(table).all() or table[0] != 0:
            raise FormatError("a codebook holds a level that is not finite, or does not begin with 0")
        packed = zstd.decompress(view[end:], -(-n * bits // 8))
        if bits == 8:
            return _look_up(table, packed)
        return _look_up_pairs(table, packed, n)


def design(values: Floats, levels: int) -> Floats:
    """The table for `values`: 0 first, then ascending. Deterministic.

    Magnitudes are sampled (at most 65,536, evenly strided), begun on a logarithmic scale below the largest, and moved
    by Lloyd's rounds. Where all values have one sign the whole table serves that sign.
    """
    magnitudes = np.abs(values[values != 0])
    if not len(magnitudes):
        return np.zeros(1, np.float32)
    one_sided = bool((values >= 0).all())
    count = levels - 1 if one_sided else (levels - 1) // 2
    centres = _lloyd(magnitudes, count)
    table = centres if one_sided else np.concatenate([-centres[::-1], centres])
    return np.concatenate([np.zeros(1, np.float32), table])


def _lloyd(magnitudes: Floats, count: int) -> Floats:
    largest = float(magnitudes.max())
    sample = np.sort(magnitudes[:: max(1, len(magnitudes) // _SAMPLE)].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(sample)])
    centres = largest * 2.0 ** -np.linspace(_OCTAVES, 0.0, count) if count > 1 else np.array([sums[-1] / len(sample)])
    for _ in range(_ROUNDS):
        # Zero is a level too: what is nearer to it than to the first centre is coded as 0.
        edges = np.concatenate([[centres[0] / 2], (centres[1:] + centres[:-1]) / 2])
        cuts = np.concatenate([np.searchsorted(sample, edges), [len(sample)]])
        number = np.diff(cuts)
        means = np.diff(sums[cuts]) / np.maximum(number, 1)
        centres = np.sort(np.where(number > 0, means, centres))
    found: Floats = np.unique(centres.astype(np.float32))
    return found[found > 0]


def nearest(values: Floats, table: Floats) -> Bytes:
    """Index of the nearest level of `table` (0 first, the rest ascending), shape (n,)."""
    order = np.argsort(table, kind="stable")
    ordered = table[order].astype(np.float64)
    edges = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    return order.astype(np.uint8)[np.searchsorted(edges, values)]


def _pack_nibbles(indices: Bytes) -> Bytes:
    even = np.zeros(-(-len(indices) // 2) * 2, np.uint8)
    even[: len(indices)] = indices
    return even[0::2] | even[1::2] << 4  # type: ignore[no-any-return]


def _look_up(table: Floats, indices: Bytes) -> Floats:
    if len(indices) and indices.max() >= len(table):
        raise FormatError(f"an index {indices.max()} lies outside a codebook of {len(table)} levels")
    return table[indices]


def _look_up_pairs(table: Floats, packed: Bytes, n: int) -> Floats:
    if n % 2 and packed[-1] >> 4:
        raise FormatError("bits behind the last index are not zero")
    low, high = packed & 15, packed >> 4
    if len(packed) and max(low.max(), high.max()) >= len(table):
        raise FormatError(f"an index lies outside a codebook of {len(table)} levels")
    full = np.zeros(16, np.float32)
    full[: len(table)] = table
    pairs = np.stack([full[np.arange(256) & 15], full[np.arange(256) >> 4]], axis=1).view(np.uint64)[:, 0]
    return pairs[packed].view(np.float32)[:n]
