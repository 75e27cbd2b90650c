"""The closed table of codecs: what an archive may name. An archive never chooses code to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.base import ConditionalCodec, LosslessCodec, MaskCodec, VectorCodec, WholeCodec
from tallstore.codecs.bits import Bits
from tallstore.codecs.bits_zstd import BitsZstd
from tallstore.codecs.codebook import Codebook
from tallstore.codecs.dare import DareCodec
from tallstore.codecs.drift import DriftCodec
from tallstore.codecs.floats import BF16, F32, Ones
from tallstore.codecs.known_dither import DitheredLevels, DitheredMask
from tallstore.codecs.lanes import Lanes
from tallstore.codecs.lattice import LatticeCodec
from tallstore.codecs.planes import Planes
from tallstore.codecs.raw import Raw
from tallstore.errors import CodecError

__all__ = [
    "ASKED",
    "CONDITIONAL",
    "LOSSLESS",
    "MASK",
    "SAMPLED",
    "SHARED",
    "VECTOR",
    "WHOLE",
    "ConditionalCodec",
    "LosslessCodec",
    "MaskCodec",
    "VectorCodec",
    "WholeCodec",
    "find",
]

MASK: Mapping[str, MaskCodec] = {c.id: c for c in (Bits(), BitsZstd(), Adaptive(), DitheredMask())}
VECTOR: Mapping[str, VectorCodec] = {
    c.id: c
    for c in (F32(), BF16(), Codebook("q8", 256), Codebook("q5", 32), Codebook("q4", 16), Ones(), DitheredLevels())
}
ASKED: Mapping[str, MaskCodec] = {id_: codec for id_, codec in MASK.items() if id_ != DitheredMask.id}
"""Codecs of masks that one may ask for: `adaptive` becomes `dither` by itself where a dither drew the marks."""
SHARED: Mapping[str, VectorCodec] = {
    id_: codec for id_, codec in VECTOR.items() if id_ not in {Ones.id, DitheredLevels.id}
}
"""Codecs of vectors that tasks share, which one may ask for: those that take any values."""
WHOLE: Mapping[str, WholeCodec] = {c.id: c for c in (Raw(), Planes())}
LOSSLESS: Mapping[str, LosslessCodec] = {c.id: c for c in (LatticeCodec(), DriftCodec(), Lanes())}
SAMPLED: Mapping[str, DareCodec] = {c.id: c for c in (DareCodec(),)}
CONDITIONAL: Mapping[str, Mapping[str, ConditionalCodec]] = {"lossless": LOSSLESS, "sampled": SAMPLED}
"""By the kind of entry: what turns the base's elements into a task's."""

_C = TypeVar("_C")


def find(table: Mapping[str, _C], id_: str, where: str) -> _C:
    """The codec of that id, or CodecError naming `where` and the ids that this version knows."""
    try:
        return table[id_]
    except KeyError:
        raise CodecError(f"{where}: codec {id_!r} is unknown; this tallstore knows {', '.join(table)}") from None
