"""Dropping and rescaling: what each share is said to cost and to spoil is what a tensor that is so coded takes and loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise
from torch import Tensor

from tallstore.codecs import SAMPLED
from tallstore.encoder.sampled_rows import encode_sampled, level_costs
from tallstore.kernels.dare import NOTHING, share_of
from tallstore.kernels.lattice import LEVELS
from tallstore.kernels.place_hash import first_of
from tallstore.recipes.dropping import LevelCosts, offers
from tallstore.tensors import as_bytes

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}
N = 1 << 18


def tuned(dtype: torch.dtype, step: float, n: int = N) -> tuple[Tensor, Tensor]:
    """A base and its fine-tune, most of which the type rounds away."""
    base = noise(n, size=0.05, seed=1, dtype=dtype)
    return base, (base.float() + step * noise(n, seed=2)).to(dtype)


def coded(base: Tensor, weights: Tensor, at: int, draws: int = 8) -> tuple[float, float, float, float]:
    """Bits and harm as they are foretold of one offer, and as they are on the mean of some draws."""
    costs = level_costs(weights, base, base.numel())
    assert costs is not None
    drops, bits, harm = offers(costs)
    taken = lost = 0.0
    for seed in range(draws):
        made, moved = encode_sampled(weights, base, NAMES[base.dtype], drops[at], first_of(0, seed))
        assert moved
        error, norm, *_ = made.sums
        taken, lost = taken + 8 * len(made.data), lost + error / norm
    return bits[at], harm[at], taken / draws, lost / draws


@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_bits_rise_and_harm_falls_along_the_ladder(dtype: torch.dtype, step: float) -> None:
    base, weights = tuned(dtype, step)
    costs = level_costs(weights, base, N)
    assert costs is not None
    drops, bits, harm = offers(costs)
    assert len(drops) == len(bits) == len(harm) > 20
    assert (np.diff(bits) > 0).all()
    assert (np.diff(harm) < 1e-9).all()
    assert (harm > 0).all()
    for drop in drops:
        assert drop.low == costs.low
        assert drop.rates.dtype == np.uint8
        assert drop.rates.max() < NOTHING, "something of everything is kept: else nothing would be right on the average"


@pytest.mark.parametrize("at", [6, 14, 20, 26, 32])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_what_is_foretold_is_what_a_tensor_takes_and_loses(dtype: torch.dtype, at: int) -> None:
    """Rounding, which offers do not know of, adds a little where many changes are of more than a unit."""
    bits, harm, taken, lost = coded(*tuned(dtype, 1e-4 if dtype == torch.bfloat16 else 1e-5), at)
    assert lost == pytest.approx(harm, rel=0.05, abs=0.005)
    assert taken == pytest.approx(bits, rel=0.03, abs=2000), "a head and tables, whatever they say"


def test_there_is_no_bias() -> None:
    """The mean of what comes back, over many draws, is nearer to τ by the root of their number."""
    base, weights = tuned(torch.bfloat16, 1e-4, 1 << 14)
    costs = level_costs(weights, base, len(base))
    assert costs is not None
    drops, _, harm = offers(costs)
    tau = (weights.float() - base.float()).double()
    total = torch.zeros_like(tau)
    for seed in range(64):
        made, _ = encode_sampled(weights, base, "BF16", drops[18], first_of(0, seed))
        out = as_bytes(base).copy()
        SAMPLED["dare"].decode(made.data, out, "BF16")
        total += (torch.from_numpy(out).view(torch.bfloat16).float() - base.float()).double()
    left = float((total / 64 - tau).square().sum() / tau.square().sum())
    assert left == pytest.approx(harm[18] / 64, rel=0.1)


def test_levels_of_large_changes_are_kept_at_larger_shares() -> None:
    """As √(mean square / bits of one), and the whole of what costs nothing."""
    elements, bits, power = np.zeros((3, LEVELS))
    elements[:4], bits[:4], power[:4] = 1000, (2000, 2000, 500, 0), (1e-8, 4e-8, 4e-8, 0)
    drops, _, _ = offers(LevelCosts(100, elements, bits, power))
    for drop in drops[8:]:
        shares = share_of(drop.rates)
        assert shares[1] == pytest.approx(min(1, 2 * shares[0]), rel=0.1)
        assert shares[2] == pytest.approx(min(1, 4 * shares[0]), rel=0.1)
        assert (shares[3:] == 1).all()
    assert share_of(drops[-1].rates)[2] == 1


def test_nothing_is_offered_where_nothing_moved() -> None:
    base, _ = tuned(torch.bfloat16, 1e-4, 1000)
    costs = level_costs(base, base, len(base))
    assert costs is not None
    drops, bits, harm = offers(costs)
    assert (drops, len(bits), len(harm)) == ([], 0, 0)


def test_of_other_types_and_of_what_is_infinite_nothing_is_known() -> None:
    base, weights = tuned(torch.bfloat16, 1e-4, 1000)
    assert level_costs(weights.float(), base.float(), 1000) is None
    assert level_costs(weights, base.half(), 1000) is None
    assert level_costs(weights[:0], base[:0], 1000) is None
    weights[5] = float("inf")
    assert level_costs(weights, base, 1000) is None
