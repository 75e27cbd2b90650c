"""Every codec in the table passes the suite of its kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tallstore import codecs
from tallstore.codecs.base import Floats
from tallstore.testing import (
    DrawnLevelsContract,
    DrawnMaskContract,
    LosslessCodecContract,
    MaskCodecContract,
    SampledCodecContract,
    VectorCodecContract,
    WholeCodecContract,
)
from tallstore.testing.codecs import SIZES

ERRORS = {"f32": 0.0, "bf16": 2.0**-8, "q8": 0.02, "q5": 0.08, "q4": 0.14, "ones": 0.0, "dither-levels": 0.0}
"""What each vector codec may lose of normally distributed values, relative to their length."""
DTYPES = {"lattice": ("F32", "BF16", "F16"), "drift": ("F32", "BF16", "F16"), "lanes": ("U8", "I8", "I32", "I64")}


class _OfOnes(VectorCodecContract):
    """v ≡ 1 is all that it codes."""

    def _values(self) -> Iterator[Floats]:
        yield from (np.ones(n, np.float32) for n in SIZES)


MASKS = {"dither": DrawnMaskContract}
VECTORS = {"ones": _OfOnes, "dither-levels": DrawnLevelsContract}
"""Suites of codecs that are more than those of their kind, or take less."""

for _id, _codec in codecs.MASK.items():
    _suite = MASKS.get(_id, MaskCodecContract)
    globals()[f"TestMask_{_id}"] = type(f"TestMask_{_id}", (_suite,), {"codec": _codec})
for _id, _codec in codecs.VECTOR.items():
    _vectors = VECTORS.get(_id, VectorCodecContract)
    globals()[f"TestVector_{_id}"] = type(f"TestVector_{_id}", (_vectors,), {"codec": _codec, "error": ERRORS[_id]})
for _id, _codec in codecs.WHOLE.items():
    globals()[f"TestWhole_{_id}"] = type(f"TestWhole_{_id}", (WholeCodecContract,), {"codec": _codec})
for _id, _codec in codecs.LOSSLESS.items():
    _members = {"codec": _codec, "dtypes": DTYPES[_id]}
    globals()[f"TestLossless_{_id}"] = type(f"TestLossless_{_id}", (LosslessCodecContract,), _members)
for _id, _codec in codecs.SAMPLED.items():
    globals()[f"TestSampled_{_id}"] = type(f"TestSampled_{_id}", (SampledCodecContract,), {"codec": _codec})


def test_every_codec_of_the_table_is_held_to_it() -> None:
    tables = (codecs.MASK, codecs.VECTOR, codecs.WHOLE, codecs.LOSSLESS, codecs.SAMPLED)
    suites = [name for name in globals() if name.startswith("Test")]
    assert len(suites) == sum(map(len, tables))
