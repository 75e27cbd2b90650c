"""`solo`: every task vector coded by itself, as finely as a quality or a budget of bits asks for; nothing is shared.

Each tensor becomes a signed mask over v ≡ 1 (its parameters above a threshold, by sign), or a few levels of its own
where bits are plenty, or a share of its changes (see `sampled_changes`); in types of few bits perhaps all of them,
without loss. What diverges least at its price is taken, tensor by tensor. Of masks one scale a chunk makes the result
unbiased: with w the marks,

    s = ⟨τ, τ⟩ / ⟨τ, w⟩,   so that   ⟨s·w, τ⟩ = ⟨τ, τ⟩

The error is then larger than with the scale of least squares, s = ⟨τ, w⟩/⟨w, w⟩, which shrinks what it is unsure of;
but a layer adds up thousands of parameters, so that errors without bias cancel where shrinkage adds up to a task that
was tuned less. With few bits that holds one step further: where marks are drawn at random, more likely the larger |τ|
is, every parameter is right on the average, and not the tensor alone. `benchmarks/README.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule
from tallstore.recipes.allocation import ENTRY_BITS, allocate, allocate_within
from tallstore.recipes.base import Recipe, Statistic, Tile, ZooFacts
from tallstore.recipes.dither import seed_of, uniform
from tallstore.recipes.divergence import TensorShare, predicted_divergence, task_gain
from tallstore.recipes.quality_levels import DEFAULT, NEARLY, QUALITIES, TOLERABLE, QualityLevel
from tallstore.recipes.quantizers import Quantizer, fitting_scale
from tallstore.recipes.rate_distortion import Choices, PrecisionChoice
from tallstore.recipes.sampled_changes import SampledPrecision
from tallstore.recipes.tensor_offers import DROPPED, WITHOUT_LOSS, Key, OfferOptions, TensorOffers, TensorStatistics

__all__ = ["Solo"]

_RATE = 0.6
_KAPPA, _KAPPA_MOST = 10.0, 19.0
"""Where bits are given, κ at this rate and above; it rises as the square below, to a limit. That keeps it near what
diverges least: see `benchmarks/README.md`."""
_KAPPA_NARROW = 100.0
"""In types of few bits at least this, whatever the rate, which is as good as no bias at all: there many magnitudes are
equal, a unit in the last place of weights of one size, and what leaves them out, or takes them all, errs for each of
them in the same way. Marks with dither are right of them all and cost no more, for the type has nothing between two
units (see `rounded_levels`). At the same bits the KL on a fine-tune's own task is a ninth of what it is at 19, and on
other text about the same: see `benchmarks/results/accuracy.md`."""
_LONG = 1 << 12
"""Elements of a tensor from which on levels are coded given the dither that drew them."""
_MOST_FIXED = 0.5
"""Share of given bits that fixed precisions may take; where they would take more, all tensors are chosen for alike."""


class Solo(Recipe):
    """Signs above a threshold, or a few levels, by task and tensor.

    As precise as it takes for outputs to come as near to the fine-tune's as `level` says, predicted, or without loss
    where that takes little more; or what diverges least within `bits` for every parameter, moved or not,
    with all but the base in it. `kappa` says how many times worse than noise it is to be wrong in the same way for
    equal |τ|: 1 makes the least squared error, more lets marks be drawn at random.
    """

    id = "solo"
    vector_codec = "ones"
    shared = False

    def __init__(
        self,
        bits: float | None = None,
        level: QualityLevel = QUALITIES[DEFAULT],
        kappa: float | None = None,
    ) -> None:
        if bits is not None and not 0 < bits <= 32:
            raise OptionError(f"bits {bits} is not a number of bits a parameter and task (above 0, at most 32)")
        if kappa is not None and not 1 <= kappa < float("inf"):
            raise OptionError(f"kappa {kappa} is not a weight (1 or more)")
        self.least = kappa == 1
        """Whether the scale is that of least squares."""
        usual = _kappa(bits) if bits is not None else level.kappa
        # The least error at the bytes of the level: those are what the usual weight takes.
        self.kappa = usual if kappa is None or (self.least and bits is None) else kappa
        self.narrow_kappa = max(self.kappa, _KAPPA_NARROW) if kappa is None else self.kappa
        """Of tensors in a type of few bits."""
        self.bits, self.divergence = bits, level.divergence
        self.lossless_from = level.lossless_from if bits is None else 1.0  # what is within a budget stays there
        self.kind = "signed"
        self._zoo = ZooFacts(parameters=0, fixed_bits=0.0)
        self._chosen: dict[Key, Quantizer] = {}
        """Of each task's tensor; a single level is a mask's."""
        self._lossless: frozenset[Key] = frozenset()
        self._lossless_tasks: frozenset[int] = frozenset()
        self._dropped: dict[Key, SampledPrecision] = {}
        self._predicted: dict[int, float] = {}
        self._tolerable_bits = 0.0

    def prepare(self, zoo: ZooFacts) -> None:
        """Remember what the budget must cover."""
        self._zoo = zoo

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:  # noqa: ARG002 - tiles say which tasks there are
        """One: magnitudes of every task and tensor, how coherent rows are, and what other codings would take."""
        options = OfferOptions(
            kappa=self.kappa,
            narrow_kappa=self.narrow_kappa,
            least=self.least,
            shapes=self._zoo.shapes,
        )
        return (TensorStatistics(options, self.settle),)

    def settle(self, tensors: Mapping[Key, TensorOffers]) -> None:
        """Choose a precision for every task and tensor."""
        by_task: dict[int, dict[Key, TensorOffers]] = {}
        for key, tensor in tensors.items():
            by_task.setdefault(key[0], {})[key] = tensor
        if self.bits is None:
            chosen = {key: choice for own in by_task.values() for key, choice in self._as_needed(own).items()}
        else:
            budget = self.bits * self._zoo.parameters - self._zoo.fixed_bits - ENTRY_BITS * len(tensors)
            chosen = self._within(tensors, budget)
        # Checked before anything is predicted: what loses nothing does no harm.
        self._lossless_tasks = frozenset(task for task, own in by_task.items() if self._bit_for_bit(own, chosen))
        self._lossless = self._without_loss(by_task, chosen)
        chosen |= {key: chosen[key]._replace(bits=tensors[key].lossless_bits, harm=0.0) for key in self._lossless}
        chosen |= {key: chosen[key]._replace(harm=0.0) for key in chosen if key[0] in self._lossless_tasks}
        self._predicted = {task: predicted_divergence(self._parts(own, chosen)) for task, own in by_task.items()}
        if self.bits is not None and any(each > TOLERABLE for each in self._predicted.values()):
            enough = [choice for own in by_task.values() for choice in _to(own, TOLERABLE).values()]
            bits = math.fsum(choice.bits for choice in enough) + self._zoo.fixed_bits + ENTRY_BITS * len(tensors)
            self._tolerable_bits = bits / self._zoo.parameters
        chosen = {key: choice for key, choice in chosen.items() if key not in self._lossless}
        if self.least:
            chosen = self._least({key: tensors[key] for key in chosen}, chosen)
        self._dropped = {
            key: tensors[key].rates[DROPPED - choice.ladder]
            for key, choice in chosen.items()
            if choice.ladder <= DROPPED
        }
        self._chosen = {
            key: tensors[key].levels(choice.ladder)._replace(least=self.least, known=self._is_long(key[1]))
            for key, choice in chosen.items()
            if key not in self._dropped
        }

    def _is_long(self, tensor: str) -> bool:
        return math.prod(self._zoo.shapes.get(tensor, (_LONG,))) >= _LONG

    def _without_loss(
        self, by_task: Mapping[int, Mapping[Key, TensorOffers]], chosen: Mapping[Key, PrecisionChoice]
    ) -> frozenset[Key]:
        """Tensors that take about as little without loss; all of a task's that can, where they do together."""
        nearly = NEARLY if self.bits is None else 1.0
        cheap: set[Key] = set()
        for task, own in by_task.items():
            known = {key: tensor.lossless_bits for key, tensor in own.items() if math.isfinite(tensor.lossless_bits)}
            whole = math.fsum(chosen[key].bits for key in known) >= nearly * math.fsum(known.values())
            cheap.update(
                key
                for key, bits in known.items()
                if whole
                or task in self._lossless_tasks
                or chosen[key].ladder == WITHOUT_LOSS
                or chosen[key].bits >= nearly * bits
            )
        return frozenset(cheap)

    def _bit_for_bit(self, own: Mapping[Key, TensorOffers], chosen: Mapping[Key, PrecisionChoice]) -> bool:
        """Whether all tensors of a task are to be as they were; vectors, of which that takes next to nothing, too."""
        known = [key for key, tensor in own.items() if math.isfinite(tensor.lossless_bits)]
        if not known or not all(tensor.narrow for tensor in own.values()):
            return False
        lossless = math.fsum(own[key].lossless_bits for key in known)
        return math.fsum(chosen[key].bits for key in known) >= self.lossless_from * lossless

    def _within(self, tensors: Mapping[Key, TensorOffers], budget: float) -> dict[Key, PrecisionChoice]:
        fixed = {key: tensor.fixed for key, tensor in tensors.items() if tensor.fixed is not None}
        if math.fsum(choice.bits for choice in fixed.values()) > _MOST_FIXED * budget:
            fixed = {}
        return _shared_out(tensors, {key: tensor.offers for key, tensor in tensors.items()}, fixed, budget)

    def _as_needed(self, tensors: Mapping[Key, TensorOffers]) -> dict[Key, PrecisionChoice]:
        return _to(tensors, self.divergence)

    @staticmethod
    def _parts(
        tensors: Mapping[Key, TensorOffers], chosen: Mapping[Key, PrecisionChoice]
    ) -> list[tuple[TensorShare, float]]:
        return [(tensor.part, chosen[key].harm) for key, tensor in tensors.items()]

    @staticmethod
    def _least(
        tensors: Mapping[Key, TensorOffers], chosen: Mapping[Key, PrecisionChoice]
    ) -> dict[Key, PrecisionChoice]:
        """The least squared error at the bits of what was chosen."""
        offers = {
            key: tensor.least if tensor.fixed is None else tensor.least.from_on(tensor.fixed)
            for key, tensor in tensors.items()
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
        return f"outputs are predicted to diverge by {share:.2g} times the base's distance, more than {TOLERABLE}{why}"

    def lossless(self) -> Collection[Key]:
        """Tensors for which the precision that was chosen costs at least what losing nothing does."""
        return self._lossless

    def lossless_tasks(self) -> Collection[int]:
        """Those in types of few bits that take little more without loss than with some."""
        return self._lossless_tasks

    def dropped(self) -> Mapping[Key, SampledPrecision]:
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


def _to(tensors: Mapping[Key, TensorOffers], divergence: float) -> dict[Key, PrecisionChoice]:
    """For the tensors of one task the fewest bits with which its outputs are predicted to come within a divergence."""
    most = divergence**2 * task_gain(tensor.part for tensor in tensors.values())
    fixed = {
        key: tensor.fixed
        for key, tensor in tensors.items()
        if tensor.fixed is not None and tensor.fixed.harm <= max(most, _GOOD)
    }
    offers = {key: _from(tensor.offers, _ODD * most) for key, tensor in tensors.items()}
    known = {key: Choices.only(choice) for key, choice in fixed.items()}
    weights = {key: tensor.weight for key, tensor in tensors.items()}
    enough = allocate_within({**offers, **known}, weights, most * math.fsum(weights.values()))
    # What is predicted says nothing of what tensors are for: the bits that it takes are shared out by that.
    return _shared_out(tensors, offers, fixed, math.fsum(choice.bits for choice in enough.values()))


def _shared_out(
    tensors: Mapping[Key, TensorOffers],
    offers: Mapping[Key, Choices],
    fixed: Mapping[Key, PrecisionChoice],
    budget: float,
) -> dict[Key, PrecisionChoice]:
    """The choices that diverge least within so many bits; of vectors the fixed ones or finer ones."""
    parts: dict[int, list[TensorShare]] = {}
    for key, tensor in tensors.items():
        parts.setdefault(key[0], []).append(tensor.part)
    gain = {task: task_gain(own) for task, own in parts.items()}
    finer = {key: tensors[key].offers.from_on(choice) for key, choice in fixed.items()}
    weights = {key: tensor.weight * tensor.sensitivity for key, tensor in tensors.items()}
    for key in fixed:  # their noise averages over nothing
        weights[key] *= gain[key[0]]
    return allocate({**offers, **finer}, weights, budget)


_ODD = 4.0
"""How many times the mean harm one tensor may be done: what it changes may be all that some output sees."""
_GOOD = 0.05
"""Harm that fixed precisions are taken with whatever is wanted: they are few."""


def _kappa(rate: float) -> float:
    """What diverges least, or nearly, at so many bits."""
    return min(_KAPPA_MOST, _KAPPA * max(1.0, _RATE / rate) ** 2)


def _from(offered: Choices, most: float) -> Choices:
    """Those with at most so much harm; the last, if none has."""
    first = int(np.searchsorted(-offered.harm, -most))
    return offered[min(first, len(offered) - 1) :]
