"""A few points of every job and fault; `python -m faults` takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Forks

from .jobs import JOBS
from .points import FAULTS, bench

POINTS = {"kill": 2, "full": 1, "broken": 1, "unread": 1, "cut": 1, "reset": 0}
"""Points of each fault: spread over the operations, never the same ones for two jobs in a row."""


@pytest.mark.parametrize("name", JOBS)
def test_what_is_left_is_whole_or_what_was_there(name: str, tmp_path: Path, forks: Forks) -> None:
    number = list(JOBS).index(name)
    with bench(tmp_path, name, forks) as made:
        for fault in FAULTS:
            count, points = made.operations(fault), POINTS[fault]
            for n in range(min(points, count)):
                share = (n + ((number * 0.618) % 1)) / points
                made.check(fault, 1 + int(share * count))


def test_the_layer_sees_what_a_job_does(tmp_path: Path, forks: Forks) -> None:
    """What writes is counted writing, all are counted reading, those of the Hub sending: or nothing was tested."""
    for name, least in {
        "pack-over-folder": (60, 30, 0),
        "pull-model": (40, 100, 5),
        "keep": (40, 100, 5),
        "push": (0, 50, 20),
    }.items():
        with bench(tmp_path, name, forks) as made:
            found = tuple(made.operations(fault) for fault in ("kill", "unread", "cut"))
            assert all(a >= b for a, b in zip(found, least, strict=True)), found
