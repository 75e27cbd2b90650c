"""Files of the base model beside its weights, for adapters that are added to an archive: merged, they need them.

An archive holds no files of its base but those that came with its adapters.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from tallstore.archive.binding import shapes_of
from tallstore.archive.checkpoint import ArchiveBase
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint
from tallstore.format.manifest import Task
from tallstore.hub.card import README

__all__ = ["BaseWithFiles", "note_on"]


class BaseWithFiles(ArchiveBase):
    """An archive's base, with the files that belong to it as far as they are known. They are looked for when asked for.

    They are, in this order: those of the base that is given; those that came with an adapter; those of a fine-tune
    whose tensors have the base's names and shapes, so that its configuration describes the base's model too.
    """

    def __init__(self, reader: Reader, given: Checkpoint | None) -> None:
        super().__init__(reader)
        self._reader, self._given = reader, given
        self.like: str | None = None
        """The fine-tune whose files are taken, once they were asked for."""

    @cached_property
    def files(self) -> Mapping[str, Path]:  # type: ignore[override]  # set once, by being asked for
        if self._given is not None:
            return dict(self._given.files)
        tasks = self._reader.manifest.tasks
        for task in tasks.values():
            prefix = task.adapter.base_files if task.adapter is not None else ""
            if prefix and (own := {n.removeprefix(prefix): p for n, p in task.files.items() if n.startswith(prefix)}):
                return self._written(own)
        for name, task in tasks.items():
            own = {file: path for file, path in task.files.items() if file != README}
            if own and self._is_like(name, task):
                self.like = name
                return self._written(own)
        return {}

    def close(self) -> None:
        super().close()
        if self._given is not None:
            self._given.close()

    def _is_like(self, name: str, task: Task) -> bool:
        if task.adapter is not None:
            return False
        base = {each: info.shape for each, info in self.tensors.items()}
        return shapes_of(Decoder(self._reader, None, 1).task(name)) == base

    def _written(self, files: Mapping[str, str]) -> dict[str, Path]:
        folder = tempfile.TemporaryDirectory(prefix="tallstore-")
        weakref.finalize(self, folder.cleanup)
        for name, path in files.items():
            place = Path(folder.name) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self._reader.file(path))
        return {name: Path(folder.name) / name for name in files}


def note_on(base: Checkpoint, adapters: Mapping[str, Task]) -> list[str]:
    """What is said of the base's files that added adapters came by, or did without."""
    lacking = [name for name, task in adapters.items() if task.adapter is not None and not task.adapter.base_files]
    like = base.like if isinstance(base, BaseWithFiles) else None
    notes = []
    if lacking:
        notes.append(
            f"no configuration of the base is known, so that {', '.join(lacking)}, merged, will be weights alone: give "
            "the base's folder with base=… (--base) to take its files along"
        )
    elif adapters and like is not None:
        notes.append(
            f"the base's configuration is that of task {like!r}, whose tensors have the same names and shapes: give "
            "the base's folder with base=… (--base) to take its own files along"
        )
    return notes
