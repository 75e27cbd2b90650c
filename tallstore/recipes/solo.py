"""`solo`: every task vector coded by itself, at the precision that a budget of bits allows; nothing is shared.

Each tensor becomes a signed mask over v ≡ 1 (its parameters above a threshold, by sign), or a few levels of its own
where bits are plenty. One scale a chunk makes the result unbiased: with w the marks,

    s = ⟨τ, τ⟩ / ⟨τ, w⟩,   so that   ⟨s·w, τ⟩ = ⟨τ, τ⟩

The error is then larger than with the scale of least squares, s = ⟨τ, w⟩/⟨w, w⟩, which shrinks what it is unsure of;
but a layer adds up thousands of parameters, so that errors without bias cancel where shrinkage adds up to a task that
was tuned less. With few bits that holds one step further: where marks are drawn at random, more likely the larger |τ|
is, every parameter is right on the average, and not the tensor alone. `benchmarks/README.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule
from tallstore.recipes import dropping
from tallstore.recipes.allocation import ENTRY_BITS, allocate, allocate_within
from tallstore.recipes.base import Recipe, Statistic, Tile, ZooFacts
from tallstore.recipes.dither import seed_of, uniform
from tallstore.recipes.divergence import TensorShare, predicted_divergence, read_as_it_comes, task_gain
from tallstore.recipes.dropping import DropRates, LevelCosts
from tallstore.recipes.histogram import Floats, Magnitudes, magnitudes
from tallstore.recipes.quality_levels import QUALITIES, TOLERABLE
from tallstore.recipes.quantizers import Quantizer, fitting_scale, ladders, levels_of
from tallstore.recipes.rate_distortion import Choices, PrecisionChoice, choices, fine, hull_of
from tallstore.recipes.steps import Steps, biased, join, join_below, steps

__all__ = ["Solo"]

Key = tuple[int, str]
"""A task and a base tensor."""
_NEARLY = 0.9
"""Where what was chosen takes this share of what losing nothing takes, nothing is lost: what is predicted of the latter
is a few percent too much."""
_WITHOUT_LOSS, _DROPPED = -1, -2
"""The ladder of losing nothing, where it is known what that takes; and of dropping some, the first of those below."""
_RATE = 0.95
_KAPPA, _KAPPA_MOST, _FINE_RATE = 4.0, 19.0, 1.8
"""Where bits are given, κ at this rate and above; it rises as the square below, to a limit, and is 1 from the last rate
on. That keeps it near what diverges least: see `benchmarks/README.md`."""
_KAPPA_NARROW = 100.0
"""In types of few bits at least this, whatever the rate, which is as good as no bias at all: there many magnitudes are
equal, a unit in the last place of weights of one size, and what leaves them out, or takes them all, errs for each of
them in the same way. Marks with dither are right of them all and cost no more, for the type has nothing between two
units (see `rounded_levels`). At the same bits the KL on a fine-tune's own task is a ninth of what it is at 19, and on
other text about the same: see `benchmarks/results/accuracy.md`."""
_KAPPA_SLOPE = 540.0
"""Where a divergence is, κ in squares of it."""
_KAPPA_LEAST = 3.28
"""And at least this, which the default has: below, finer settings diverge more than coarser ones."""
_FINE = 8192
"""Tensors with fewer parameters that moved (norms, biases) get a fixed fine precision: cheap, and they matter much.
Where no bits are given these are vectors alone."""
_FINE_BOUND = 0.4
"""Where its first level begins, in root mean squares."""
_MOST_FIXED = 0.5
"""Share of given bits that fixed precisions may take; where they would take more, all tensors are chosen for alike."""


class Solo(Recipe):
    """Signs above a threshold, or a few levels, by task and tensor.

    As precise as it takes for outputs to come within `divergence` of the fine-tune's, predicted; or what diverges least
    within `bits` for every parameter, moved or not, with all but the base in it. `kappa` says how many times worse than
    noise it is to be wrong in the same way for equal |τ|: 1 makes the least squared error, more lets marks be drawn at
    random.
    """

    id = "solo"
    vector_codec = "ones"
    shared = False

    def __init__(
        self, bits: float | None = None, divergence: float = QUALITIES["balanced"], kappa: float | None = None
    ) -> None:
        if bits is not None and not 0 < bits <= 32:
            raise OptionError(f"bits {bits} is not a number of bits a parameter and task (above 0, at most 32)")
        if not 0 < divergence < 1:
            raise OptionError(f"divergence {divergence} is not a share of the base's distance (above 0, below 1)")
        if kappa is not None and not 1 <= kappa < float("inf"):
            raise OptionError(f"kappa {kappa} is not a weight (1 or more)")
        self.least = kappa == 1
        """Whether the scale is that of least squares."""
        usual = _kappa(bits) if bits is not None else min(_KAPPA_MOST, max(_KAPPA_LEAST, _KAPPA_SLOPE * divergence**2))
        # The least error at the bytes of the level: those are what the usual weight takes.
        self.kappa = usual if kappa is None or (self.least and bits is None) else kappa
        self.narrow_kappa = max(self.kappa, _KAPPA_NARROW) if kappa is None else self.kappa
        """Of tensors in a type of few bits."""
        self.bits, self.divergence = bits, divergence
        self.kind = "signed"
        self._zoo = ZooFacts(parameters=0, fixed_bits=0.0)
        self._chosen: dict[Key, Quantizer] = {}
        """Of each task's tensor; a single level is a mask's."""
        self._lossless: frozenset[Key] = frozenset()
        self._dropped: dict[Key, DropRates] = {}
        self._predicted: dict[int, float] = {}
        self._tolerable_bits = 0.0

    def prepare(self, zoo: ZooFacts) -> None:
        """Remember what the budget must cover."""
        self._zoo = zoo

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:  # noqa: ARG002 - tiles say which tasks there are
        """One: a histogram of magnitudes for every task and tensor."""
        return (_Histograms(self),)

    def as_it_comes(self, tensor: str) -> bool:
        """Whether no unit adds up what a tensor gives."""
        return read_as_it_comes(tensor, self._zoo.shapes)

    def vector_like(self, tensor: str) -> bool:
        """Whether a tensor is a norm's or a bias."""
        return len(self._zoo.shapes.get(tensor, (0, 0))) < 2

    def settle(self, tensors: Mapping[Key, _Tensor]) -> None:
        """Choose a precision for every task and tensor."""
        by_task: dict[int, dict[Key, _Tensor]] = {}
        for key, tensor in tensors.items():
            by_task.setdefault(key[0], {})[key] = tensor
        if self.bits is None:
            chosen = {key: choice for own in by_task.values() for key, choice in self._as_needed(own).items()}
        else:
            budget = self.bits * self._zoo.parameters - self._zoo.fixed_bits - ENTRY_BITS * len(tensors)
            chosen = self._within(tensors, budget)
        # Checked before anything is predicted: what loses nothing does no harm.
        self._lossless = self._without_loss(tensors, chosen)
        chosen |= {key: chosen[key]._replace(bits=tensors[key].lossless_bits, harm=0.0) for key in self._lossless}
        self._predicted = {task: predicted_divergence(self._parts(own, chosen)) for task, own in by_task.items()}
        if self.bits is not None and any(each > TOLERABLE for each in self._predicted.values()):
            enough = [choice for own in by_task.values() for choice in _to(own, TOLERABLE).values()]
            bits = math.fsum(choice.bits for choice in enough) + self._zoo.fixed_bits + ENTRY_BITS * len(tensors)
            self._tolerable_bits = bits / self._zoo.parameters
        chosen = {key: choice for key, choice in chosen.items() if key not in self._lossless}
        if self.least:
            chosen = self._least({key: tensors[key] for key in chosen}, chosen)
        dropped = {key: choice.ladder for key, choice in chosen.items() if choice.ladder <= _DROPPED}
        self._dropped = {key: tensors[key].rates[_DROPPED - ladder] for key, ladder in dropped.items()}
        self._chosen = {
            key: tensors[key].levels(choice.ladder)._replace(least=self.least)
            for key, choice in chosen.items()
            if key not in self._dropped
        }

    def _without_loss(self, tensors: Mapping[Key, _Tensor], chosen: Mapping[Key, PrecisionChoice]) -> frozenset[Key]:
        """Tensors that take about as little without loss; all of a task's that can, where they do together."""
        nearly = _NEARLY if self.bits is None else 1.0  # what is within a budget stays there
        cheap = {
            key
            for key, choice in chosen.items()
            if choice.ladder == _WITHOUT_LOSS or choice.bits >= nearly * tensors[key].lossless_bits
        }
        by_task: dict[int, list[Key]] = {}
        for key in chosen:
            if math.isfinite(tensors[key].lossless_bits):
                by_task.setdefault(key[0], []).append(key)
        for keys in by_task.values():
            lossless = math.fsum(tensors[key].lossless_bits for key in keys)
            if math.fsum(chosen[key].bits for key in keys) >= nearly * lossless:
                cheap.update(keys)
        return frozenset(cheap)

    def _within(self, tensors: Mapping[Key, _Tensor], budget: float) -> dict[Key, PrecisionChoice]:
        fixed = {key: tensor.fixed for key, tensor in tensors.items() if tensor.fixed is not None}
        if math.fsum(choice.bits for choice in fixed.values()) > _MOST_FIXED * budget:
            fixed = {}
        offers = {key: Choices.only(fixed[key]) if key in fixed else tensor.offers for key, tensor in tensors.items()}
        return allocate(offers, {key: tensor.weight for key, tensor in tensors.items()}, budget)

    def _as_needed(self, tensors: Mapping[Key, _Tensor]) -> dict[Key, PrecisionChoice]:
        return _to(tensors, self.divergence)

    @staticmethod
    def _parts(
        tensors: Mapping[Key, _Tensor], chosen: Mapping[Key, PrecisionChoice]
    ) -> list[tuple[TensorShare, float]]:
        return [(tensor.part, chosen[key].harm) for key, tensor in tensors.items()]

    @staticmethod
    def _least(tensors: Mapping[Key, _Tensor], chosen: Mapping[Key, PrecisionChoice]) -> dict[Key, PrecisionChoice]:
        """The least squared error at the bits of what was chosen."""
        offers = {
            key: tensor.least if tensor.fixed is None else Choices.only(tensor.fixed) for key, tensor in tensors.items()
        }
        bits = math.fsum(choice.bits for choice in chosen.values())
        return allocate(offers, {key: tensor.energy for key, tensor in tensors.items()}, bits)

    def predicted_divergence(self, task: int) -> float | None:
        """How far a task's outputs will be from the fine-tune's, in units of how far the base's are."""
        return self._predicted.get(task)

    def warning(self, task: int) -> str:
        """What must be said of a task; nothing, mostly."""
        share = self._predicted.get(task, 0.0)
        if share <= TOLERABLE:
            return ""
        why = "" if self.bits is None else f", at bits={self.bits:g}; bits={self._tolerable_bits:.2g} would do"
        return f"outputs are predicted to diverge {share:.2g} of the base's distance, more than {TOLERABLE}{why}"

    def lossless(self) -> Collection[Key]:
        """Tensors for which the precision that was chosen costs at least what losing nothing does."""
        return self._lossless

    def dropped(self) -> Mapping[Key, DropRates]:
        """Tensors that diverge least at their bits where some changes are dropped."""
        return self._dropped

    def vector(self, tile: Tile) -> Tensor:
        """v ≡ 1."""
        return torch.ones_like(tile.base)

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:  # noqa: ARG002 - v is known
        """Signs above the task's threshold for this tensor."""
        out = torch.zeros(tile.tau.shape, dtype=torch.uint8, device=tile.tau.device)
        for row, task in enumerate(tile.tasks):
            quantizer = self._chosen.get((task, tile.tensor))
            if quantizer is None or len(quantizer.bounds) > 1:
                continue
            tau = tile.tau[row]
            on = (tau.abs() >= self._threshold(quantizer, task, tile)) & (tau != 0)
            out[row] = on.to(torch.uint8) << (tau < 0).to(torch.uint8)
        return out

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule:
        """Thresholds; out of reach where a tensor is not masked."""
        quantizers = [self._chosen.get((task, tensor)) for task in tasks]
        masked = [
            levels if levels is not None and len(levels.bounds) == 1 else Quantizer((math.inf,))
            for levels in quantizers
        ]
        return Rule(
            vector="ones",
            mask="above",
            signed=True,
            limits=tuple(levels.bounds[0] for levels in masked),
            widths=tuple(levels.width for levels in masked),
            seeds=tuple(self.seed(task, tensor) for task in tasks),
        )

    def _threshold(self, quantizer: Quantizer, task: int, tile: Tile) -> Tensor | float:
        (low,) = quantizer.bounds
        if not quantizer.width:
            return low
        u = uniform(tile.start, len(tile.base), self.seed(task, tile.tensor))
        u *= np.float32(quantizer.width)
        u += np.float32(low)
        return torch.from_numpy(u).to(tile.tau.device)

    def seed(self, task: int, tensor: str) -> int:
        """By the task's place in the whole archive: errors of tasks that were added one by one cancel in a merge."""
        return seed_of(self._zoo.first + task, tensor)

    def levels(self, task: int, tensor: str) -> Quantizer | None:
        """Bounds of the levels where a tensor has several."""
        quantizer = self._chosen.get((task, tensor))
        return quantizer if quantizer is not None and len(quantizer.bounds) > 1 else None

    def scale(self, task: int, sums: Sequence[float]) -> float:  # noqa: ARG002 - sums suffice
        """The unbiased scale; at κ = 1 that of least squares."""
        return fitting_scale(sums, least=self.least)


