"""Every target by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import archive, checkpoint, codec, headers
from .base import Target

TARGETS: Mapping[str, Target] = {
    **headers.TARGETS,
    **codec.TARGETS,
    **archive.TARGETS,
    **checkpoint.TARGETS,
}
