"""An archive as one worker of an engine holds it: its base once, in memory, and any task's weights from it.

Knows no engine. What an engine is given of a task are whole layers: those in which the two tasks, the one that it has
and the one that it is to have, do not both have the base's tensors. An engine may fuse the tensors of one layer into
one of its own (`q_proj`, `k_proj` and `v_proj`, say, or experts), and then needs all of them at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from tallstore.archive import Archive, TensorFacts
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.engines.digests import hash_of
from tallstore.engines.lazy_tensor import LazyWeight
from tallstore.errors import CheckpointError, ModelMismatchError, NoSuchTaskError, OptionError
from tallstore.format.dtypes import size_of
from tallstore.format.manifest import names_of
from tallstore.hub.resolve import open_named
from tallstore.stores import Access

__all__ = ["ArchiveSource", "Catalogue", "Loaded", "layer_of"]

_LAYER = re.compile(r"(?:^|.*?\.)\d+(?:\.[^.]+)?(?=\.)")
"""Up to the first number in a name, and one name more: `model.layers.3.self_attn`."""
_FREE = frozenset(
    {"name_or_path", "transformers_version", "torch_dtype", "dtype", "finetuning_task", "id2label", "label2id",
     "use_cache", "problem_type", "transformers_weights"}
)  # fmt: skip
"""What two configurations may differ in and be of one engine's model; and names that begin with "_", which are notes of
the library that wrote them."""
_TOGETHER = 1 << 23
"""Bytes that are decoded by one call."""
_KNOWN = 4
"""Tasks whose tensors are remembered."""
_TOKENS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
"""Files that say what a token's number means."""


