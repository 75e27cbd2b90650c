"""The read path: manifest → one task's ranges → codecs → kernel → tensors. Meets the write path only in `format`.

Names are loaded when they are first used: the manifest is read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallstore.archive.archive import Archive, open_archive
    from tallstore.archive.facts import TensorFacts
    from tallstore.archive.merging.mask_statistics import MaskStatistics
    from tallstore.archive.merging.merger import Merged, MergeReport
    from tallstore.archive.slices import TaskWeights, TensorSlice
    from tallstore.archive.switch import Switcher
    from tallstore.archive.verify import Against, VerifyReport
    from tallstore.archive.whole_tensors import WholeTensor

__all__ = [
    "Against",
    "Archive",
    "MaskStatistics",
    "MergeReport",
    "Merged",
    "Switcher",
    "TaskWeights",
    "TensorFacts",
    "TensorSlice",
    "VerifyReport",
    "WholeTensor",
    "open_archive",
]

_WHERE = {
    "Against": "verify",
    "Archive": "archive",
    "MaskStatistics": "merging.mask_statistics",
    "MergeReport": "merging.merger",
    "Merged": "merging.merger",
    "Switcher": "switch",
    "TaskWeights": "slices",
    "TensorFacts": "facts",
    "TensorSlice": "slices",
    "VerifyReport": "verify",
    "WholeTensor": "whole_tensors",
    "open_archive": "archive",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tallstore.archive' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tallstore.archive.{_WHERE[name]}"), name)
