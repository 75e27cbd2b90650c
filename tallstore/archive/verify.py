"""Check an archive: every byte against every hash, every reference against its target, every code for sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tallstore.archive.consistency import BaseReader, Checker
from tallstore.archive.reader import Reader
from tallstore.archive.refetch import retry_after_refetch
from tallstore.errors import DamagedError, FormatError
from tallstore.format.manifest import MANIFEST

__all__ = ["Against", "VerifyReport", "verify_archive"]

_UNLISTED = ("README.md", "models/", ".gitattributes", ".git/", ".cache/")
"""What may lie in an archive's folder beside what the manifest lists: what a push adds, and the Hub client's own."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """One task compared with its original."""

    relative_error: float | None
    """‖θ̂ − θ‖ / ‖θ − θ0‖ over the tensors that have a base; None if the original did not move."""
    cosine: float | None
    """⟨τ̂, τ⟩ / (‖τ̂‖·‖τ‖) over the same; None if either did not move."""
    exact: bool
    """Whether every tensor is the original's to the last bit."""
    whole_tensors_exact: bool
    """Whether the tensors that are stored whole are."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked. Anything wrong is raised, not reported."""

    files: int
    bytes: int
    tasks: tuple[str, ...]
    unlisted: tuple[str, ...] = ()
    """Files in the folder that the manifest does not list: no part of the archive."""
    against: Mapping[str, Against] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def verify_archive(
    reader: Reader, given: BaseReader | None = None, *, progress: Callable[[str, int, int], None] | None = None
) -> VerifyReport:
    """Check hashes of all files, then the sense of every entry and every chunk.

    Loads no torch, but for a tensor that is coded without loss against a base's of another type that holds a NaN.

    Args:
        reader: of the archive.
        given: the base, where it is not the archive's own. Without it, a base that is only referenced is not missed.
        progress: called with a text, bytes done, bytes in all.

    Raises:
        ArchiveError: the first thing found wrong, by part and tensor.
    """
    manifest = reader.manifest
    total = sum(record.size for record in manifest.parts.values())
    done = 0
    for path, record in manifest.parts.items():
        if (size := reader.store.size(path)) != record.size:
            raise DamagedError(
                f"{reader.where(path)}: {size} bytes, and the manifest says {record.size}: fetch it again"
            )
        retry_after_refetch(_check_whole, reader, path, done, total, progress)
        done += record.size
        if record.header_size is not None:
            reader.check_padding(path)
    checker = Checker(reader, given)
    for group in manifest.groups:
        checker.vector(group.id)
    for task in manifest.tasks:
        checker.entries(task)
        checker.codes(task)
    unlisted = tuple(
        path
        for path in reader.store.paths()
        if path != MANIFEST and path not in manifest.parts and not path.startswith(_UNLISTED)
    )
    if unlisted and not reader.store.open_ended:
        raise FormatError(f"{reader.store.url}: holds {unlisted[0]!r}, which the manifest does not list")
    if manifest.base.storage == "embed":
        checker.base()
    return VerifyReport(files=len(manifest.parts) + 1, bytes=total, tasks=tuple(manifest.tasks), unlisted=unlisted)


def _check_whole(
    reader: Reader, path: str, done: int, total: int, progress: Callable[[str, int, int], None] | None
) -> None:
    for piece in reader.whole(path):
        done += len(piece)
        if progress is not None:
            progress(path, done, total)
