"""Which base tensor a task's tensor comes from, when the two checkpoints do not use the same names or shapes.

Checkpoints of one model often differ by a prefix: a bare encoder is saved as `encoder.…`, with a head on top as
`bert.encoder.…`. The pair of prefixes that brings the most tensors together is found by vote.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tallstore.checkpoints import Checkpoint, TensorInfo
from tallstore.errors import WrongBaseError
from tallstore.tensors import one_thread

_RESIZED_WITHIN = 0.5
"""Rows of a resized tensor (an embedding with added tokens) are shared if the smaller has this share of the larger."""
_ENOUGH = 0.5
"""Share of the task's parameters that must be found in the base, or of the base's in the task (a head may be large)."""
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


def match(base: Checkpoint, task: Checkpoint) -> dict[str, Match]:
    """Tensors of `task` that have a counterpart in `base`, by the task's name. Each base tensor serves once.

    Raises:
        WrongBaseError: less than half of either's parameters are found in the other with their shapes; names the first.
    """
    strip_task, strip_base = _prefixes(base.tensors, task.tensors)
    found: dict[str, Match] = {}
    taken: set[str] = set()
    misfit: str | None = None
    quantized = False
    for name, info in task.tensors.items():
        candidates = [name]
        if name.startswith(strip_task):
            candidates.append(strip_base + name.removeprefix(strip_task))
        for candidate in candidates:
            if candidate not in base.tensors or candidate in taken:
                continue
            common = _common(base.tensors[candidate], info)
            if common is None:
                have, want = list(base.tensors[candidate].shape), list(info.shape)
                misfit = misfit or f"tensor {name!r} is {want} in the task and {have} in the base"
                quantized = quantized or (info.dtype in _INTEGERS and _is_float(base.tensors[candidate]))
                continue
            found[name] = Match(candidate, None if info.shape == base.tensors[candidate].shape else common)
            taken.add(candidate)
            break
    for name, first in task.ties.items():
        if name in found and first not in found:
            found[first] = found.pop(name)  # the base knows the shared memory by its other name
    shared = sum(task.tensors[name].numel for name in found)
    if all(shared < _ENOUGH * sum(info.numel for info in all_of.tensors.values()) for all_of in (base, task)):
        lost = next(name for name in task.tensors if name not in found)
        raise WrongBaseError(
            f"{task.where}: {base.where} is not its base: {misfit or f'the base has no tensor {lost!r}'}; "
            + (_DEQUANTIZE if quantized else "give the model that this task was fine-tuned from")
        )
    return found


@one_thread()
def check_distance(base: Checkpoint, task: Checkpoint, matches: Mapping[str, Match]) -> None:
    """Raise WrongBaseError if sampled weights are as far from the base as those of an unrelated model."""
    largest = sorted(matches, key=lambda name: -task.tensors[name].numel)[:_SAMPLED_TENSORS]
    moved = size = 0.0
    worst = (0.0, "")
    for name in largest:
        if not (_is_float(task.tensors[name]) and _is_float(base.tensors[matches[name].base])):
            continue
        n = min(task.tensors[name].numel, base.tensors[matches[name].base].numel, _SAMPLED_ELEMENTS)
        start = base.read(matches[name].base, 0, n).double()
        tau = task.read(name, 0, n).double() - start
        known = tau.isfinite()  # NaN and Inf say nothing about where a model comes from
        gap = float(tau[known].square().sum())
        here = float(start[known].square().sum())
        moved, size = moved + gap, size + here
        worst = max(worst, ((gap / here) ** 0.5 if here else 0.0, name))
    if size and moved > _FAR**2 * size:
        raise WrongBaseError(
            f"{task.where}: {base.where} does not look like its base: its weights are as far away as an unrelated "
            f"model's (tensor {worst[1]!r}: ‖τ‖/‖θ0‖ = {worst[0]:.2f}); give the right base, or allow_distant=True "
            "(--allow-distant) if it is"
        )


def _common(base: TensorInfo, task: TensorInfo) -> int | None:
    """Leading rows that both have, or None if the shapes do not belong together."""
    if base.shape == task.shape:
        return base.shape[0] if base.shape else 1
    if not base.shape or not task.shape or base.shape[1:] != task.shape[1:]:
        return None
    few, many = sorted((base.shape[0], task.shape[0]))
    return few if few >= _RESIZED_WITHIN * many else None


def _prefixes(base: Mapping[str, TensorInfo], task: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """The prefixes to take off the task's names and to put before them, to get the base's names."""
    by_suffix: dict[str, list[str]] = defaultdict(list)
    for name in base:
        for suffix in _suffixes(name):
            by_suffix[suffix].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, info in task.items():
        for suffix in _suffixes(name):
            fits = [b for b in by_suffix.get(suffix, ()) if base[b].shape == info.shape]
            if len(fits) == 1:
                votes[name.removesuffix(suffix), fits[0].removesuffix(suffix)] += 1
            if suffix in by_suffix:
                break
    if not votes:
        return "", ""
    return max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]), pair))


def _suffixes(name: str) -> Iterator[str]:
    """The name, and what is left of it after each of its dots, longest first."""
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


def _is_float(info: TensorInfo) -> bool:
    return info.dtype in {"F64", "F32", "F16", "BF16"}
