"""Which tasks share a vector, and how many vectors there are: chosen by what they would cost, measured on a sketch.

The sketch is a sample: the same short runs of parameters of every task vector, a few in a thousand of a large model.
On it the recipe itself is run for a group that might be, which tells the error of each of its tasks and the bits of
its masks and vector. Nothing is ever computed on pairs of whole task vectors.

Groups grow from single tasks, two of them joined at a time, those whose joining raises the errors least. Which joins
are tried is told by the tasks' cosines on the sketch, and by size: joining small groups costs little. The groups of
the chosen number are improved by moving tasks.

The error of one vector rises with the number of its tasks, and a further vector costs bits. `auto` takes the fewest
groups, hence the fewest bits, whose mean error is no larger than one vector's for 8 of the tasks, drawn at random.
(To weigh error against bits at the exchange rate of good coding, 6 dB a bit, would end at one group a task: a vector
of one's own, quantized, is worth its bits, as recipe `solo` knows. Who shares vectors wants few bits.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.checkpoints import Checkpoint, Source, open_checkpoint
from tallstore.codecs.base import VectorCodec
from tallstore.encoder.chunk import task_vector
from tallstore.encoder.match import spelled_as
from tallstore.encoder.metrics import scaled
from tallstore.encoder.options import Options
from tallstore.encoder.plan import EncodePlan, plan
from tallstore.encoder.report import Progress
from tallstore.errors import OptionError
from tallstore.recipes.base import Recipe, Tile, ZooFacts
from tallstore.tensors import one_thread

SAMPLE = 1 << 17
"""Parameters of the sketch, about."""
_RUN = 1 << 10
"""Parameters that are read at once."""
_SEARCH = 1 << 14
"""Parameters on which joins are tried; what is decided is measured on all."""
_NEAR, _SMALL = 3, 2
"""Partners that are tried for each group: those nearest to it, and the smallest."""
_USUAL, _DRAWS = 8, 4
"""Tasks that one vector is usually for, and how many such sets are tried."""
_MARGIN = 1.01
"""An error so much larger is the same: a sketch tells no finer."""

Group = tuple[int, ...]
"""Tasks by index, ascending."""


@dataclass(frozen=True)
class Cost:
    """What a choice of groups costs: means over the tasks."""

    error: float
    """‖τ̂−τ‖/‖τ‖."""
    bits: float
    """Of masks and vectors, a parameter and task."""


@dataclass(frozen=True)
class Grouping:
    """The chosen groups, what they cost on the sketch, and the error that `auto` would not exceed."""

    groups: tuple[tuple[str, ...], ...]
    cost: Cost
    bound: float | None = None


def choose_groups(
    base: Source, tasks: Mapping[str, Source], options: Options, *, progress: Progress | None = None
) -> Grouping:
    """Choose groups for a recipe with a shared vector: as many as `options.groups` says, or as it takes.

    Raises OptionError for more groups than there are tasks.
    """
    if options.groups != "auto" and int(options.groups) > len(tasks):
        raise OptionError(f"{options.groups} groups for {len(tasks)} tasks: there can be at most one for each")
    with one_thread(), ExitStack() as stack:
        opened = []
        for name, source in (("base", base), *tasks.items()):
            asked = options.weights if name != "base" or source is not base else None
            opened.append(open_checkpoint(source, f"{name} (in memory)", options.storage_options, weights=asked))
            if opened[-1] is not source:
                stack.callback(opened[-1].close)
        start, *rest = opened
        rest = [spelled_as(start, task) for task in rest]
        known = dict(zip(tasks, rest, strict=True))
        sketch = _sketch(start, rest, plan(start, known, allow_distant=options.allow_distant), progress)
        return _chosen(_Search(sketch, options, list(tasks)), progress)


def _chosen(search: _Search, progress: Progress | None) -> Grouping:
    levels = search.levels(progress)
    if search.options.groups != "auto":
        return search.grouping(search.improved(levels[int(search.options.groups)]))
    bound = search.usual_error()
    for number in sorted(levels):
        groups = search.improved(levels[number])
        if search.cost(groups).error <= _MARGIN * bound:
            break
    return replace(search.grouping(groups), bound=bound)


def _named(group: Group, names: Sequence[str]) -> list[str]:
    return [names[index] for index in group]


@dataclass(frozen=True)
class Sketch:
    """Sampled parameters: θ0, shape (P,), and τ, shape (T, P), float32. What a task lacks is 0."""

    base: Tensor
    tau: Tensor


def _sketch(base: Checkpoint, tasks: Sequence[Checkpoint], planned: EncodePlan, progress: Progress | None) -> Sketch:
    runs = list(_runs(base, planned))
    rows: list[list[Tensor]] = [[] for _ in tasks]
    starts = []
    for at, (name, start, stop) in enumerate(runs):
        origin = base.read(name, start, stop)
        starts.append(origin.to(torch.float32))
        users = {user.task: user for user in planned.users[name] if user.masked}
        for index, task in enumerate(tasks):
            row = torch.zeros(stop - start)
            user = users.get(index)
            if user is not None and start < user.covered:
                weights = task.read(user.name, start, min(stop, user.covered))
                row[: len(weights)] = task_vector(origin[: len(weights)], weights).to(torch.float32)
            rows[index].append(row.nan_to_num_(0.0, 0.0, 0.0))
        if progress is not None:
            progress("sampling", at + 1, len(runs))
    # Runs are shuffled, so that the leading ones are a sample too.
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(0)).tolist()
    return Sketch(_joined(starts, order), torch.stack([_joined(row, order) for row in rows]))


def _joined(pieces: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    return torch.cat([pieces[at] for at in order]) if pieces else torch.zeros(0)


def _runs(base: Checkpoint, planned: EncodePlan) -> Iterator[tuple[str, int, int]]:
    """Evenly spaced runs of every tensor that is masked, by its share of all parameters."""
    sizes = {name: base.tensors[name].numel for name, users in planned.users.items() if any(u.masked for u in users)}
    share = min(1.0, SAMPLE / max(1, sum(sizes.values())))
    for name, numel in sizes.items():
        count = max(1, round(numel * share / _RUN))
        length = min(_RUN, numel)
        for start in np.linspace(0, numel - length, count).astype(np.int64).tolist():
            yield name, start, start + length


@dataclass
class _Search:
    """Groups tried on the sketch."""

    sketch: Sketch
    options: Options
    names: Sequence[str]
    _tried: dict[Group, float] = field(default_factory=dict)
    _squares: dict[int | None, Tensor] = field(default_factory=dict)
    _measured: dict[Group, tuple[list[float], float]] = field(default_factory=dict)

    def levels(self, progress: Progress | None) -> dict[int, list[Group]]:
        """Groups by their number, from one a task to one in all."""
        groups: list[Group] = [(index,) for index in range(len(self.sketch.tau))]
        near = self._cosines()
        by_count = {len(groups): list(groups)}
        while len(groups) > 1:
            left, right = min(self._pairs(groups, near), key=lambda pair: (self._rise(*pair), pair))
            groups = sorted([g for g in groups if g not in (left, right)] + [_union(left, right)])
            by_count[len(groups)] = list(groups)
            if progress is not None:
                progress("grouping", len(self.sketch.tau) - len(groups), len(self.sketch.tau) - 1)
        return by_count

    def improved(self, groups: Sequence[Group]) -> list[Group]:
        """The same number of groups after tasks were moved where that lowers the errors: each looked at once."""
        chosen = list(groups)
        for task in range(len(self.sketch.tau)):
            home = next(group for group in chosen if task in group)
            if len(home) == 1:
                continue
            left = tuple(other for other in home if other != task)
            saved = self._trial(home) - self._trial(left)
            options = [(self._trial(_union(group, (task,))) - self._trial(group), group) for group in chosen]
            cost, best = min(option for option in options if option[1] != home) if len(chosen) > 1 else (saved, home)
            if cost < saved:
                chosen = [group for group in chosen if group not in (home, best)] + [left, _union(best, (task,))]
        return sorted(chosen)

    def usual_error(self) -> float:
        """The mean error of one vector for 8 of the tasks, drawn at random; for all of them where they are fewer."""
        count = len(self.names)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        draws = [tuple(sorted(order[at : at + _USUAL])) for at in range(0, count - _USUAL + 1, _USUAL)][:_DRAWS]
        return self.cost(draws or [tuple(range(count))]).error

    def grouping(self, groups: Sequence[Group]) -> Grouping:
        """In names."""
        return Grouping(tuple(tuple(_named(group, self.names)) for group in groups), self.cost(groups))

    def _recipe(self, group: Group) -> Recipe:
        names = _named(group, self.names)
        return self.options.of_tasks(names).make_recipe(names)

    def cost(self, groups: Sequence[Group]) -> Cost:
        """What groups cost on the whole sketch."""
        measured = [self._measure(group) for group in groups]
        count = sum(len(group) for group in groups)
        errors = sum(sum(errors) for errors, _ in measured)
        return Cost(errors / count, sum(bits for _, bits in measured) / count)

    def _pairs(self, groups: Sequence[Group], near: Tensor) -> Iterator[tuple[Group, Group]]:
        small = sorted(groups, key=len)[: _SMALL + 1]
        seen: set[tuple[Group, Group]] = set()
        for group in groups:
            rows = near[list(group)].mean(0)
            by_cosine = sorted((g for g in groups if g != group), key=lambda g: -float(rows[list(g)].mean()))
            for other in (*by_cosine[:_NEAR], *small):
                pair = (min(group, other), max(group, other))
                if other != group and pair not in seen:
                    seen.add(pair)
                    yield pair

    def _cosines(self) -> Tensor:
        rows = torch.nn.functional.normalize(self.sketch.tau, dim=1)
        return rows @ rows.T

    def _rise(self, left: Group, right: Group) -> float:
        return self._trial(_union(left, right)) - self._trial(left) - self._trial(right)

    def _trial(self, group: Group) -> float:
        """The sum of a group's errors on a part of the sketch."""
        if group not in self._tried:
            self._tried[group] = sum(self._run(group, _SEARCH)[0])
        return self._tried[group]

    def _measure(self, group: Group) -> tuple[list[float], float]:
        """The errors of a group's tasks, and the bits a parameter of its vector and masks together."""
        if group not in self._measured:
            codec = codecs.VECTOR[self.options.vector or self._recipe(group).vector_codec]
            errors, vector_bits, densities = self._run(group, None, codec)
            self._measured[group] = errors, vector_bits + sum(map(_entropy, densities))
        return self._measured[group]

    def _norms(self, most: int | None) -> Tensor:
        """‖τ‖² of every task on a part of the sketch."""
        if most not in self._squares:
            self._squares[most] = self.sketch.tau[:, :most].square().sum(1)
        return self._squares[most]

    def _run(
        self, group: Group, most: int | None, codec: VectorCodec | None = None
    ) -> tuple[list[float], float, list[float]]:
        """The recipe on a part of the sketch: errors, bits a parameter of the vector, and how dense the masks are."""
        base, tau = self.sketch.base[:most], self.sketch.tau[list(group), :most]
        recipe = self._recipe(group)
        tile = Tile(tuple(range(len(group))), base, base + tau, tau)
        recipe.prepare(ZooFacts(parameters=tau.numel(), fixed_bits=0.0))
        for statistic in recipe.statistics(len(group)):
            for each in statistic.condense([statistic.measure(tile)]):
                statistic.update(each)
            statistic.finish()
        vector = recipe.vector(tile).to(torch.float32)
        bits = 0.0
        if codec is not None:
            data = codec.encode(vector.numpy())
            vector = torch.from_numpy(np.array(codec.decode(data, len(vector))))
            bits = 8 * len(data) / max(1, len(vector))
        masks = recipe.masks(tile, vector)
        marks = torch.where(masks == 2, -1.0, masks.float()) if recipe.kind == "signed" else masks.float()
        dots = (tau * marks) @ vector
        norms, kept = self._norms(most)[list(group)], marks.abs_() @ vector.square()
        statistics = torch.stack([norms - 2 * dots + kept, norms, kept, dots, marks.sum(1)], dim=1).double()
        errors = []
        for task, each in enumerate(statistics.tolist()):
            error, norm, *_ = scaled(each, recipe.scale(task, each))
            errors.append(math.sqrt(max(error, 0.0) / norm) if norm else 0.0)
        return errors, bits, (statistics[:, -1] / max(1, len(base))).tolist()


def _union(left: Group, right: Group) -> Group:
    return tuple(sorted((*left, *right)))


def _entropy(share: float) -> float:
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share) if 0 < share < 1 else 0.0
