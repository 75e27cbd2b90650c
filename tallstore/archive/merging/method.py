"""Which merging method works on what an archive holds, and how true to the original checkpoints that is.

Recipe `tall` stores Στ as v, `mean` stores Στ / T, `ties` what TIES merging makes: for these, and all tasks of the
archive together, the plain merge is v itself. Otherwise the task vectors that the archive decodes to stand in for
the true ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallstore.archive.merging.tiles import Stored
from tallstore.format.manifest import Manifest
from tallstore.merging import Method, make_method
from tallstore.merging.consensus import Consensus
from tallstore.merging.ties import TiesMerge

__all__ = ["Chosen", "choose"]

_ALIASES = {"task_arithmetic": "arithmetic"}
_STORED: Mapping[str, Stored] = {"tall": "sum", "mean": "mean", "ties": "ties"}
_K = 2
_EXACT = frozenset({"f32"})


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A method, at α = 1, and what is known of it."""

    id: str
    k: int | None
    method: Method
    stored: Stored | None
    """What v is, if the method takes it for the sum or the TIES merge."""
    approximate: str | None
    """Why the result is not what the original checkpoints would give; None if it is."""


def choose(
    manifest: Manifest,
    tasks: Sequence[str],
    vector_codecs: Iterable[str],
    name: str,
    options: Mapping[str, Any],
) -> Chosen:
    """The method by its name and options. OptionError if there is none such."""
    id_ = _ALIASES.get(name, name)
    stored = _stored(manifest, tasks)
    given = {"k": _K, **options} if id_ == Consensus.id else dict(options)
    if id_ == TiesMerge.id and stored == "ties" and not given:
        method = make_method("arithmetic", source="vector")
    elif id_ in {"arithmetic", Consensus.id} and "source" not in given:
        sums = stored is not None and (stored != "ties" or id_ == Consensus.id)
        method = make_method(id_, **given, source="vector" if sums else "tasks")
    else:
        method = make_method(id_, **given)
    lossy = sorted(set(vector_codecs) - _EXACT)
    why = None
    if method.approximate and _as_they_were(manifest, tasks):
        pass
    elif method.approximate:
        how = "trimmed and elected on" if id_ == TiesMerge.id or given.get("source") == "ties" else "the sum of"
        why = f"{how} the task vectors that the archive decodes to: the true ones are not in it"
    elif stored is None:
        why = "v is taken for the sum of the task vectors, and was not stored as that"
    elif lossy:
        why = f"the stored vector is rounded (codec {', '.join(lossy)})"
    return Chosen(id=id_, k=given.get("k"), method=method, stored=stored, approximate=why)


def _as_they_were(manifest: Manifest, tasks: Sequence[str]) -> bool:
    """Whether the task vectors that the archive decodes to are the true ones."""
    return manifest.base.storage != "bf16" and all(manifest.tasks[task].bit_for_bit for task in tasks)


def _stored(manifest: Manifest, tasks: Sequence[str]) -> Stored | None:
    """What v is of exactly these tasks' vectors."""
    made_for = {name for name, task in manifest.tasks.items() if task.relatives is None}
    if len(manifest.groups) != 1 or set(tasks) != made_for:
        return None
    return _STORED.get(str(manifest.groups[0].recipe.get("id")))
