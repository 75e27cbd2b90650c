"""A part of long data that tells, mostly, what coding all of it would come to."""

from __future__ import annotations

import numpy as np

from tallstore.codecs.base import Bytes

__all__ = ["LONG", "ONE_IN", "RUN", "sample"]

RUN, ONE_IN = 1 << 11, 16
"""Bytes of a run, and of how many bytes one is in the sample."""
LONG = 1 << 17
"""Bytes from which on data are sampled: fewer are as quickly coded, and their sample would say little."""


def sample(data: Bytes, one_in: int = ONE_IN) -> Bytes | None:
    """Runs of data, uint8, shape (n,), one behind the other; None of short ones."""
    stride = RUN * one_in
    if len(data) < LONG:
        return None
    runs = data[: len(data) // stride * stride].reshape(-1, stride)
    return np.ascontiguousarray(runs[:, stride // 2 : stride // 2 + RUN]).reshape(-1)
