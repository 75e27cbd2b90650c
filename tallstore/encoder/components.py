"""Matching component by component: the unet of a task with the unet of its base, each by names of its own.

A model of one component has no prefix; where base and task have other components, those that have the same tensors
belong together, so that a base may be a pipeline, and a task its unet alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from tallstore.checkpoints import Checkpoint
from tallstore.checkpoints.joined import JoinedCheckpoint
from tallstore.encoder.match import Match, check_distance, match
from tallstore.errors import CheckpointError, WrongBaseError

__all__ = ["matched"]

_LARGE = 0.5
"""Share of a task's parameters from which on a component must be the base's; a smaller one may be a new head."""
_LARGE_IN_PIPELINE = 0.02
"""The same where a list of components says that none is a head: parts of pipelines are made for each other."""


def matched(base: Checkpoint, task: Checkpoint, ties: Mapping[str, str], *, allow_distant: bool) -> dict[str, Match]:
    """Tensors of a task that have a counterpart in the base, by the task's name.

    `ties`: those of the task that are the same as an earlier one.

    Raises:
        WrongBaseError: a component has no counterpart, or is too far from it; names it, the tensors and the folders.
        CheckpointError: tensors are empty that are not so in the base: a half-saved checkpoint.
    """
    _check_whole(base, task)
    there, own = _components(base, task), _components(task, base)
    if set(there) == {""} and set(own) == {""}:
        return _one(base, task, ties, allow_distant=allow_distant)
    pairs = _pairs(base, there, task, own)
    if not pairs:
        return _one(base, task, ties, allow_distant=allow_distant)
    share = _LARGE_IN_PIPELINE if "model_index.json" in task.files else _LARGE
    most = share * sum(info.numel for info in task.tensors.values())
    matches: dict[str, Match] = {}
    for prefix, names in sorted(own.items(), key=lambda item: item[0] not in pairs):
        other = pairs.get(prefix)
        size = sum(task.tensors[name].numel for name in names)
        part = _part(task, prefix, names)
        if other is None and not allow_distant and (rest := _among_others(base, matches, part)):
            matches |= {f"{prefix}{name}": each for name, each in rest.items()}
            continue
        if other is None:
            if size > most and not allow_distant:
                listed = ", ".join(f"{each!r}" for each in there)
                raise WrongBaseError(
                    f"{task.where}: component {prefix!r} (tensor {names[0]!r}) is none of the base {base.where}, which "
                    f"has {listed}: give the base that has it, or allow_distant=True (--allow-distant) to keep it whole"
                )
            continue
        whole = _part(base, other, there[other])
        try:
            own_matches = _one(whole, part, _within(ties, prefix, names), allow_distant=allow_distant)
        except WrongBaseError:
            if size > most:
                raise
            continue
        matches |= {f"{prefix}{name}": Match(f"{other}{m.base}", m.rows) for name, m in own_matches.items()}
    return matches


def _one(base: Checkpoint, task: Checkpoint, ties: Mapping[str, str], *, allow_distant: bool) -> dict[str, Match]:
    matches = match(base, task, ties)
    if not allow_distant:
        check_distance(base, task, {name: each for name, each in matches.items() if name not in ties})
    return matches


def _among_others(base: Checkpoint, matches: Mapping[str, Match], part: Checkpoint) -> dict[str, Match]:
    """Counterparts of a component among tensors of the base that have none yet: in memory, modules have no folders."""
    used = {match.base for match in matches.values()}
    rest = [name for name in base.tensors if name not in used]
    try:
        return _one(_part(base, "", rest), part, {}, allow_distant=False) if rest else {}
    except WrongBaseError:
        return {}


def _within(ties: Mapping[str, str], prefix: str, names: Collection[str]) -> dict[str, str]:
    """The ties among tensors of one component, by its own names."""
    own = set(names)
    pairs = ((name, first) for name, first in ties.items() if name in own and first in own)
    return {name.removeprefix(prefix): first.removeprefix(prefix) for name, first in pairs}


def _components(checkpoint: Checkpoint, other: Checkpoint) -> dict[str, list[str]]:
    """Names of tensors by their component's prefix. Of an archive's base no layout is known: the other's tells."""
    layout = checkpoint.layout or other.layout
    prefixes = sorted((file.prefix for file in layout if file.prefix), key=lambda prefix: -len(prefix))
    by_prefix: dict[str, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        by_prefix[next((prefix for prefix in prefixes if name.startswith(prefix)), "")].append(name)
    return dict(by_prefix)


def _pairs(
    base: Checkpoint, there: Mapping[str, list[str]], task: Checkpoint, own: Mapping[str, list[str]]
) -> dict[str, str]:
    """For each component of a task the base's: of the same name, or else the one with the most tensors in common."""
    pairs = {prefix: prefix for prefix in own if prefix in there and (prefix or len(own) > 1 or len(there) == 1)}
    free = [prefix for prefix in there if prefix not in pairs.values()]
    for prefix, names in own.items():
        if prefix in pairs or not free:
            continue
        shapes = {name.removeprefix(prefix): task.tensors[name].shape for name in names}
        votes = {
            other: sum(shapes.get(name.removeprefix(other)) == base.tensors[name].shape for name in there[other])
            for other in free
        }
        best = max(votes, key=lambda other: votes[other])
        if votes[best]:
            pairs[prefix] = best
            free.remove(best)
    return pairs


def _part(checkpoint: Checkpoint, prefix: str, names: list[str]) -> Checkpoint:
    where = f"{checkpoint.where}/{prefix.rstrip('/')}" if prefix else checkpoint.where
    return JoinedCheckpoint(where, [checkpoint], {name.removeprefix(prefix): (0, name) for name in names})


def _check_whole(base: Checkpoint, task: Checkpoint) -> None:
    """Raise CheckpointError where one holds placeholders of tensors that the other has whole.

    ZeRO-3 and FSDP leave one dimension of length 0, whatever the tensor's shape was. Other shapes without an element
    are tensors in their own right: a table that has no rows yet.
    """
    for whole, half in ((base, task), (task, base)):
        empty = {name for name, info in half.tensors.items() if tuple(info.shape) == (0,)}
        if not empty:
            continue
        full = {name for name, info in whole.tensors.items() if info.numel}
        lost = [name for name in half.tensors if name in empty and _has_counterpart(name, full)]
        if lost:
            raise CheckpointError(
                f"{half.where}: {len(lost)} tensors are empty, {lost[0]!r} the first, that {whole.where} has whole: "
                "half of a ZeRO-3 or FSDP checkpoint; make whole weights with DeepSpeed's zero_to_fp32.py, or save "
                "with stage3_gather_16bit_weights_on_model_save"
            )


def _has_counterpart(name: str, others: set[str]) -> bool:
    """Whether a tensor of that name is there, perhaps with a prefix more or less."""
    return name in others or any(name.endswith(f".{other}") or other.endswith(f".{name}") for other in others)
