"""The functions of `kernels.dare` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_int32, c_int64, c_uint32, c_void_p

import numpy as np
import numpy.typing as npt

from tallstore.kernels import dare as reference
from tallstore.kernels.conversion import from_bf16
from tallstore.kernels.dare import KeptElements, Sampling, class_factors, starts, thresholds
from tallstore.kernels.lattice import Bytes, Lattice, Words
from tallstore.kernels.lattice_fast import memory
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.native.low_rank import FORMS

__all__ = ["KERNELS", "apply", "multiples", "select"]

_P, _I, _L, _U = c_void_p, c_int32, c_int64, c_uint32
KERNELS: Mapping[str, Function] = {
    "dare_select": (_L, (_P, _P, _P, _P, _L, _I, _I, _I, _I, _U, _P, _P, _P, _P)),
    "dare_multiples": (_I, (_P, _P, _P, _P, _P, _L, _I, _I, _U, _P, _P, _P)),
    "dare_apply": (None, (_P, _P, _P, _P, _L, _I, _P)),
}
"""Of `native/src/dare.c`."""
_native = library.kernels_of(KERNELS)


def select(
    lattice: Lattice, base: Words, sampling: Sampling, contexts: Bytes, first: int
) -> tuple[KeptElements, Words]:
    """See `dare.select`; and `dare.starts`. All are good until this thread selects the next."""
    native, n = _native(), len(base)
    if native is None or not base.flags.c_contiguous:
        kept = reference.select(lattice, base, sampling, contexts, first)
        return kept, starts(kept.tags)
    places, tags, words = memory("places", n, np.uint32), memory("tags", n, np.uint8), memory("kept", n, np.uint16)
    share, factor = thresholds(sampling.shares), class_factors(sampling.shares)
    begin, shift = (contexts & 15).astype(np.uint32), (contexts >> 4).astype(np.uint32)
    shape = (lattice.bits, lattice.shift, lattice.mask, sampling.low, first)
    tables = (address(each) for each in (share, factor, begin, shift))
    count = native.dare_select(*(address(each) for each in (places, tags, words, base)), n, *shape, *tables)
    return KeptElements(places[:count], tags[:count]), words[:count]


def multiples(
    dtype: str, words: Words, after: Words, kept: KeptElements, sampling: Sampling, first: int
) -> npt.NDArray[np.int16] | None:
    """See `dare.multiples`; what is found is good until this thread rounds the next."""
    native = _native()
    if native is None or not (words.flags.c_contiguous and after.flags.c_contiguous):
        return reference.multiples(dtype, words, after, kept, sampling, first)
    count = len(kept.places)
    found = memory("multiples", count, np.int16)[:count]
    share, step, width = thresholds(sampling.shares), reference.steps(sampling), from_bf16(sampling.widths)
    addresses = (address(each) for each in (found, words, after, kept.places, kept.tags))
    tables = (address(each) for each in (share, step, width))
    return found if native.dare_multiples(*addresses, count, FORMS[dtype], sampling.nearest, first, *tables) else None


def apply(dtype: str, words: Words, kept: KeptElements, after: Words, sampling: Sampling) -> None:
    """See `dare.apply`."""
    native = _native()
    if native is None or not words.flags.c_contiguous:
        reference.apply(dtype, words, kept, after, sampling)
        return
    width = from_bf16(sampling.widths)
    addresses = (address(each) for each in (words, kept.places, kept.tags, after))
    native.dare_apply(*addresses, len(after), FORMS[dtype], address(width))
