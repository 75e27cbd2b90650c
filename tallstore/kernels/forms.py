"""Types of rows that go straight from their files, as compiled kernels are told of them."""

from __future__ import annotations

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32"]

FLOAT32, BFLOAT16, FLOAT16 = range(3)