@dataclass(frozen=True, kw_only=True)
class ArchiveSource:
    """Which archive, and how it is opened."""

    archive: str
    """A path, an address, or a repository's id."""
    base: str | None = None
    """Where the base is, if the archive only references it."""
    exact: bool = False
    """Bit for bit the original, for tasks that were packed so."""
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            kind: Any = bool if name in {"exact", "local_files_only"} else str if name == "archive" else str | None
            if not isinstance(value, kind):
                raise OptionError(f"{name} {value!r} makes no sense as an option of tallstore's loader")

    @classmethod
    def parse(cls, given: Mapping[str, Any], archive: str) -> tuple[ArchiveSource, str]:
        """The source and the task of an engine's options; `archive` is where it is if they do not say it."""
        rest = dict(given)
        task = rest.pop("task", None)
        if not isinstance(task, str):
            raise OptionError(f'which task? The loader\'s options are to say it: {{"task": "…"}}; they say {given}')
        unknown = sorted(set(rest) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(["task", *cls.__dataclass_fields__])
            raise OptionError(f"the loader has no option {unknown[0]!r}; it has {known}")
        return cls(**{"archive": archive, **rest}), task

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON values; `parse` reads it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}

    def open(self, base: MemoryCheckpoint | None = None) -> Archive:
        """The archive; with its base in memory if that is given."""
        access = Access(cache_dir=self.cache_dir, local_files_only=self.local_files_only)
        return open_named(self.archive, access, revision=self.revision, base=base or self.base)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a model was made of."""

    catalogue: Catalogue
    task: str
    applied: Mapping[str, str]
    """The hash of each tensor that it was given, or of the parts of it that it took."""


class _ResidentBase(MemoryCheckpoint):
    """A base that was checked when it was read, and that nobody else can write to."""

    resident = True

    def matches(self, data: Tensor, sha256: str) -> bool:  # noqa: ARG002 - checked already
        return True


class Catalogue:
    """An open archive for one worker."""

    def __init__(self, source: ArchiveSource, *, resident: bool = False) -> None:
        """`resident`: decode the base now and keep it in memory: later tasks then cost no more than their own part."""
        self.source = source
        self._facts: dict[str, Mapping[str, TensorFacts]] = {}
        self._zoo = source.open()
        if resident:
            names = self._zoo.manifest.base.tensors
            base = _ResidentBase(self._zoo.base_state(list(names)), f"the base of {self._zoo.url}, in memory")
            self._zoo.close()
            self._zoo = source.open(base)

    @property
    def url(self) -> str:
        """Where the archive is."""
        return self._zoo.url

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it holds."""
        return self._zoo.tasks

    def check(self, task: str) -> None:
        """Raise for a task that is not there or cannot be an engine's model."""
        if task not in self.tasks:
            raise NoSuchTaskError(f"{self.url}: no task {task!r}; there are {names_of(self.tasks)}")
        if self._zoo.manifest.tasks[task].adapter is None and len(self._zoo.components(task)) > 1:
            raise CheckpointError(
                f"{self.url}: task {task!r}: its weights lie in several components: no engine's model"
            )

    def write_files(self, task: str, folder: Path) -> tuple[str, ...]:
        """Write a task's small files: configuration, tokenizer and so on; their names."""
        self.check(task)
        return self._zoo.write_files(task, folder, merged=True)

    def tensors(self, task: str) -> Mapping[str, TensorFacts]:
        """Of the task's model."""
        self.check(task)
        facts = self._facts.get(task)
        if facts is None:
            while len(self._facts) >= _KNOWN:
                del self._facts[next(iter(self._facts))]
            facts = self._facts[task] = self._zoo.model_tensors(task)
        return facts

    def announce(self, task: str) -> None:
        """Have what a task takes beside the base read ahead: it will be asked for soon."""
        self._zoo.announce(task)

    def check_exchange(self, old: str, new: str) -> None:
        """Raise ModelMismatchError unless an engine that serves one task can serve the other in its place."""
        before, after = self.tensors(old), self.tensors(new)
        for name in {**before, **after}:
            a, b = before.get(name), after.get(name)
            if a is None or b is None:
                raise self._mismatch(old, new, f"only {old if b is None else new!r} has {name!r}")
            if a.shape != b.shape:
                raise self._mismatch(old, new, f"{name!r} is {list(a.shape)} there and {list(b.shape)} here")
        self.check_config(new, self.config(old), f"task {old!r}")
        for name in _TOKENS:
            if not self._zoo.same_file(old, new, name):
                raise self._mismatch(old, new, f"they have different tokenizers ({name})")

    def check_config(self, task: str, config: Mapping[str, Any], whose: str) -> None:
        """Raise ModelMismatchError unless a task's configuration is that of an engine's model, in all that matters."""
        own = self.config(task)
        for key in sorted({**own, **config}):
            if key not in _FREE and not key.startswith("_") and own.get(key) != config.get(key):
                raise ModelMismatchError(
                    f"{self.url}: task {task!r} is another model than {whose}: its config.json says {key}: "
                    f"{own.get(key)!r}, expected {config.get(key)!r}; start an engine of its own for it"
                )

    def config(self, task: str) -> dict[str, Any]:
        """A task's `config.json`."""
        data = self._zoo.small_file(task, "config.json")
        try:
            described = None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            described = None
        if not isinstance(described, dict):
            raise CheckpointError(f"{self.url}: task {task!r}: holds no config.json: no engine can load it")
        return described

    def differing(self, old: str | None, new: str) -> list[str]:
        """Names of the tensors to give an engine that has the old task: all tensors of each layer that differs."""
        after = self.tensors(new)
        if old is None:
            return list(after)
        before = self.tensors(old)
        layers = {layer_of(name) for name in after if old != new and not _same(before[name], after[name])}
        return [name for name in after if layer_of(name) in layers]

    def weights(self, task: str, names: Sequence[str], applied: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by name, decoded a few layers at a time; no more are in memory.

        `applied` is given the hash of each, by name.
        """
        merged = self._zoo.manifest.tasks[task].adapter is not None
        for group in self._groups(task, names):
            state = self._zoo.state_dict(task, names=group, exact=self.source.exact and not merged, merged=merged)
            for name in list(state):
                tensor = state.pop(name)
                applied[name] = hash_of(tensor)
                yield name, tensor

    def fill(self, task: str, out: Mapping[str, Tensor], *, threads: int | None = None) -> None:
        """Decode tensors of a task into memory that is given: contiguous CPU tensors of their shapes and types."""
        merged = self._zoo.manifest.tasks[task].adapter is not None
        if merged or self.source.exact:
            state = self._zoo.state_dict(task, names=list(out), exact=self.source.exact and not merged, merged=merged)
            for name, tensor in out.items():
                tensor.copy_(state[name])
            return
        self._zoo.decode_into(task, out, threads=threads)

    def _groups(self, task: str, names: Sequence[str]) -> Iterator[list[str]]:
        """Names that are decoded together: enough for all threads, and not much memory."""
        facts = self.tensors(task)
        group: list[str] = []
        for _, layer in groupby(names, layer_of):
            group += layer
            if sum(size_of(facts[name].dtype, facts[name].shape) for name in group) >= _TOGETHER:
                yield group
                group = []
        if group:
            yield group

    def lazy_weights(self, task: str, names: Sequence[str], applied: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors that are decoded when an engine takes them, and of which no more is read than it takes.

        `applied` is given the hash of each part that is read, by name and ranges.
        """
        if self._zoo.manifest.tasks[task].adapter is not None:
            yield from self.weights(task, names, applied)  # merged whole
            return
        source = self._zoo.weights(task, exact=self.source.exact)
        for name in names:
            yield name, LazyWeight.of(source.get_slice(name), partial(_note, applied, name))

    def close(self) -> None:
        """Release the files."""
        self._zoo.close()

    def _mismatch(self, old: str, new: str, what: str) -> ModelMismatchError:
        return ModelMismatchError(
            f"{self.url}: task {new!r} cannot take the place of {old!r}: {what}; start an engine of its own for it"
        )


def _note(applied: dict[str, str], name: str, ranges: object, tensor: Tensor) -> None:
    applied[f"{name} {ranges}"] = hash_of(tensor)


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, so that no engine fuses tensors of two."""
    layer = _LAYER.match(name)
    return layer[0] if layer is not None else name.rpartition(".")[0]


def _same(one: TensorFacts, other: TensorFacts) -> bool:
    """Whether two tasks have one and the same tensor of the base."""
    return one.kind == other.kind == "base" and (one.base, one.dtype, one.shape) == (
        other.base,
        other.dtype,
        other.shape,
    )
