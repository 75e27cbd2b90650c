"""What becomes of every tensor, as far as names, types and shapes tell: masked, compared, stored whole, or tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tallstore.adapters import TRAINERS, check_base, check_trainer, sorted_tensors
from tallstore.checkpoints import Checkpoint
from tallstore.checkpoints.quantized import Quantized, find_quantized
from tallstore.encoder.components import matched
from tallstore.encoder.match import Match
from tallstore.encoder.reasons import Reason, Why
from tallstore.encoder.tied_weights import tied_names
from tallstore.errors import CheckpointError
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE, PACKED
from tallstore.format.manifest import names_of

UNMATCHED = 0.05
"""Share of a task's parameters without a counterpart above which it is a warning."""
SMALL = 256
"""Tensors with fewer elements are stored whole if they moved: a mask would save nothing, and they matter."""
_WORTH = 1 << 13
"""Bytes from which on a tensor that no mask fits is coded against the base's: of fewer there is little to save."""


_PACKED_CODES = {"U8", "I16", "U16", "I32", "U32"}
"""Types of which an element holds several codes."""


@dataclass(frozen=True)
class User:
    """A task's tensor that comes from a base tensor."""

    task: int
    name: str
    match: Match
    covered: int
    """Leading elements that both have."""
    masked: bool
    """Whether it may be masked. If not, it is the base's tensor or stored whole."""
    alike: bool
    """Whether it may not, but has the base's type and shape, so that it can be the base's tensor."""
    lossless: bool = False
    """Whether its own kind asks for that: it is quantized, or of a type that no mask fits."""


@dataclass(frozen=True)
class Whole:
    """A tensor, or its elements from `start` on, that is stored whole and exact, and why."""

    why: Why
    start: int = 0


@dataclass
class EncodePlan:
    """Users of each base tensor, and what the pass found out: lists have one item a task."""

    users: dict[str, list[User]] = field(default_factory=dict)
    private: list[dict[str, Whole]] = field(default_factory=list)
    """Tensors stored whole, by the task's name."""
    unmoved: list[dict[str, str]] = field(default_factory=list)
    """Unmasked tensors that are the base's to the last bit: the task's name → the base's."""
    missing: list[tuple[str, ...]] = field(default_factory=list)
    quantized: list[Quantized | None] = field(default_factory=list)
    """The quantized tensors of each task."""
    unmatched: list[float] = field(default_factory=list)
    """Share of a task's parameters that have no counterpart in the base."""
    warnings: list[list[str]] = field(default_factory=list)
    """What a user should know of each task; it says "the base", and is recorded with the task."""
    ties: list[dict[str, str]] = field(default_factory=list)
    """Tensors that are the same as an earlier one, and are stored once: name → that one's name."""
    base_ties: dict[str, str] = field(default_factory=dict)
    """The same of the base."""
    settled: frozenset[str] = frozenset()
    """Tensors of the base that nobody reads: see `plan`."""

    def read_of(self, base: Checkpoint) -> Iterator[str]:
        """The base's tensors that the pass goes over, in its order."""
        return (name for name in base.tensors if name not in self.settled)


def plan(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    allow_distant: bool,
    lossless: frozenset[int] = frozenset(),
    settled: frozenset[str] = frozenset(),
) -> EncodePlan:
    """Match every task with the base.

    Args:
        base: what they are fine-tunes of.
        tasks: by name.
        allow_distant: whether what does not look like the base's is taken all the same.
        lossless: tasks that are coded without loss: tensors of any type are then coded against the base's of that type.
        settled: tensors of every task that are the base's of the same name, as the caller knows: they are not read.

    Raises:
        WrongBaseError: they do not belong together.
        CheckpointError: the base is an adapter.
    """
    if base.adapter is not None:
        raise CheckpointError(
            f"{base.where}: an adapter in place of the base: the base comes first; name the model that the adapter was "
            "trained on"
        )
    planned = EncodePlan(users={name: [] for name in base.tensors}, base_ties=tied_names(base), settled=settled)
    for index, task in enumerate(tasks.values()):
        if task.adapter is not None:
            _plan_adapter(planned, base, task, allow_distant=allow_distant)
            continue
        ties, quantized = tied_names(task, base), find_quantized(task)
        matches = matched(base, task, ties, allow_distant=allow_distant)
        planned.ties.append(ties)
        planned.private.append({})
        planned.unmoved.append({})
        planned.quantized.append(quantized)
        for name in task.tensors:
            if name in ties:
                continue
            if name in settled:
                planned.unmoved[index][name] = name
                continue
            if name not in matches or (matches[name].rows is not None and task.tensors[name].dtype in PACKED):
                planned.private[index][name] = Whole(Why(Reason.UNMATCHED))
                continue
            planned.users[matches[name].base].append(
                _user(base, task, index, name, matches[name], quantized, lossless=index in lossless)
            )
        used = {planned.base_ties.get(m.base, m.base) for m in matches.values()}
        planned.missing.append(tuple(n for n in base.tensors if planned.base_ties.get(n, n) not in used))
        _note_unmatched(planned, base, task)
    return planned


