"""Which base tensor a task's tensor comes from, when the two checkpoints do not use the same names or shapes.

Checkpoints of one model often differ by a prefix: a bare encoder is saved as `encoder.…`, with a head on top as
`bert.encoder.…`. The pair of prefixes that brings the most tensors together is found by vote. Names are compared
without the segments of wrappers. What is left after that is paired by its values (`pairing`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tallstore.checkpoints import Checkpoint, respelled, same_share
from tallstore.checkpoints.addons import addon_of
from tallstore.encoder.pairing import CLOSE, Rest, common_rows, distance, is_float, prefixes
from tallstore.errors import CheckpointError, WrongBaseError
from tallstore.names import bare, short_names
from tallstore.tensors import one_thread

_ENOUGH = 0.5
"""Share of the task's parameters that must be found in the base, or of the base's in the task (a head may be large)."""
_FEW = 0.01
"""Share of parameters without a counterpart, on either side, up to which no conversion of names is tried."""
_INTEGERS = {"U8", "I8", "I32"}
"""Types in which quantized checkpoints hold several weights an element."""
_DEQUANTIZE = "it looks quantized: save it in a float type (model.dequantize()), and pack that"
_FAR = 1.0
"""‖τ‖/‖θ0‖ from which on a base is not believed to be the task's (unrelated weights of one size give 1.4)."""
_SAMPLED_TENSORS, _SAMPLED_ELEMENTS = 8, 1 << 14


@dataclass(frozen=True)
class Match:
    """A task's tensor and the base tensor it comes from; `rows` if only so many leading rows are common."""

    base: str
    rows: int | None = None


@dataclass
class _Named:
    """Tensors paired by their names, and what kept others from it."""

    matches: dict[str, Match]
    misfit: str | None = None
    quantized: bool = False


def spelled_as(base: Checkpoint, task: Checkpoint) -> Checkpoint:
    """A task under the base's names, where transformers calls its tensors otherwise in memory than in files.

    Raises CheckpointError where the library's conversion cannot be undone.
    """
    if task.adapter is not None:
        return task
    shapes = {name: info.shape for name, info in base.tensors.items()}
    if task.model is not None:
        # In memory: the library is at hand, and the names of files are those that its loaders know best.
        return respelled(task, base, lambda each: (_matched(base, each) + same_share(each, shapes)) / 2)
    matches = _by_name(base, task).matches
    unused = _share_without(base, {match.base for match in matches.values()})
    if min(_share_without(task, matches), unused) <= _FEW:
        return task
    return respelled(task, base, lambda each: _matched(base, each))


def _matched(base: Checkpoint, task: Checkpoint) -> float:
    """Share of a task's parameters that find a counterpart by name."""
    return 1 - _share_without(task, _by_name(base, task).matches)


def match(base: Checkpoint, task: Checkpoint, ties: Mapping[str, str]) -> dict[str, Match]:
    """Tensors of `task` that have a counterpart in `base`, by the task's name. Each base tensor serves once.

    `ties`: those of the task that are the same as an earlier one.

    Raises:
        WrongBaseError: less than half of either's parameters are found in the other with their shapes, and nothing
            that is found looks like the base's; names the first.
        CheckpointError: two of the task's tensors are the same one of the base's.
    """
    _check_doubles(base, task, ties)
    named = _by_name(base, task)
    matches = named.matches
    paired = _by_value(base, task, matches, ties)
    _settle_ties(base, task, matches, ties)
    known = {match.base for match in matches.values()}
    enough = min(_share_without(task, matches), _share_without(base, known)) <= 1 - _ENOUGH
    if enough or paired or _is_close(base, task, matches):
        return matches
    lost = next(name for name in task.tensors if name not in matches)
    if what := addon_of({name: info.shape for name, info in task.tensors.items()}):
        raise WrongBaseError(f"{task.where}: {what}: keep the file as it is, and load it beside the task's model")
    why = named.misfit or f"the base has no tensor {lost!r}"
    raise WrongBaseError(
        f"{task.where}: {base.where} is not its base, or calls its tensors otherwise: {why}; "
        + (_DEQUANTIZE if named.quantized else "give the model that this task was fine-tuned from")
    )


@one_thread()
def _is_close(base: Checkpoint, task: Checkpoint, matches: Mapping[str, Match]) -> bool:
    """Whether what was found lies as close to the base as a fine-tune does, so that the base is the right one."""
    return distance(base, task, [(name, match.base) for name, match in matches.items()]) <= CLOSE


@one_thread()
def _settle_ties(base: Checkpoint, task: Checkpoint, matches: dict[str, Match], ties: Mapping[str, str]) -> None:
    """Of the base tensors that one weight has counterparts in by its several names, it comes from the nearest."""
    for name, first in ties.items():
        if name not in matches:
            continue
        if first not in matches:
            matches[first] = matches.pop(name)  # the base knows the shared memory by its other name
            continue
        near, far = (distance(base, task, [(first, matches[each].base)]) for each in (name, first))
        if near < far:
            matches[first], matches[name] = matches[name], matches[first]


