"""Kernels run on the GPU where there is one, else in Triton's interpreter: that is decided when triton is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _quiet_interpreter() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where arithmetic overflows as it should."""
    before = np.seterr(all="ignore")
    yield
    np.seterr(**before)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
