"""What each tensor of a task is offered: precisions with their bits and their harm, from what a sample of it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from tallstore.recipes import sampled_changes
from tallstore.recipes.base import Statistic, Tile
from tallstore.recipes.divergence import TensorShare, read_as_it_comes
from tallstore.recipes.histogram import Floats, Magnitudes, magnitudes
from tallstore.recipes.quantizers import Quantizer, ladders, levels_of
from tallstore.recipes.rate_distortion import Choices, PrecisionChoice, choices, fine, hull_of
from tallstore.recipes.sampled_changes import LevelCosts, SampledPrecision
from tallstore.recipes.sensitivity import sensitivity
from tallstore.recipes.steps import biased, join, join_below, steps

__all__ = ["DROPPED", "WITHOUT_LOSS", "Key", "OfferOptions", "TensorOffers", "TensorStatistics"]

Key = tuple[int, str]
"""A task and a base tensor."""
WITHOUT_LOSS = -1
"""The ladder of losing nothing: a choice among others, where it is known what it takes."""
DROPPED = -2
"""The first of those of dropping some changes; the next ones are below."""
_FINE = 8192
"""Norms and biases with fewer parameters that moved get a fixed fine precision: cheap, and they matter much."""
_FINE_BOUND = 0.4
"""Where its first level begins, in root mean squares."""


@dataclass(frozen=True, kw_only=True)
class OfferOptions:
    """What offers depend on beside the tensor."""

    kappa: float
    """How many times worse bias is than noise."""
    narrow_kappa: float
    """Of tensors in a type of few bits."""
    least: bool
    """Whether offers with the scale of least squares are wanted, too."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the base's tensors."""

    def vector_like(self, tensor: str) -> bool:
        """Whether a tensor is a norm's or a bias."""
        return len(self.shapes.get(tensor, (0, 0))) < 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorOffers:
    """A tensor whose magnitudes are counted."""

    offers: Choices
    steps: tuple[Floats, ...]
    """Where levels begin."""
    part: TensorShare
    weight: float
    sensitivity: float
    """How many times as much noise in it counts: see there."""
    rms: float
    energy: float
    least: Choices
    """Those with the scale of least squares: harm is the squared error."""
    fixed: PrecisionChoice | None
    """What is chosen beforehand, while it is affordable."""
    lossless_bits: float
    """What it takes without loss, estimated; infinite where that is not known, for it is never less."""
    rates: Sequence[SampledPrecision]
    """Of dropping some."""
    narrow: bool
    """Whether it is of a type of few bits."""

    def levels(self, ladder: int) -> Quantizer:
        """What a choice means."""
        own = ladder - ladders()
        return Quantizer(tuple(self.steps[own].tolist())) if own >= 0 else levels_of(ladder, self.rms)


class _Bits(NamedTuple):
    """What a tensor takes without loss."""

    of_all: float = math.inf
    by_level: Sequence[LevelCosts] = ()


class TensorStatistics(Statistic):
    """Magnitudes by task and tensor, and how coherent rows are; of a whole tensor, only what can be chosen is kept."""

    one_in = 8
    by_tensor = True
    by_magnitude = True
    by_row = True

    def __init__(self, options: OfferOptions, settle: Callable[[Mapping[Key, TensorOffers]], None]) -> None:
        """`settle` is called once, when all tensors are known."""
        self._options, self._settle = options, settle
        self._found: dict[Key, TensorOffers] = {}

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
        return [((task, tensor), 1.0 if read_as_it_comes(tensor, self._options.shapes) else gain())]

    def measure_changes(
        self, task: int, tensor: str, bits: float | None, levels: Sequence[LevelCosts]
    ) -> list[tuple[Key, _Bits]]:
        return [((task, tensor), _Bits(math.inf if bits is None else bits, levels))]

    def condense(
        self, measured: Iterable[list[tuple[Key, Magnitudes | float | _Bits]]]
    ) -> list[tuple[Key, TensorOffers]]:
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

    def _tensor(self, tensor: str, histogram: Magnitudes, coherent: float, lossless: _Bits) -> TensorOffers:
        options, lossless_bits = self._options, lossless.of_all
        small = histogram.moved < _FINE and options.vector_like(tensor)
        kappa = options.narrow_kappa if histogram.narrow else options.kappa
        offers = choices(histogram, kappa)
        finer = steps(histogram)
        offers = join(offers, biased(finer, histogram, kappa), ladders())
        if not len(offers):
            offers = Choices.only(_signs(histogram))
        rates: Sequence[SampledPrecision] = ()
        if lossless.by_level:
            # With the scale of least squares none of these is taken: changes as they come say what the level costs.
            rates, bits, harm = sampled_changes.offers(lossless.by_level[: 1 if options.least else None])
            offers = join_below(offers, bits, harm, DROPPED)
        if math.isfinite(lossless_bits):
            offers = join(offers, ([], np.array([lossless_bits]), np.zeros(1)), WITHOUT_LOSS)
        least = _squared(join(choices(histogram), finer, ladders())) if options.least else offers
        return TensorOffers(
            offers=offers,
            steps=tuple(finer[0]),
            part=TensorShare(change=self._change(tensor, histogram), weight=histogram.weight, gain=coherent),
            weight=histogram.weight,
            sensitivity=sensitivity(tensor, options.shapes.get(tensor, (0, 0)), options.shapes),
            rms=histogram.rms,
            energy=histogram.energy,
            least=least if len(least) else offers,
            fixed=fine(histogram, _FINE_BOUND) or offers[-1] if small else None,
            lossless_bits=lossless_bits,
            rates=rates,
            narrow=histogram.narrow,
        )

    def _change(self, tensor: str, histogram: Magnitudes) -> float:
        """c² of a tensor. Of a norm or a bias each value acts by itself, and those that stayed count as well: in types
        of few bits a single one may have moved, from next to nothing, by all that it was.
        """
        whole = not self._options.vector_like(tensor)
        return histogram.change * (1.0 if whole else histogram.moved / histogram.among)

    def update(self, condensed: tuple[Key, TensorOffers], /) -> None:
        key, offers = condensed
        self._found[key] = offers

    def finish(self) -> None:
        self._settle(self._found)


def _squared(offered: Choices) -> Choices:
    """The same with the scale of least squares, which leaves h/(1 + h) where the unbiased one leaves h."""
    harm = offered.harm / (1 + offered.harm)
    best = hull_of(offered.bits, harm)
    return Choices(offered.ladders[best], offered.bits[best], harm[best])


def _signs(histogram: Magnitudes) -> PrecisionChoice:
    """The sign of everything that moved: for tensors with too few parameters to offer a choice."""
    return PrecisionChoice(0, 2 * histogram.moved, 1.0)
