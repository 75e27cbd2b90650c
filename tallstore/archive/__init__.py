"""The read path: manifest → one task's ranges → codecs → kernel → tensors. Meets the write path only in `format`.

Names are loaded when they are first used: the manifest is read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_WHERE = {
    "Against": "verify",
    "MaskStatistics": "statistics",
    "MergeReport": "merge",
    "Merged": "merge",
    "Switcher": "switch",
    "TaskWeights": "weights",
    "TensorFacts": "zoo",
    "TensorSlice": "weights",
    "VerifyReport": "verify",
    "WholeTensor": "wholes",
    "Zoo": "zoo",
    "open_zoo": "zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tallstore.archive' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tallstore.archive.{_WHERE[name]}"), name)
