"""Vector codecs `q8`, `q5`, `q4`: each value is an index into a small table of float32, the indices entropy-coded.

The table travels with the chunk, so a reader needs no knowledge of how the levels were chosen, and an encoder is
free to choose them well. This one places them by Lloyd's algorithm (Lloyd 1982, Max 1960) on the magnitudes, begun
from a logarithmic scale, the same levels for both signs.

    u16 K | u8 bits an index (4 or 8) | u8 layout | K × f32 | the indices
    layout 0:  zstd frame of the packed indices
    layout 1:  u32 mask bytes | an `adaptive` binary mask of the values that are not 0 | zstd frame of their indices − 1

Index 0 stands for 0. Two indices a byte (the earlier one in the low half) where the table has at most 16 levels.
Layout 1 is for chunks of mostly zeros, where a pair of zeros still costs a whole bit.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.base import Buffer, Bytes, Floats, IndexedValues, VectorCodec
from tallstore.errors import FormatError
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

_HEAD = struct.Struct("<HBB")
_DENSE, _SPARSE = 0, 1
_MASK = Adaptive()
_NEVER_ABOVE = 0.6
"""Share of values that are not 0 from which on the sparse layout is not tried."""
_WORTH = 0.99
_SAMPLE = 1 << 16
_ROUNDS = 12
_SAME, _ONE = np.arange(256, dtype=np.uint8), np.uint8(1)
_OCTAVES = 6.0


class Codebook(VectorCodec):
    """Spec: `spec/codecs/codebook.md`. At most `levels` table entries."""

    def __init__(self, id_: str, levels: int) -> None:
        self.id = id_
        self.levels = levels

    def encode(self, values: Floats) -> bytes:
        """Choose the table for this chunk, and code the nearest level of each value."""
        table = design(values, self.levels)
        return self.encode_indices(table, nearest(values, table))

    def encode_indices(self, table: Floats, indices: Bytes, numbers: npt.NDArray[np.int64] | None = None) -> bytes:
        """Code indices into a table of one's own: 0 first, at most `levels` entries. Unused levels are left out.

        `numbers`: how often each index comes, should that be known.
        """
        if numbers is None:
            numbers = count_indices(indices, len(table))
        used, order = numbers > 0, _SAME
        used[0] = True
        if not used.all():
            order = np.zeros(256, np.uint8)
            order[: len(table)] = np.cumsum(used) - 1
            table = table[used]
        bits = 4 if len(table) <= 16 else 8
        levels = table.tobytes()
        dense = _HEAD.pack(len(table), bits, _DENSE) + levels + zstd.compress(pack_indices(indices, bits, order))
        marks = len(indices) - int(numbers[0])
        if marks > _NEVER_ABOVE * len(indices):
            return dense
        on = indices != 0
        mask = _MASK.encode(on.view(np.uint8), "binary")
        rest = zstd.compress(pack_indices(without_zeros(indices, marks), bits, order - _ONE))
        sparse = _HEAD.pack(len(table), bits, _SPARSE) + levels + len(mask).to_bytes(4, "little") + mask + rest
        return sparse if len(sparse) < _WORTH * len(dense) else dense

    def decode(self, data: Buffer, n: int) -> Floats:
        """Look every index up."""
        return self.decode_levels(data, n).values(n)

    def decode_levels(self, data: Buffer, n: int) -> IndexedValues:
        """The table as stored, and packed indices whatever the layout."""
        view = memoryview(data).cast("B")
        if len(view) < _HEAD.size:
            raise FormatError("a codebook is cut off")
        count, bits, layout = _HEAD.unpack_from(view)
        end = _HEAD.size + 4 * count
        if not 1 <= count <= self.levels or bits not in {4, 8} or (bits == 4 and count > 16) or len(view) < end:
            raise FormatError(f"a codebook of {count} levels with {bits}-bit indices is not one of {self.id}")
        table = np.frombuffer(view[_HEAD.size : end], "<f4")
        if not np.isfinite(table).all() or bytes(view[_HEAD.size : _HEAD.size + 4]) != bytes(4):
            raise FormatError("a codebook holds a level that is not finite, or does not begin with +0")
        if layout == _DENSE:
            return IndexedValues(table, _indices(view[end:], count, bits, n), bits)
        if layout != _SPARSE or len(view) < end + 4:
            raise FormatError(f"a codebook with indices in layout {layout} is not one of {self.id}, or is cut off")
        middle = end + 4 + int.from_bytes(view[end : end + 4], "little")
        if middle > len(view):
            raise FormatError("a codebook's mask is cut off")
        on = _MASK.decode_packed(view[end + 4 : middle], "binary", n)
        marks = int(np.bitwise_count(on).sum()) if hasattr(np, "bitwise_count") else int(np.unpackbits(on).sum())
        return IndexedValues(
            table, decoding().spread(on, n, _indices(view[middle:], count - 1, bits, marks), bits), bits
        )


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
    levels: Floats = np.unique(centres.astype(np.float32))
    return levels[levels > 0]


@kernel
def nearest(values: Floats, table: Floats) -> Bytes:
    """Index of the nearest level of `table` (0 first, the rest ascending), shape (n,)."""
    order, edges = _between(table)
    nearest_of: Bytes = order[np.searchsorted(edges, values)]
    return nearest_of


@nearest.native
def _(values: Floats, table: Floats) -> Bytes:
    order, edges = _between(table)
    return encode.nearest(values.astype(np.float32, copy=False), edges, order)


def _between(table: Floats) -> tuple[Bytes, Floats]:
    """Indices of levels in ascending order, and the edges half way between them."""
    order = np.argsort(table, kind="stable")
    ordered = table[order].astype(np.float64)
    return order.astype(np.uint8), ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)


@kernel
def count_indices(indices: Bytes, most: int) -> npt.NDArray[np.int64]:
    """How often each index comes."""
    return np.bincount(indices, minlength=most)


@count_indices.native
def _(indices: Bytes, most: int) -> npt.NDArray[np.int64]:
    return encode.count_bytes(indices)[:most]


@kernel
def pack_indices(indices: Bytes, bits: int, order: Bytes = _SAME) -> Bytes:
    """Indices as they are written; `order`: what to write for each, uint8, shape (256,)."""
    if bits == 8:
        return order[indices]
    even = np.zeros(-(-len(indices) // 2) * 2, np.uint8)
    even[: len(indices)] = order[indices]
    packed: Bytes = even[0::2] | (even[1::2] << 4).astype(np.uint8)
    return packed


@pack_indices.native
def _(indices: Bytes, bits: int, order: Bytes = _SAME) -> Bytes:
    return encode.pack_indices(indices, order, bits)


@kernel
def without_zeros(indices: Bytes, marks: int) -> Bytes:  # noqa: ARG001 - the native kernel needs it
    """Indices where they are not 0; `marks`: how many."""
    rest: Bytes = indices[indices != 0]
    return rest


@without_zeros.native
def _(indices: Bytes, marks: int) -> Bytes:
    return encode.without_zeros(indices, marks)


def _indices(frame: Buffer, count: int, bits: int, n: int) -> Bytes:
    """n packed indices, all of them below `count`."""
    packed = zstd.decompress(frame, -(-n * bits // 8))
    if bits == 4 and n % 2 and packed[-1] >> 4:
        raise FormatError("bits behind the last index are not zero")
    if len(packed):
        largest = int(packed.max() if bits == 8 else max((packed & 15).max(), (packed >> 4).max()))
        if largest >= count:
            raise FormatError(f"an index {largest} lies outside a codebook of {count} levels")
    return packed
