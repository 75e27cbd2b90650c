"""Parts put together from what workers left: the same bytes whether blocks are made ahead or not; and what goes wrong."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from support import leftovers, near, noise, read_all, tiny_zoo

import tallstore
from tallstore.encoder import driver, part_writer, result_files
from tallstore.encoder.result_files import Taker
from tallstore.errors import OutputError
from tallstore.stores.staging import give_back


@pytest.mark.parametrize("block", [1, 100, 4096, 1 << 22])
def test_blocks_make_no_difference(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "plain.tall")
    monkeypatch.setattr(part_writer, "IO_BLOCK", block)
    tallstore.pack(base, tasks, tmp_path / "blocks.tall")
    assert (tmp_path / "blocks.tall").read_bytes() == (tmp_path / "plain.tall").read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tallstore-part")]


def test_damage_that_the_reading_thread_finds_ends_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coded byte that flips on the disk between a worker and its part."""
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "zoo")
    before = read_all(tmp_path / "zoo")
    end = result_files.ResultFile.end

    def flip(file: result_files.ResultFile, facts: list[object]) -> None:
        end(file, facts)
        data = bytearray(file._path.read_bytes())
        data[0] ^= 1
        file._path.write_bytes(data)

    monkeypatch.setattr(result_files.ResultFile, "end", flip)
    monkeypatch.setattr(part_writer, "IO_BLOCK", 64)
    with pytest.raises(OutputError, match="damaged on its disk"):
        tallstore.pack(base, tasks, tmp_path / "zoo", overwrite=True)
    assert read_all(tmp_path / "zoo") == before
    assert {name.split("/")[0] for name in leftovers(tmp_path)} == {"zoo"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tallstore-part")]


def _span(path: Path, before: bytes, own: bytes, after: bytes) -> result_files.Span:
    path.write_bytes(before + own + after)
    return result_files.Span(path, len(before), len(own), xxhash.xxh3_64_hexdigest(own))


@pytest.mark.parametrize("length", [0, 5, 4096, 1 << 18])
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_taken_is_what_lay_there_and_nothing_beside_it_changes(length: int, keep: bool, tmp_path: Path) -> None:
    own, before, after = (np.random.default_rng(n).bytes(n) for n in (length, 4099, 5001))
    span = _span(tmp_path / "result", before, own, after)
    out = bytearray(length)
    with Taker(keep=keep) as taker:
        taker.take(span, memoryview(out))
    assert out == own
    left = (tmp_path / "result").read_bytes()
    assert left[:4099] == before
    assert left[4099 + length :] == after
    if keep or length < 1 << 16:
        assert left[4099 : 4099 + length] == own


def test_room_is_given_back_once_bytes_are_taken(tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(bytes(1 << 18))
    with (tmp_path / "some").open("r+b") as some:
        if not give_back(some.fileno(), 0, 1 << 18):
            pytest.skip("this file system gives nothing back")
    span = _span(tmp_path / "result", b"", np.random.default_rng(0).bytes(1 << 20), b"")
    with span.path.open("rb") as file:  # that it has its room on the disk, not in memory alone
        os.fsync(file.fileno())
    taken = span.path.stat().st_blocks
    with Taker(keep=False) as taker:
        taker.take(span, memoryview(bytearray(1 << 20)))
        assert span.path.stat().st_blocks < taken / 2
        with pytest.raises(OutputError, match="damaged on its disk"):
            taker.take(span, memoryview(bytearray(1 << 20)))


def test_many_files_are_taken_from_and_few_are_open(tmp_path: Path) -> None:
    spans = [_span(tmp_path / f"{n}", b"a", bytes([n]) * 9, b"b") for n in range(result_files.MOST_OPEN + 9)]
    with Taker(keep=True) as taker:
        for span in (*spans, *spans[::-1]):
            out = bytearray(9)
            taker.take(span, memoryview(out))
            assert out == bytes([int(span.path.name)]) * 9
            assert len(taker._open) <= result_files.MOST_OPEN
    assert all(file.closed for file in taker._open.values())


@pytest.mark.parametrize("block", [100, 1 << 22])
def test_few_files_are_open_however_many_parts_and_results_there_are(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    most = 0
    real = Taker.open_file

    def counted(taker: Taker, path: Path) -> Any:
        nonlocal most
        opened.append(real(taker, path))
        most = max(most, sum(not file.closed for file in opened))
        return opened[-1]

    monkeypatch.setattr(Taker, "open_file", counted)
    monkeypatch.setattr(result_files, "MOST_OPEN", 3)
    monkeypatch.setattr(driver, "CHUNK_ELEMENTS", 1 << 16)
    monkeypatch.setattr(part_writer, "IO_BLOCK", block)
    base = {f"w{n}": noise(300, 400, seed=n) for n in range(8)}
    tasks = {f"t{k}": {name: near(tensor, k) for name, tensor in base.items()} for k in range(6)}
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    assert len(opened) > 30
    assert most <= 3
    assert all(file.closed for file in opened)


@pytest.mark.parametrize("resume", [True, False])
def test_results_stay_for_a_run_that_may_be_taken_up(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    take = Taker.take

    def noted(taker: Taker, span: result_files.Span, out: memoryview) -> None:
        kept.append(taker._keep)
        take(taker, span, out)

    monkeypatch.setattr(Taker, "take", noted)
    tallstore.pack(*tiny_zoo(2), tmp_path / "zoo.tall", resume=resume)
    assert set(kept) == {resume}


def test_a_block_longer_than_its_room_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tallstore.pack(*tiny_zoo(2), tmp_path / "plain.tall")
    monkeypatch.setattr(part_writer, "LARGEST_BLOCK", 50)
    tallstore.pack(*tiny_zoo(2), tmp_path / "narrow.tall")
    assert (tmp_path / "narrow.tall").read_bytes() == (tmp_path / "plain.tall").read_bytes()
