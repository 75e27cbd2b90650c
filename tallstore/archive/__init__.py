"""The read path: manifest → one task's ranges → codecs → kernel → tensors. Meets the write path only in `format`."""

from __future__ import annotations

from tallstore.archive.merge import Merged, MergeReport
from tallstore.archive.statistics import MaskStatistics
from tallstore.archive.switch import Switcher
from tallstore.archive.verify import Against, VerifyReport
from tallstore.archive.weights import TaskWeights, TensorSlice
from tallstore.archive.wholes import WholeTensor
from tallstore.archive.zoo import TensorFacts, Zoo, open_zoo

__all__ = [
    "Against",
    "MaskStatistics",
    "MergeReport",
    "Merged",
    "Switcher",
    "TaskWeights",
    "TensorFacts",
    "TensorSlice",
    "VerifyReport",
    "WholeTensor",
    "Zoo",
    "open_zoo",
]
