"""What lies in the Hub's cache, and a way to damage it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tallstore

MASK = "tasks/a/mask.safetensors"


def cached(cache: Path, path: str) -> Path:
    (found,) = cache.glob(f"models--user--zoo/snapshots/*/{path}")
    return found


def states(zoo: Path, *tasks: str) -> dict[str, Any]:
    with tallstore.open(zoo) as opened:
        return {task: opened.state_dict(task) for task in tasks or opened.tasks}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
