"""Parts put together from what workers left: the same bytes whether blocks are made ahead or not; and what goes wrong."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support import leftovers, read_all, tiny_zoo

import tallstore
from tallstore.encoder import parts, results
from tallstore.errors import OutputError


@pytest.mark.parametrize("block", [1, 100, 4096, 1 << 22])
def test_blocks_make_no_difference(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "plain.tall")
    monkeypatch.setattr(parts, "_BLOCK", block)
    tallstore.pack(base, tasks, tmp_path / "blocks.tall")
    assert (tmp_path / "blocks.tall").read_bytes() == (tmp_path / "plain.tall").read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tallstore-part")]


def test_damage_that_the_reading_thread_finds_ends_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coded byte that flips on the disk between a worker and its part."""
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "zoo")
    before = read_all(tmp_path / "zoo")
    end = results.ResultFile.end

    def flip(file: results.ResultFile, facts: list[object]) -> None:
        end(file, facts)
        data = bytearray(file._path.read_bytes())
        data[0] ^= 1
        file._path.write_bytes(data)

    monkeypatch.setattr(results.ResultFile, "end", flip)
    monkeypatch.setattr(parts, "_BLOCK", 64)
    with pytest.raises(OutputError, match="damaged on its disk"):
        tallstore.pack(base, tasks, tmp_path / "zoo", overwrite=True)
    assert read_all(tmp_path / "zoo") == before
    assert {name.split("/")[0] for name in leftovers(tmp_path)} == {"zoo"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tallstore-part")]
