"""The functions of `kernels.lattice` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from tallstore.kernels.lattice import count_segments, count_symbols, decode, encode, prepare

__all__ = ["count_segments", "count_symbols", "decode", "encode", "prepare"]