def _share_without(checkpoint: Checkpoint, names: Collection[str]) -> float:
    """Share of a checkpoint's parameters that are not among those found."""
    total = sum(info.numel for info in checkpoint.tensors.values())
    return 1 - sum(checkpoint.tensors[name].numel for name in names) / total if total else 0.0


def _by_name(base: Checkpoint, task: Checkpoint) -> _Named:
    """Equal names, and those that differ by the commonest pair of prefixes."""
    ours, theirs = short_names(task.tensors, bare), {b: n for n, b in short_names(base.tensors, bare).items()}
    votes = prefixes(
        {short: base.tensors[name] for short, name in theirs.items()},
        {short: task.tensors[name] for name, short in ours.items()},
    )
    strip_task, strip_base = (
        max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]), pair)) if votes else ("", "")
    )
    named = _Named({})
    taken: set[str] = set()
    for name, info in task.tensors.items():
        candidates = [ours[name]]
        if ours[name].startswith(strip_task):
            candidates.append(strip_base + ours[name].removeprefix(strip_task))
        for candidate in candidates:
            if candidate not in theirs or candidate in taken:
                continue
            origin = base.tensors[theirs[candidate]]
            common = common_rows(origin, info)
            if common is None:
                have, want = list(origin.shape), list(info.shape)
                named.misfit = named.misfit or f"tensor {name!r} is {want} in the task and {have} in the base"
                named.quantized = named.quantized or (info.dtype in _INTEGERS and is_float(origin))
                continue
            named.matches[name] = Match(theirs[candidate], None if info.shape == origin.shape else common)
            taken.add(candidate)
            break
    return named


@one_thread()
def _by_value(base: Checkpoint, task: Checkpoint, matches: dict[str, Match], ties: Mapping[str, str]) -> bool:
    """Pair what names do not, as far as values tell; adds to `found`. Whether anything was."""
    used = {match.base for match in matches.values()}
    ours = {short: name for name, short in short_names(task.tensors, bare).items() if name not in matches}
    theirs = {short: name for name, short in short_names(base.tensors, bare).items() if name not in used}
    ours = {short: name for short, name in ours.items() if name not in ties}
    if not ours or not theirs:
        return False
    pairs = Rest(base, task, theirs, ours).pair()
    for name in task.tensors:
        if name in pairs:
            info, origin = task.tensors[name], base.tensors[pairs[name]]
            matches[name] = Match(pairs[name], None if info.shape == origin.shape else common_rows(origin, info))
    return bool(pairs)


def _check_doubles(base: Checkpoint, task: Checkpoint, ties: Mapping[str, str]) -> None:
    """Raise CheckpointError where two tensors of a task have one name of the base's, but for wrappers."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in task.tensors:
        if name not in ties:
            grouped[bare(name)].append(name)
    theirs = {short: name for name, short in short_names(base.tensors, bare).items()}
    for short, names in grouped.items():
        if len(names) > 1 and short in theirs and any(name not in base.tensors for name in names):
            raise CheckpointError(
                f"{task.where}: tensors {names[0]!r} and {names[1]!r} are both {theirs[short]!r} of {base.where}: "
                "leave one of them out"
            )


@one_thread()
def check_distance(base: Checkpoint, task: Checkpoint, matches: Mapping[str, Match]) -> None:
    """Raise WrongBaseError if sampled weights are as far from the base as those of an unrelated model."""
    largest = sorted(matches, key=lambda name: -task.tensors[name].numel)[:_SAMPLED_TENSORS]
    moved = size = 0.0
    worst = (0.0, "")
    for name in largest:
        if not (is_float(task.tensors[name]) and is_float(base.tensors[matches[name].base])):
            continue
        n = min(task.tensors[name].numel, base.tensors[matches[name].base].numel, _SAMPLED_ELEMENTS)
        start = base.read(matches[name].base, 0, n).double()
        tau = task.read(name, 0, n).double() - start
        known = tau.isfinite()  # NaN and Inf say nothing about where a model comes from
        gap = float(tau[known].square().sum())
        here = float(start[known].square().sum())
        if not here:
            continue  # nor do zeros, from which everything is far away
        moved, size = moved + gap, size + here
        worst = max(worst, ((gap / here) ** 0.5, name))
    if size and moved > _FAR**2 * size:
        raise WrongBaseError(
            f"{task.where}: {base.where} does not look like its base: its weights are as far away as an unrelated "
            f"model's (tensor {worst[1]!r}: ‖τ‖/‖θ0‖ = {worst[0]:.2f}); give the right base, or allow_distant=True "
            "(--allow-distant) if it is"
        )