def _plan_adapter(planned: EncodePlan, base: Checkpoint, task: Checkpoint, *, allow_distant: bool) -> None:
    """An adapter is kept as it is, whole and exact. Raises WrongBaseError where it cannot be of this base."""
    assert task.adapter is not None
    shapes, held = {name: info.shape for name, info in task.tensors.items()}, _weights(base)
    if not allow_distant and task.adapter.type in TRAINERS:
        check_trainer(task.adapter.type, shapes, held, where=task.where, base_where=base.where)
    elif not allow_distant:
        check_base(
            sorted_tensors(task.tensors),
            shapes,
            held,
            config=task.adapter.config,
            where=task.where,
            base_where=base.where,
        )
    ties = dict(task.ties)
    planned.ties.append(ties)
    planned.private.append({name: Whole(Why(Reason.ADAPTER)) for name in task.tensors if name not in ties})
    planned.unmoved.append({})
    planned.missing.append(())
    planned.unmatched.append(0.0)
    planned.warnings.append([])
    planned.quantized.append(None)


def _weights(base: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of a base's tensors; of weights that are there as packed codes, which have another's shape, none: ()."""
    shapes = {name: info.shape for name, info in base.tensors.items()}
    quantized = find_quantized(base)
    for name in quantized.tensors if quantized is not None else ():
        module = name.partition(".quant_state.")[0].rpartition(".")[0].removesuffix(".weight")
        weight = base.tensors.get(f"{module}.weight")
        if module and (weight is None or weight.dtype in _PACKED_CODES):
            shapes[f"{module}.weight"] = ()
    return shapes


def _note_unmatched(planned: EncodePlan, base: Checkpoint, task: Checkpoint) -> None:
    """How much of the last task finds no counterpart; a warning where it is much."""
    names = [name for name, whole in planned.private[-1].items() if whole.why.reason.word == "unmatched"]
    total = sum(info.numel for name, info in task.tensors.items() if name not in planned.ties[-1])
    share = sum(task.tensors[name].numel for name in names) / total if total else 0.0
    planned.unmatched.append(share)
    planned.warnings.append([])
    if share > UNMATCHED:
        reshaped = {name for name in names if name in base.tensors}
        shown = [f"{name} of another shape" if name in reshaped else name for name in names]
        left = [name for name in planned.missing[-1] if name not in reshaped]
        unused = f"; the base has {names_of(left)} unused" if left else ""
        planned.warnings[-1].append(
            f"{100 * share:.3g} % of its parameters find no counterpart in the base and are stored whole "
            f"({names_of(shown)}){unused}"
        )
    elif planned.missing[-1] and not names:
        planned.warnings[-1].append(
            f"lacks tensors of the base ({names_of(list(planned.missing[-1]))}) and has none of its own: are base and "
            "task swapped? The base comes first"
        )


def _user(
    base: Checkpoint,
    task: Checkpoint,
    index: int,
    name: str,
    match: Match,
    quantized: Quantized | None,
    *,
    lossless: bool,
) -> User:
    info, start = task.tensors[name], base.tensors[match.base]
    covered = info.numel if match.rows is None else match.rows * (info.numel // info.shape[0])
    if {info.dtype, start.dtype} <= set(MASKABLE):
        fits, own = True, quantized is not None and name in quantized.tensors
    else:
        own = info.dtype == start.dtype and covered * ITEM_BYTES[info.dtype] >= _WORTH
        fits = own or (lossless and info.dtype == start.dtype)
    masked = fits and covered >= SMALL
    return User(index, name, match, covered, masked, not masked and info == start, masked and own)
