"""An archive's manifest and what it says, without torch: all that is needed to list an archive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tallstore.archive.ancestry import tree_of
from tallstore.archive.refetch import read_checked
from tallstore.archive.verified import MANIFEST_MOST, MANIFESTS
from tallstore.errors import ArchiveError, DamagedError, FormatError, NotAnArchiveError
from tallstore.format import limits
from tallstore.format.manifest import MANIFEST, Manifest, Task, is_intact, names_of
from tallstore.notes import adapter_note, cheaper_note, lossless_note
from tallstore.stores import Store

__all__ = ["PARTS", "notes_of", "read_manifest", "summary", "warnings_of"]

PARTS: Mapping[str, tuple[str, str]] = {
    "base": ("base", "the pre-trained weights, once"),
    "vector": ("shared vector", "what all tasks have in common"),
    "masks": ("task updates", "what each task changed: masks, levels, thin matrices"),
    "private": ("whole tensors", "heads and the like, exact"),
    "exact": ("exact copies", "what makes tasks bit for bit the original"),
    "files": ("files", "configurations, tokenizers, manifest"),
}
"""Parts of an archive: what people are told they are called, and what they are."""


def read_manifest(store: Store) -> Manifest:
    """Read and validate `tall.json`."""
    try:
        length = store.size(MANIFEST)
    except DamagedError as error:
        if isinstance(error.__cause__, OSError):
            raise NotAnArchiveError(f"{error}") from error
        raise NotAnArchiveError(f"{store.url}: no {MANIFEST} in it: not an archive, or one never finished") from error
    if length > limits.MANIFEST_BYTES:
        raise FormatError(f"{store.url}: {MANIFEST} of {length} bytes is over the cap of {limits.MANIFEST_BYTES}")
    data = b""

    def read() -> Manifest:
        nonlocal data
        data = _whole(store, MANIFEST)
        return _parsed(store, data)

    def is_damage(error: ArchiveError) -> bool:
        return isinstance(error, DamagedError | FormatError) and not is_intact(data)

    return read_checked(store, MANIFEST, read, is_damage)


def _parsed(store: Store, data: bytes) -> Manifest:
    parse = partial(Manifest.from_bytes, data, f"{store.url}: {MANIFEST}")
    return parse() if len(data) > MANIFEST_MOST else MANIFESTS.get(hashlib.sha256(data).digest(), parse)


def _whole(store: Store, path: str) -> bytes:
    return bytes(store.read(path, 0, store.size(path)))


def summary(store: Store, manifest: Manifest) -> dict[str, Any]:
    """What the archive holds and what it costs, as plain JSON values. Bytes are as on disk."""
    length = store.size(MANIFEST)
    checkpoints = sum(int(t.number("checkpoint_bytes") or 0) for t in manifest.tasks.values())
    return {
        "format": "tallstore",
        "version": manifest.version,
        "writer": manifest.writer,
        "base": {
            "storage": manifest.base.storage,
            "identity": manifest.base.identity,
            "source": dict(manifest.base.source),
            "tensors": len(manifest.base.tensors),
            "bytes": manifest.base.bytes,
        },
        "groups": [{"id": g.id, "tasks": list(g.tasks), "recipe": dict(g.recipe)} for g in manifest.groups],
        "tasks": {
            name: dict(task.measured)
            | {"group": task.group}
            | ({"adapter": task.adapter.type} if task.adapter is not None else {})
            | ({"relatives": task.relatives.to_json()} if task.relatives is not None else {})
            for name, task in manifest.tasks.items()
        },
        "bytes": manifest.bytes_by_kind(length),
        "bits_per_parameter": manifest.bits_per_parameter(length),
        "checkpoints_bytes": checkpoints + manifest.base.bytes,
        "notes": [note for name, task in manifest.tasks.items() for note in notes_of(name, task)],
        "warnings": list(warnings_of(manifest)),
        "options": dict(manifest.options),
        "family": tree_of(manifest),
    }


def warnings_of(manifest: Manifest) -> Iterator[str]:
    """What packers warned of tasks, each sentence once. Anybody may have written it: what is none says nothing."""
    tasks: dict[str, list[str]] = {}
    for name, task in manifest.tasks.items():
        warnings = task.measured.get("warnings")
        for warning in warnings if isinstance(warnings, list) else ():
            if isinstance(warning, str):
                tasks.setdefault(warning, []).append(name)
    for warning, names in tasks.items():
        yield f"{names_of(names)}: {warning}"


def notes_of(name: str, task: Task) -> Iterator[str]:
    """What there is to say of how a task is stored. What was measured is anybody's JSON: odd values say nothing."""
    if task.adapter is not None:
        yield adapter_note(name, task.adapter.type)
    tensors, plain, coded = (task.number("without_loss", key) for key in ("tensors", "bytes", "coded_bytes"))
    if tensors is not None and plain is not None and coded is not None:
        form = task.measured["without_loss"].get("form")
        yield lossless_note(name, tensors, plain, coded, form if isinstance(form, str) else None)
    tensors, of = (task.number("cheaper_without_loss", key) for key in ("tensors", "of"))
    if tensors is not None and of is not None:
        yield cheaper_note(name, tensors, of)
