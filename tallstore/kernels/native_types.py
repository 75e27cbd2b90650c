"""Types as native kernels are told of them: see `native/src/common.h`."""

from __future__ import annotations

import torch

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "FLOAT64", "FORMS", "NARROW"]

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = range(4)
FORMS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.float64: FLOAT64}
"""Types that kernels change where they lie."""
NARROW = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
"""Types to which what is decoded in float32 is rounded."""
