"""Names of tensors: one tensor of a model is called differently in files, in memory, and under wrappers."""

from __future__ import annotations

from tallstore.names.conversion import Conversion, ConvertedGroup, Route, computed_by, conversion_of, is_pretrained
from tallstore.names.wrappers import bare, inner_model, short_names, unwrapped

__all__ = [
    "Conversion",
    "ConvertedGroup",
    "Route",
    "bare",
    "computed_by",
    "conversion_of",
    "inner_model",
    "is_pretrained",
    "short_names",
    "unwrapped",
]