def _to(tensors: Mapping[Key, _Tensor], divergence: float) -> dict[Key, PrecisionChoice]:
    """For the tensors of one task the fewest bits with which its outputs are predicted to come within a divergence."""
    most = divergence**2 * task_gain(tensor.part for tensor in tensors.values())
    offers = {
        key: Choices.only(tensor.fixed)
        if tensor.fixed is not None and tensor.fixed.harm <= max(most, _GOOD)
        else _from(tensor.offers, _ODD * most)
        for key, tensor in tensors.items()
    }
    weights = {key: tensor.weight for key, tensor in tensors.items()}
    return allocate_within(offers, weights, most * math.fsum(weights.values()))


_ODD = 4.0
"""How many times the mean harm one tensor may be done: what it changes may be all that some output sees."""
_GOOD = 0.05
"""Harm that fixed precisions are taken with whatever is wanted: they are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor whose magnitudes are counted."""

    offers: Choices
    steps: tuple[Floats, ...]
    """Where levels begin."""
    part: TensorShare
    weight: float
    rms: float
    energy: float
    least: Choices
    """Those with the scale of least squares: harm is the squared error."""
    fixed: PrecisionChoice | None
    """What is chosen beforehand."""
    lossless_bits: float
    """What it takes without loss, estimated; infinite where that is not known, for it is never less."""
    rates: Sequence[DropRates]
    """Of dropping some."""

    def levels(self, ladder: int) -> Quantizer:
        """What a choice means."""
        own = ladder - ladders()
        return Quantizer(tuple(self.steps[own].tolist())) if own >= 0 else levels_of(ladder, self.rms)


