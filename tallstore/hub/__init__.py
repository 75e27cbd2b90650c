"""The Hugging Face Hub and transformers, on top of archives: push, pull, load a task as a model."""

from __future__ import annotations

from tallstore.hub.pulling import PullReport, pull
from tallstore.hub.pushing import PushReport, push
from tallstore.hub.transformers_model import from_pretrained, load_processor

__all__ = ["PullReport", "PushReport", "from_pretrained", "load_processor", "pull", "push"]
