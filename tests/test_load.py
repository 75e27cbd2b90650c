"""Many readers at once, in a small form; `python -m load` is the full one."""

from __future__ import annotations

from pathlib import Path

import load
import pytest

pytestmark = pytest.mark.usefixtures("few_objects")


def test_threads_decode_one_archive(target: Path) -> None:
    assert load.threads_on_one_zoo(target, load.put(target, 0, 6_000), 64, 2) == 128


def test_processes_decode_one_archive(tmp_path: Path) -> None:
    assert load.processes(tmp_path / "zoo", load.put(tmp_path / "zoo", 0, 6_000), 2, 8, 2) == 32


def test_readers_of_an_archive_that_is_replaced(target: Path) -> None:
    assert load.replaced_while_read(target, 2, 3) >= 2 * load.TASKS


def test_nothing_is_left_of_openings(target: Path) -> None:
    tasks = load.put(target, 0, 6_000)
    handles, memory = load.openings(target, tasks, 150)
    assert handles <= 0
    assert memory < load.GROWTH