class _Bits(NamedTuple):
    """What a tensor takes without loss."""

    of_all: float = math.inf
    by_level: LevelCosts | None = None


class _Histograms(Statistic):
    """Magnitudes by task and tensor, and how coherent rows are; of a whole tensor, only what can be chosen is kept."""

    one_in = 8
    by_tensor = True
    by_magnitude = True
    by_row = True

    def __init__(self, recipe: Solo) -> None:
        self._recipe = recipe
        self._found: dict[Key, _Tensor] = {}

    def measure(self, tile: Tile) -> list[tuple[Key, Magnitudes]]:
        base = tile.base.to(torch.float32).cpu().numpy()
        rows = tile.tau.to(torch.float32).cpu().numpy()
        narrow = tile.narrow or (False,) * len(rows)
        return [
            each
            for task, row, few in zip(tile.tasks, rows, narrow, strict=True)
            for each in self.measure_counted(task, tile.tensor, magnitudes(row, base, narrow=few), tile.weight)
        ]

    def measure_counted(
        self, task: int, tensor: str, counted: Magnitudes, weight: float
    ) -> list[tuple[Key, Magnitudes]]:
        counted.scale(weight)
        return [((task, tensor), counted)]

    def measure_rows(self, task: int, tensor: str, gain: Callable[[], float]) -> list[tuple[Key, float]]:
        return [((task, tensor), 1.0 if self._recipe.as_it_comes(tensor) else gain())]

    def measure_lossless(
        self, task: int, tensor: str, bits: float, levels: LevelCosts | None
    ) -> list[tuple[Key, _Bits]]:
        return [((task, tensor), _Bits(bits, levels))]

    def condense(self, measured: Iterable[list[tuple[Key, Magnitudes | float | _Bits]]]) -> list[tuple[Key, _Tensor]]:
        histograms: dict[Key, Magnitudes] = {}
        gains: dict[Key, float] = {}
        lossless: dict[Key, _Bits] = {}
        for key, each in chain.from_iterable(measured):
            if isinstance(each, float):
                gains[key] = each
            elif isinstance(each, _Bits):
                lossless[key] = each
            elif key in histograms:
                histograms[key].add(each)
            else:
                histograms[key] = each
        return [
            (key, self._tensor(key[1], each, gains.get(key, 1.0), lossless.get(key, _Bits())))
            for key, each in histograms.items()
            if each.moved
        ]

    def _tensor(self, tensor: str, histogram: Magnitudes, coherent: float, lossless: _Bits) -> _Tensor:
        recipe, lossless_bits = self._recipe, lossless.of_all
        small = histogram.moved < _FINE and (recipe.bits is not None or recipe.vector_like(tensor))
        kappa = recipe.narrow_kappa if histogram.narrow else recipe.kappa
        offers = choices(histogram, kappa)
        finer: Steps = ([], np.zeros(0), np.zeros(0))
        if recipe.bits is None:
            finer = steps(histogram)
            offers = join(offers, biased(finer, histogram, kappa) if histogram.narrow else finer, ladders())
        if not len(offers):
            offers = Choices.only(_signs(histogram))
        rates: Sequence[DropRates] = ()
        if lossless.by_level is not None:
            rates, bits, harm = dropping.offers(lossless.by_level)
            offers = join_below(offers, bits, harm, _DROPPED)
        if math.isfinite(lossless_bits):
            offers = join(offers, ([], np.array([lossless_bits]), np.zeros(1)), _WITHOUT_LOSS)
        return _Tensor(
            offers=offers,
            steps=tuple(finer[0]),
            part=TensorShare(change=self._change(tensor, histogram), weight=histogram.weight, gain=coherent),
            weight=histogram.weight,
            rms=histogram.rms,
            energy=histogram.energy,
            least=_squared(join(choices(histogram), finer, ladders())) if recipe.least else offers,
            fixed=fine(histogram, _FINE_BOUND) or offers[-1] if small else None,
            lossless_bits=lossless_bits,
            rates=rates,
        )

    def _change(self, tensor: str, histogram: Magnitudes) -> float:
        """c² of a tensor. Of a norm or a bias each value acts by itself, and those that stayed count as well: in types
        of few bits a single one may have moved, from next to nothing, by all that it was.
        """
        whole = not self._recipe.vector_like(tensor)
        return histogram.change * (1.0 if whole else histogram.moved / histogram.among)

    def update(self, tile: tuple[Key, _Tensor]) -> None:
        key, tensor = tile
        self._found[key] = tensor

    def finish(self) -> None:
        self._recipe.settle(self._found)


def _kappa(rate: float) -> float:
    """What diverges least, or nearly, at so many bits."""
    if rate >= _FINE_RATE:
        return 1.0
    return min(_KAPPA_MOST, _KAPPA * max(1.0, _RATE / rate) ** 2)


def _squared(offered: Choices) -> Choices:
    """The same with the scale of least squares, which leaves h/(1 + h) where the unbiased one leaves h."""
    harm = offered.harm / (1 + offered.harm)
    best = hull_of(offered.bits, harm)
    return Choices(offered.ladders[best], offered.bits[best], harm[best])


def _from(offered: Choices, most: float) -> Choices:
    """Those with at most so much harm; the last, if none has."""
    first = int(np.searchsorted(-offered.harm, -most))
    return offered[min(first, len(offered) - 1) :]


def _signs(histogram: Magnitudes) -> PrecisionChoice:
    """The sign of everything that moved: for tensors with too few parameters to offer a choice."""
    return PrecisionChoice(0, 2 * histogram.moved, 1.0)
