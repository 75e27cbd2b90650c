"""Adapters: which tensors are one, which base tensors they change, and what these become."""

from __future__ import annotations

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.model import MergedModel, merged_model
from tallstore.adapters.places import check_base
from tallstore.adapters.tensors import AdapterTensors, recognised, sorted_tensors
from tallstore.adapters.trainers import TRAINERS, check_trainer, trainer_of

__all__ = [
    "TRAINERS",
    "AdapterConfig",
    "AdapterTensors",
    "MergedModel",
    "check_base",
    "check_trainer",
    "merged_model",
    "recognised",
    "sorted_tensors",
    "trainer_of",
]
