"""The functions of `kernels.dare` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_int32, c_int64, c_uint32, c_void_p

import numpy as np

from tallstore.kernels import dare as reference
from tallstore.kernels.dare import KeptElements, thresholds
from tallstore.kernels.lattice import Bytes, Lattice, Words
from tallstore.kernels.lattice_fast import memory
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.place_hash import DRAWN

__all__ = ["KERNELS", "rescale", "select"]

_P, _I, _L, _U = c_void_p, c_int32, c_int64, c_uint32
KERNELS: Mapping[str, Function] = {
    "dare_select": (_L, (_P, _P, _P, _P, _L, _I, _I, _I, _U, _P, _P, _P)),
    "dare_rescale": (None, (_P, _P, _P, _P, _L, _I)),
}
"""Of `native/src/dare.c`."""
_FORMS = {"BF16": 1, "F16": 2}
"""As `native/src/common.h` numbers them; `native_types`, which does too, needs torch."""
_native = library.kernels_of(KERNELS)


def select(lattice: Lattice, base: Words, low: int, first: int, rates: Bytes) -> tuple[KeptElements, Words]:
    """See `dare.select`; and the words of what is kept. Both are good until this thread selects the next."""
    native, n = _native(), len(base)
    if native is None or not base.flags.c_contiguous:
        kept = reference.select(lattice, base, low, first, rates)
        return kept, base[kept.places]
    places, times = memory("places", n, np.uint32), memory("times", n, np.uint32)
    words, share = memory("kept", n, np.uint16), thresholds(rates)
    whole, more = np.divmod(np.uint32(1 << DRAWN), np.maximum(share, 1))
    addresses = (address(each) for each in (places, times, words, base))
    shape = (lattice.shift, lattice.mask, low, first)
    count = native.dare_select(*addresses, n, *shape, *(address(each) for each in (share, whole, more)))
    return KeptElements(places[:count], times[:count]), words[:count]


def rescale(dtype: str, words: Words, kept: KeptElements, after: Words) -> None:
    """See `dare.rescale`."""
    native = _native()
    if native is None or not words.flags.c_contiguous:
        reference.rescale(dtype, words, kept, after)
        return
    addresses = (address(each) for each in (words, kept.places, kept.times, after))
    native.dare_rescale(*addresses, len(after), _FORMS[dtype])
