"""The two sides of a store: `Store` gives byte ranges, `Sink` takes whole files and makes them visible at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tallstore.errors import OutputError
from tallstore.format.manifest import PartRecord

_PIECE = 1 << 22


class Range(NamedTuple):
    """Bytes [start, start + length) of a file of an archive."""

    path: str
    start: int
    length: int


class Store(ABC):
    """An archive's files, read by range. Safe to use from several threads."""

    url: str
    """How messages name it."""
    open_ended: bool = True
    """Whether files that are no part of the archive may lie beside it."""
    far: bool = False
    """Whether it pays to say ahead what will be read: see `prefetch`."""
    ranged: bool = False
    """Whether bytes come from far away as they are read; else files lie on this machine, whole, before they are."""

    @property
    def derived_cache(self) -> Path | None:
        """A folder for data derived from this archive, deleted with the cached repository; None if unsupported."""
        return None

    @abstractmethod
    def paths(self) -> list[str]:
        """Every file, in no particular order."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file. Raises DamagedError if it is not there."""

    @abstractmethod
    def read(self, path: str, start: int, length: int) -> memoryview:
        """Exactly `length` bytes from `start`. Raises DamagedError if the file ends before."""

    def local(self, path: str) -> Path | None:  # noqa: ARG002 - most stores have none
        """Where a file lies on this machine as a file of its own; None where it does not."""
        return None

    def state(self, path: str) -> Hashable:  # noqa: ARG002 - most stores cannot say
        """What changes when a file's bytes do, as far as the system tells; None where nobody can say."""
        return None

    def expect(self, records: Mapping[str, PartRecord]) -> None:
        """Be told sizes and hashes of the files. A store that fetches files holds them to it; others need not."""

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Be told which ranges will be read soon, about in that order. Costs nothing where nothing is far away."""

    def refetch(self, path: str) -> bool:  # noqa: ARG002 - files of this machine cannot be fetched again
        """Fetch a damaged file again, once. False where that cannot help."""
        return False

    def read_into(self, path: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on. Raises DamagedError if the file ends before."""
        out[:] = self.read(path, start, len(out))

    def handle(self, path: str, start: int, length: int) -> tuple[int, int] | None:  # noqa: ARG002 - most have none
        """The descriptor of an open file of this machine that holds some bytes, and where in it they begin.

        For native readers, which run without the GIL; None where there is no such file. Raises as `read_into`.
        """
        return None

    def close(self) -> None:
        """Release files and mappings. Memory that `read` returned stays valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sink(ABC):
    """An archive being written. Nothing shows under its final name before `commit`; `abort` leaves nothing behind."""

    target: Path | str
    """Where the archive will be, an address where that is far away; how messages name it."""

    work: Path
    """A folder for what is made before it is put together. Gone after commit; after abort, unless it can be resumed."""

    @abstractmethod
    def put(self, path: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
        """Write one file of the archive; `pieces` add up to `size` bytes, and are good until the next is asked for."""

    def adopt(self, path: str, store: Store, source: str) -> None:
        """Take over a file of another archive, byte for byte. Where both lie in one file system nothing is copied."""
        size = store.size(source)
        self.put(path, pieces(store, source, size), size)

    def scratch(self, name: str) -> Path:  # noqa: ARG002 - most sinks have none
        """A place for a file or folder of the caller's own, on the target's disk; gone after commit or abort."""
        raise OutputError(f"{self.target}: can only be changed where it is a folder or file on this machine")

    @abstractmethod
    def commit(self) -> None:
        """Make the archive visible under its final name, whole, in one step."""

    @abstractmethod
    def abort(self) -> None:
        """Remove everything that was written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()


def pieces(store: Store, path: str, size: int) -> Iterator[memoryview]:
    """A file's bytes, in order."""
    for start in range(0, size, _PIECE):
        yield store.read(path, start, min(_PIECE, size - start))
