"""Adapters: which tensors are one, which base tensors they change, and what these become."""

from __future__ import annotations

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.merge import Change, changes
from tallstore.adapters.places import Places, check_base, find_places
from tallstore.adapters.tensors import AdapterTensors, recognised, sorted_tensors
from tallstore.adapters.tying import check_untied

__all__ = [
    "AdapterConfig",
    "AdapterTensors",
    "Change",
    "Places",
    "changes",
    "check_base",
    "check_untied",
    "find_places",
    "recognised",
    "sorted_tensors",
]
