"""Where bits do the most good: a choice for every task and tensor that meets a budget and loses the least function.

Each task vector is coded by itself, at one of several precisions (`quantizers`); `rate_distortion` says what each costs
and loses. One multiplier λ trades the two off for all tensors alike (Shoham and Gersho 1988): the budget decides λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tallstore.recipes.rate_distortion import Choices, PrecisionChoice

__all__ = ["ENTRY_BITS", "allocate", "allocate_within"]

_K = TypeVar("_K", bound=Hashable)
ENTRY_BITS = 8 * 380
"""What the header spends on a tensor."""


def allocate(offers: Mapping[_K, Choices], weights: Mapping[_K, float], budget: float) -> dict[_K, PrecisionChoice]:
    """For every key one choice, all within `budget` bits if that can be, at about the least weighted harm."""
    return _allocate(offers, weights, lambda bits, _: bits > budget, budget)


def allocate_within(
    offers: Mapping[_K, Choices], weights: Mapping[_K, float], most: float
) -> dict[_K, PrecisionChoice]:
    """For every key one choice, their weighted harm at most `most` if that can be, at the fewest bits."""
    return _allocate(offers, weights, lambda _, harm: harm <= most)


def _allocate(
    offers: Mapping[_K, Choices],
    weights: Mapping[_K, float],
    lower: Callable[[float, float], bool],
    budget: float | None = None,
) -> dict[_K, PrecisionChoice]:
    """The choices at one price of a bit: the greatest where `lower` is still so, or with a budget the least from which
    on it is not. What bits are left of a budget then buys single tensors the next finer choice, where these suffice.

    `lower` is asked with the bits and the weighted harm that a price makes; it is so for low prices, if for any.
    """
    if not offers:
        return {}
    lengths = [len(offered) for offered in offers.values()]
    starts = np.cumsum([0, *lengths[:-1]])
    bits = np.concatenate([offered.bits for offered in offers.values()])
    harm = np.concatenate([offered.harm for offered in offers.values()])
    harm *= np.repeat([weights[key] for key in offers], lengths)

    def at(multiplier: float) -> npt.NDArray[np.intp]:
        """The best choice of each key: the first, if several are."""
        price = harm + multiplier * bits
        (best,) = np.nonzero(price == np.repeat(np.minimum.reduceat(price, starts), lengths))
        chosen: npt.NDArray[np.intp] = best[np.searchsorted(best, starts)]
        return chosen

    low, high = _PRICES
    for _ in range(60):
        middle = (low + high) / 2
        picked = at(2.0**middle)
        low, high = (middle, high) if lower(math.fsum(bits[picked]), math.fsum(harm[picked])) else (low, middle)
    best = at(2.0 ** (low if budget is None else high))
    if budget is not None:
        left = budget - math.fsum(bits[best])
        (finer,) = np.nonzero(best + 1 < starts + lengths)
        more, less = (values[best[finer] + 1] - values[best[finer]] for values in (bits, harm))
        for number in np.argsort(less / np.maximum(more, 1e-300), kind="stable").tolist():
            if more[number] <= left:
                best[finer[number]] += 1
                left -= float(more[number])
    return {key: offered[i] for (key, offered), i in zip(offers.items(), (best - starts).tolist(), strict=True)}


_PRICES = (-60.0, 60.0)
"""Binary logarithms of the prices of a bit that are tried."""
