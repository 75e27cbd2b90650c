"""Adapters of an archive as the models they make: their base's tensors, with what they change merged in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tallstore.adapters import AdapterConfig, merged_model
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Place, Reader
from tallstore.errors import OptionError
from tallstore.format import strict_json
from tallstore.format.adapter import CONFIG
from tallstore.format.manifest import Manifest, Task
from tallstore.format.part import Entry
from tallstore.kernels.tiled import Steps

__all__ = ["MergedDecoder", "adapter_files", "check_merged", "file_as_json", "merged_files"]


def adapter_files(task: Task) -> dict[str, str]:
    """The files of a task's own folder: of an adapter without those of its base. Name → path in the archive."""
    prefix = task.adapter.base_files if task.adapter is not None else ""
    return {name: path for name, path in task.files.items() if not prefix or not name.startswith(prefix)}


def merged_files(task: Task) -> dict[str, str]:
    """The files beside the weights of a task's model: of an adapter its base's, and its own in the place of these."""
    if task.adapter is None:
        return dict(task.files)
    prefix = task.adapter.base_files
    beside = {n.removeprefix(prefix): path for n, path in task.files.items() if prefix and n.startswith(prefix)}
    return beside | {name: path for name, path in adapter_files(task).items() if name != CONFIG}


class _MergedTask:
    """An adapter merged into the base: which tensors the model has, and what makes those that are not the base's."""

    def __init__(self, decoder: Decoder, reader: Reader, task: str) -> None:
        manifest = reader.manifest
        where = f"{reader.store.url}: task {task!r}"
        base, record = manifest.base.tensors, manifest.tasks[task]
        entries = {name: place.entry for name, place in decoder.task(task).items()}
        shown = {name: entries[str(entry.to)] if entry.kind == "tied" else entry for name, entry in entries.items()}
        model = merged_model(
            {name: (str(entry.dtype), entry.shape or ()) for name, entry in shown.items()},
            {name: (facts.dtype, facts.shape) for name, facts in base.items()},
            lambda name: decoder.tensors(task, [name])[name],
            lambda name: _base(decoder, name),
            config=_config(reader, manifest.tasks[task], where),
            config_of=partial(file_as_json, reader, manifest.tasks[task], where),
            ties=decoder.base_ties(),
            where=where,
            trainer=record.adapter.type if record.adapter is not None else None,
            metadata=record.weights[0].metadata if record.weights else {},
        )
        self.changes, self.sources = model.changes, model.sources
        entry_of = {
            name: Entry(kind="base", dtype=facts.dtype, shape=facts.shape, base=name) for name, facts in base.items()
        }
        entry_of |= {
            name: Entry(kind="private", dtype=each.dtype, shape=each.shape) for name, each in self.changes.items()
        }
        self.places = {name: Place("", entry_of[source], None) for name, source in self.sources.items()}

    def tensor(self, decoder: Decoder, name: str) -> Tensor:
        """A tensor of the model."""
        source = self.sources[name]
        change = self.changes.get(source)
        return _base(decoder, source) if change is None else change.make()


class MergedDecoder(Decoder):
    """A decoder to which adapters are the models that they make. All else is as another decoder, whose it is, has it.

    Merged tensors are made when they are asked for; what is the base's is read as any task's is.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.__dict__.update(decoder.__dict__)
        self._plain = decoder
        self._merged: dict[str, _MergedTask] = {}
        self._lock = threading.Lock()
        self.task = self._task

    def _task(self, task: str, part: str = "mask") -> Mapping[str, Place]:
        merged = self._adapter(task)
        return self._plain.task(task, part) if merged is None or part != "mask" else merged.places

    def _adapter(self, task: str) -> _MergedTask | None:
        if self._manifest.tasks[task].adapter is None:
            return None
        with self._lock:
            if task not in self._merged:
                self._merged[task] = _MergedTask(self._plain, self._reader, task)
            return self._merged[task]

    def tensors(self, task: str, names: Iterable[str], *, exact: bool = False) -> dict[str, Tensor]:
        merged = self._adapter(task)
        if merged is None:
            return self._plain.tensors(task, names, exact=exact)
        return {name: merged.tensor(self._plain, name) for name in names}

    def base_cannot_fail(self, task: str) -> bool:
        """Never of an adapter: its tensors are made whole, before any is written."""
        return self._adapter(task) is None and self._plain.base_cannot_fail(task)

    def prepare(self, task: str, names: Iterable[str]) -> dict[tuple[str, int], Steps]:
        return {} if self._adapter(task) else self._plain.prepare(task, names)

    def write(self, task: str, out: Mapping[str, Tensor], prepared: Mapping[tuple[str, int], Steps] = {}) -> None:
        if self._adapter(task) is None:
            self._plain.write(task, out, prepared)
            return
        with torch.no_grad():
            for name, flat in out.items():
                flat.copy_(self.tensors(task, [name])[name].reshape(-1))

    def check(self, task: str) -> None:
        merged = self._adapter(task)
        self._plain.check(task)
        for place in merged.places.values() if merged is not None else ():
            if place.entry.base is not None:
                self._plain.check_base(place.entry.base)


def _config(reader: Reader, task: Task, where: str) -> AdapterConfig | None:
    path = task.files.get(CONFIG)
    return None if path is None else AdapterConfig.parse(reader.file(path), f"{where}: {CONFIG}")


def file_as_json(reader: Reader, task: Task, where: str, name: str) -> Mapping[str, Any] | None:
    """A file of the base's; None if it has none of that name, or one that is no object."""
    path = merged_files(task).get(name)
    content = None if path is None else strict_json.loads(reader.file(path), f"{where}: {name}")
    return content if isinstance(content, dict) else None


def _base(decoder: Decoder, name: str) -> Tensor:
    decoder.check_base(name)
    return decoder.base_tensor(name)


def check_merged(manifest: Manifest, task: str, where: str) -> None:
    """Raise OptionError for a task that is no adapter."""
    if manifest.tasks[task].adapter is None:
        raise OptionError(f"{where}: task {task!r} is a model, not an adapter: leave merged out (--merged)")
