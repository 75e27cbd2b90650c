"""Kernels run on the GPU where there is one, else in Triton's interpreter: that is decided when triton is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tallstore.kernels.native import library

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _quiet_interpreter() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where arithmetic overflows as it should."""
    before = np.seterr(all="ignore")
    yield
    np.seterr(**before)


def variants() -> list[str]:
    """Those of the native library that this machine can run; what tests of it are parametrized by."""
    return [] if (found := library.chosen()) is None else list(found.there)


@pytest.fixture(scope="module", params=variants() or [pytest.param("", marks=pytest.mark.skip("no native library"))])
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every variant by turns, in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, request.param)
        yield request.param


@pytest.fixture(scope="module", params=["reference", *variants()])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference backend, and every variant of the native one, in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, request.param)
        yield request.param


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
