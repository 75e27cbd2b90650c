"""Several sets of weights in one checkpoint: trained and averaged, student and teacher. One of them is chosen.

They are told apart by the keys that hold them (`model`, `ema`), or by what their tensors' names begin with (`model.`,
`ema_model.`). A set by prefix counts as one only if another set has its tensors' names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.checkpoints.joined import JoinedCheckpoint
from tallstore.errors import CheckpointError

__all__ = ["ALL", "MAIN", "Twin", "choose_by_prefix", "is_copy", "named_set", "other_set", "twins"]

ALL = "all"
"""In place of a set's name: every one of them, each as a task of its own."""
MAIN = (
    "state_dict", "model", "model_state_dict", "module", "network_weights", "model_state", "network", "net",
    "params", "weights",
)  # fmt: skip
"""Keys that a trainer puts the weights under. The first that is there is taken where no other is asked for."""
_COPY = re.compile(r"(.*_)?(ema|averaged|swa|teacher|student|momentum)(_.*)?", re.IGNORECASE)
"""What a second set's prefix looks like."""
_ENOUGH = 0.9
"""Share of a set's tensors that its twin must have."""


@dataclass(frozen=True)
class Twin:
    """A set of weights beside the main one, in the same state dict."""

    name: str
    """Its prefix, without the dot."""
    of: Mapping[str, str]
    """Its tensors → those of the main set that they are in the place of."""
    alone: tuple[str, ...]
    """Its tensors that the main set has not: counters."""


def is_copy(name: str) -> bool:
    """Whether a key or a prefix says that what is below it is another set's copy."""
    return _COPY.fullmatch(name) is not None


def named_set(names: Iterable[str], asked: str, where: str) -> str:
    """The set that a user asks for: by its whole name, or the only one with that word in its path."""
    there = list(names)
    matching = [name for name in there if name == asked] or [name for name in there if asked in name.split(".")]
    if len(matching) != 1:
        listed = ", ".join(name or "the whole file" for name in there)
        raise CheckpointError(
            f"{where}: holds no set of weights {asked!r}; there {'is' if len(there) == 1 else 'are'} {listed}"
        )
    return matching[0]


def twins(tensors: Mapping[str, TensorInfo]) -> list[Twin]:
    """Sets whose prefix looks like a copy's, and which another set of the same checkpoint has a counterpart of."""
    by_prefix: dict[str, list[str]] = {}
    for name in tensors:
        by_prefix.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
    copies = [prefix for prefix in by_prefix if prefix and _COPY.fullmatch(prefix)]
    if not copies:
        return []
    others = [prefix for prefix in by_prefix if prefix not in copies]
    pairs = []
    for copy in copies:
        # Those without a prefix, or with the wrapper's that the names inside keep, come after those with one.
        mains = [f"{prefix}." for prefix in others if prefix] + [""]
        mains += [f"{prefix}." for prefix in copies if prefix != copy]
        best = max((_counterparts(copy, by_prefix[copy], main, tensors) for main in mains), key=len)
        if len(best) >= _ENOUGH * len(by_prefix[copy]) or (best and len(by_prefix[copy]) - len(best) <= 2):
            pairs.append(Twin(copy, best, tuple(name for name in by_prefix[copy] if name not in best)))
    return pairs


def _counterparts(copy: str, names: Sequence[str], main: str, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Tensors of a copy → those with the same rest of their names. Some averagers write names without dots."""
    undotted = {
        name.removeprefix(main).replace(".", ""): name
        for name in tensors
        if name.startswith(main) and not name.startswith(f"{copy}.")
    }
    counterparts = {}
    for name in names:
        rest = name.removeprefix(f"{copy}.")
        other = f"{main}{rest}" if f"{main}{rest}" in tensors else undotted.get(rest)
        if other is not None and other != name and tensors[other].shape == tensors[name].shape:
            counterparts[name] = other
    return counterparts


def choose_by_prefix(checkpoint: Checkpoint, asked: str | None) -> Checkpoint:
    """The checkpoint with one of its sets, under the main set's names; and what it says of the others.

    Raises:
        CheckpointError: there are several, none of which is the main one, and none was asked for.
    """
    copied = twins(checkpoint.tensors)
    if not copied:
        return checkpoint
    by_name = {twin.name: twin for twin in copied}
    copies = {name for twin in copied for name in (*twin.of, *twin.alone)}
    mutual = [twin.name for twin in copied if any(other in copies for other in twin.of.values())]
    if asked in (None, ALL) and mutual:
        raise CheckpointError(
            f"{checkpoint.where}: holds the weights {len(mutual)} times, as {' and '.join(mutual)}: "
            f"say which with weights={mutual[0]!r} (--weights {mutual[0]})"
        )
    chosen = by_name.get(asked or "")
    replaced = {} if chosen is None or chosen.name in mutual else {main: own for own, main in chosen.of.items()}
    own = set() if chosen is None or chosen.name not in mutual else {*chosen.of, *chosen.alone}
    table = {name: (0, replaced.get(name, name)) for name in checkpoint.tensors if name not in copies or name in own}
    joined = JoinedCheckpoint(checkpoint.where, [checkpoint], table)
    joined.files, joined.layout = checkpoint.files, checkpoint.layout
    main = sorted({other.partition(".")[0] for twin in copied for other in twin.of.values() if twin.name not in mutual})
    unused = [name for name in (*by_name, *(main if chosen is not None else ())) if name != asked]
    joined.sets = (*checkpoint.sets, *unused)
    joined.chosen = chosen is not None or (asked in main and asked is not None)
    joined.left_out = {**checkpoint.left_out, **_told(unused, checkpoint.where)}
    return joined


def _told(names: Iterable[str], where: str) -> dict[str, str]:
    return {f"{where.rsplit('/', 1)[-1]}: {name}": other_set(name) for name in names}


def other_set(name: str) -> str:
    """What is said of a set that was not chosen."""
    return f"another set of weights; weights={name!r} (--weights {name}) takes it, {ALL!r} takes both"
