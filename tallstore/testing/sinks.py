"""`SinkContract`: what writers rely on in every sink. Nothing shows before the commit; all of it does afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from tallstore.errors import OutputExistsError
from tallstore.format.manifest import MANIFEST
from tallstore.stores import Sink
from tallstore.testing.raised import refused

__all__ = ["SinkContract"]

OLD: Mapping[str, bytes] = {MANIFEST: b'{"old": 1}', "base/base.safetensors": b"old" * 100}
NEW: Mapping[str, bytes] = {
    "base/base.safetensors": bytes(range(256)) * 41,
    "tasks/b/mask.safetensors": b"new",
    "common/empty.txt": b"",
    MANIFEST: b'{"new": 2}',
}
"""In the order in which they are put: the manifest is the last."""


def _pieces(data: bytes) -> Iterator[memoryview]:
    """A file in pieces that are good until the next is asked for, and no longer."""
    room = bytearray(1000)
    for start in range(0, len(data), len(room)):
        piece = data[start : start + len(room)]
        room[: len(piece)] = piece
        yield memoryview(room)[: len(piece)]
        room[:] = bytes(len(room))


class SinkContract(ABC):
    """Inherit as `class TestX(SinkContract)`."""

    swaps: ClassVar[bool] = True
    """Whether an archive that is replaced stays until the commit. Else it is gone, and never mixed with the new one."""

    @abstractmethod
    def sink(self, folder: Path, *, overwrite: bool = False) -> Sink:
        """A sink whose target is the same one for the same folder. The folder is the test's own."""

    @abstractmethod
    def seen(self, folder: Path) -> dict[str, bytes] | None:
        """What a reader finds at that target: every file of the archive; None where there is none."""

    def _write(self, folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
        with self.sink(folder, overwrite=overwrite) as sink:
            for path, data in files.items():
                sink.put(path, _pieces(data), len(data))
            sink.commit()

    def test_all_shows_at_the_commit_and_nothing_before(self, tmp_path: Path) -> None:
        """Byte for byte, though pieces were reused."""
        with self.sink(tmp_path) as sink:
            assert str(sink.target)
            for path, data in NEW.items():
                sink.put(path, _pieces(data), len(data))
                assert self.seen(tmp_path) is None
            sink.commit()
        assert self.seen(tmp_path) == NEW

    def test_abort_leaves_nothing(self, tmp_path: Path) -> None:
        """Neither files nor folders."""
        sink = self.sink(tmp_path)
        sink.put("base/base.safetensors", [b"half"], 4)
        sink.abort()
        assert self.seen(tmp_path) is None
        assert list(tmp_path.iterdir()) == []

    def test_an_error_aborts(self, tmp_path: Path) -> None:
        """Of whoever makes the bytes."""

        def broken() -> Iterator[bytes]:
            yield b"some"
            raise KeyError("no more")

        def write() -> None:
            with self.sink(tmp_path) as sink:
                sink.put("base/base.safetensors", broken(), 100)

        refused(KeyError, write)
        assert self.seen(tmp_path) is None
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_replaced_only_when_that_is_asked(self, tmp_path: Path) -> None:
        """And refused before any work."""
        self._write(tmp_path, OLD)
        refused(OutputExistsError, lambda: self.sink(tmp_path))
        assert self.seen(tmp_path) == OLD
        self._write(tmp_path, NEW, overwrite=True)
        assert self.seen(tmp_path) == NEW

    def test_what_is_there_stays_if_its_successor_is_given_up(self, tmp_path: Path) -> None:
        """Whole, until the commit."""
        self._write(tmp_path, OLD)
        with self.sink(tmp_path, overwrite=True) as sink:
            sink.put("base/base.safetensors", [b"new"], 3)
            assert self.seen(tmp_path) == (OLD if self.swaps else None)
            sink.abort()
        assert self.seen(tmp_path) == (OLD if self.swaps else None)
