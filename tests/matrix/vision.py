"""timm and open_clip need torchvision, whose builds may ask for libraries that this torch does not bring.

Their folder is named by TALLSTORE_VISION. It comes behind this environment's packages, and what torchvision describes of
operators that did not load is declared first, so that importing it does not fail.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import Any

import pytest
import torch


@cache
def _declared() -> Any:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def import_vision(library: str) -> Any:
    """timm or open_clip, or skip where neither this environment nor that folder has it."""
    folder = os.environ.get("TALLSTORE_VISION")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed, and TALLSTORE_VISION names no folder that has it")
    _declared()
    return importlib.import_module(library)
