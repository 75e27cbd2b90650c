from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a pool of threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of the fewest elements that the format allows, so that small tensors have several."""
    from tallstore.encoder import stream

    monkeypatch.setattr(stream, "_CHUNK", 1024)
    return 1024


@pytest.fixture(params=["zoo", "zoo.tall"], ids=["folder", "file"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where an archive goes: once as a folder, once as a single file."""
    return tmp_path / str(request.param)
