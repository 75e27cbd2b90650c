"""Dropping, rescaling and rounding: what each share is said to cost and to spoil is what a tensor that is so coded takes and loses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import noise
from torch import Tensor

from tallstore.codecs import SAMPLED
from tallstore.encoder.sampled_rows import encode_sampled, level_costs
from tallstore.kernels.conversion import from_bf16
from tallstore.kernels.dare import MOST, SHARES, TYPES, steps, units
from tallstore.kernels.lattice import LATTICES, LEVELS
from tallstore.recipes.sampled_changes import LevelCosts, counted, offers
from tallstore.tensors import as_bytes

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
N = 1 << 18


def tuned(dtype: torch.dtype, step: float, n: int = N) -> tuple[Tensor, Tensor]:
    """A base and its fine-tune, most of which a type of few bits rounds away."""
    base = noise(n, size=0.05, seed=1, dtype=dtype)
    return base, (base.float() + step * noise(n, seed=2)).to(dtype)


def costs_of(weights: Tensor, base: Tensor) -> LevelCosts:
    """Without products, which what is no matrix has not."""
    (costs,) = level_costs(weights, base, (1, base.numel()), base.numel(), 1 << 20)
    return costs


def coded(base: Tensor, weights: Tensor, at: int, draws: int = 8) -> tuple[float, float, float, float]:
    """Bits and harm as they are foretold of one offer, and as they are on the mean of some draws."""
    costs = costs_of(weights, base)
    drops, bits, harm = offers([costs])
    taken = lost = 0.0
    for seed in range(draws):
        made, moved = encode_sampled(weights, base, NAMES[base.dtype], drops[at], 0, seed)
        assert moved
        error, norm, *_ = made.sums
        taken, lost = taken + 8 * len(made.data), lost + error / norm
    return bits[at], harm[at], taken / draws, lost / draws


@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_bits_rise_and_harm_falls_along_the_ladder(dtype: torch.dtype, step: float) -> None:
    base, weights = tuned(dtype, step)
    costs = costs_of(weights, base)
    drops, bits, harm = offers([costs])
    assert len(drops) == len(bits) == len(harm) > 20
    assert (np.diff(bits) > 0).all()
    assert (np.diff(harm) < 1e-9).all()
    assert (harm > 0).all()
    for drop, _ in drops:
        assert drop.low == costs.low
        assert drop.shares.dtype == drop.widths.dtype == np.uint16
        assert (drop.widths <= 0x7F7F).all()


@pytest.mark.parametrize("at", [6, 14, 20, 26, -8, -1])
@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_what_is_foretold_is_what_a_tensor_takes_and_loses(dtype: torch.dtype, step: float, at: int) -> None:
    """Contexts, of which there are not enough for all levels and classes, make a few percent."""
    bits, harm, taken, lost = coded(*tuned(dtype, step), at)
    assert lost == pytest.approx(harm, rel=0.05 if harm < 50 else 0.1, abs=0.005)
    assert taken == pytest.approx(bits, rel=0.07, abs=2500), "a head and tables, whatever they say"


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e20])
def test_nothing_that_is_lost_counts_as_exact(size: float, infinite: bool) -> None:
    """Where squares are beyond float32, as where they are not; what is infinite comes back bit for bit."""
    base = noise(4096, seed=1).mul(size).bfloat16()
    weights = (base.float() * (1 + 0.02 * noise(4096, seed=2))).bfloat16()
    costs = costs_of(weights, base)
    drops, *_ = offers([costs])
    if infinite:
        weights[7] = float("inf")
    made, moved = encode_sampled(weights, base, "BF16", drops[len(drops) // 2], 0, 0)
    assert moved
    assert (made.sums[0] == 0) == infinite


def test_there_is_no_bias() -> None:
    """The mean of what comes back, over many draws, is nearer to τ by the root of their number."""
    base, weights = tuned(torch.bfloat16, 1e-4, 1 << 14)
    costs = costs_of(weights, base)
    drops, _, harm = offers([costs])
    tau = (weights.float() - base.float()).double()
    total = torch.zeros_like(tau)
    for seed in range(64):
        made, _ = encode_sampled(weights, base, "BF16", drops[18], 0, seed)
        out = as_bytes(base).copy()
        SAMPLED["dare"].decode(made.data, out, "BF16")
        total += (torch.from_numpy(out).view(torch.bfloat16).float() - base.float()).double()
    left = float((total / 64 - tau).square().sum() / tau.square().sum())
    assert left == pytest.approx(harm[18] / 64, rel=0.1)


def test_changes_of_one_size_are_rounded_to_it() -> None:
    """Steps as large as most changes, shares that rise with the price, and the whole of what costs nothing."""
    levels = np.repeat(np.arange(4, dtype=np.uint8), 1000)
    unit = units("BF16", 100)[levels]
    change = np.where(np.arange(4000) % 2 == 0, unit * np.array([1, 2, 8, 0])[levels], 0).astype(np.float32)
    drops, _, harm = offers([counted("BF16", 100, levels, change, 100.0, units("BF16", 100))])
    shares = np.array([drop.shares[:3] for drop, _ in drops]).astype(int)
    assert (np.diff(shares, axis=0) >= -1).all()
    assert all((drop.shares[3:] == SHARES - 1).all() for drop, _ in drops)
    assert (steps(drops[-1].sampling)[:3] / unit[::1000][:3]).tolist() == [1, 2, 8], (
        "half of all move, and none is rounded"
    )
    assert harm[-1] < 0.03
    assert shares[-1, 2] == SHARES - 1
    assert (shares[-1, :2] * np.array([16 * 2, 8]) / SHARES).min() > 1, "as the root of what it spoils"


def test_a_sample_is_counted_by_level() -> None:
    levels = np.array([0, 0, 1, 1, 1, 3], np.uint8)
    change = np.array([0.25, 0, 2, 2, 2 * 31, 0], np.float32) * np.float32(2.0**-10)
    costs = counted("F16", 5, levels, change, 2.0, units("F16", 5))
    assert (units("F16", 5)[:2] * 2**10).tolist() == [2.0**-10, 2.0**-9]
    assert costs.elements.tolist() == [2, 3, 0, 1] + [0] * 12
    assert costs.power[:4].tolist() == [2**16 / 2, (2 * 2**20 + 31**2 * 2**20) / 3, 0, 0]
    assert costs.counts.tolist() == [1, 2, 1]
    assert costs.bins.dtype == np.int16


def test_levels_that_were_not_seen_to_move_are_kept_whole_and_not_too_fine() -> None:
    """A multiple has an end: what moves there unseen is likely to move as far as elsewhere."""
    levels, change = np.array([12, 12], np.uint8), np.array([2.0**-10, 0], np.float32)
    drops, _, _ = offers([counted("BF16", 100, levels, change, 1.0, units("BF16", 100))])
    unit = units("BF16", 100)
    for drop, _ in drops:
        width = from_bf16(drop.widths).astype(float)
        still = np.arange(LEVELS) != 12
        assert (drop.shares[still] == SHARES - 1).all()
        assert (width[still] >= unit[still]).all()
        assert (width[still] <= np.maximum(unit[still], 2.0**-20)).all()
        assert (2.0**-10 / width[still]).max() < MOST / 4


def test_nothing_is_offered_where_nothing_moved() -> None:
    base, _ = tuned(torch.bfloat16, 1e-4, 1000)
    costs = costs_of(base, base)
    drops, bits, harm = offers([costs])
    assert (drops, len(bits), len(harm)) == ([], 0, 0)


def test_of_other_types_and_of_what_is_infinite_nothing_is_known() -> None:
    base, weights = tuned(torch.bfloat16, 1e-4, 1000)
    shape = (1, 1000)
    assert level_costs(weights.double(), base.double(), shape, 1000, 1000) == []
    assert level_costs(weights, base.half(), shape, 1000, 1000) == []
    assert level_costs(weights.float(), base, shape, 1000, 1000) == []
    assert level_costs(weights[:0], base[:0], shape, 1000, 1000) == []
    weights[5] = float("inf")
    assert level_costs(weights, base, shape, 1000, 1000) == []
    assert level_costs(weights.float(), base.float(), shape, 1000, 1000) == []


@pytest.mark.parametrize("size", [2.0**-60, 2.0**-20, 1.0, 2.0**30])
@pytest.mark.parametrize("dtype", TYPES)
def test_changes_of_any_size_are_offered_something_or_nothing(dtype: str, size: float) -> None:
    """Far below what the lowest exponent has units for, and far above."""
    change = np.array([size, 0, 3 * size, 0], np.float32)
    for low in (0, 20 if dtype == "F16" else 100, LATTICES[dtype].mask):
        levels = np.array([0, 1, 15, 15], np.uint8)
        drops, bits, harm = offers([counted(dtype, low, levels, change, 10.0, units(dtype, low))])
        assert len(drops) == len(bits) == len(harm)
        assert np.isfinite(bits).all()
        assert np.isfinite(harm).all()
        for drop, _ in drops:
            assert ((drop.widths > 0) & (drop.widths <= 0x7F7F)).all()


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-4, 1.0, 1e20, 1e30])
def test_float32_has_one_level_whose_unit_is_as_large_as_its_changes(size: float) -> None:
    """So that they lie within what is counted, whatever their size; squares that float32 has not, too."""
    base = noise(4096, size=size, seed=1)
    weights = base + noise(4096, size=0.01 * size, seed=2)
    (costs,) = level_costs(weights, base, (1, 4096), 4096, 4096)
    assert (costs.low, costs.dtype, costs.elements.tolist()) == (255, "F32", [4096] + [0] * 15)
    change = (weights.double() - base.double()).numpy()
    rms = float(np.sqrt(np.square(change).mean()))
    assert set(costs.unit.tolist()) == {max(2.0 ** np.ceil(np.log2(rms)), 2.0**-100)}
    assert costs.power[0] == pytest.approx((rms / costs.unit[0]) ** 2, rel=1e-3)
    drops, bits, harm = offers([costs])
    assert len(drops) > 20 or size < 2.0**-100
    assert np.isfinite(bits).all()
    assert np.isfinite(harm).all()


def test_changes_that_are_unlike_their_neighbours_are_rounded_to_the_nearest() -> None:
    """Not so where whole runs moved alike; nor in types of few bits, where many are equal."""
    base = noise(64 * 128, size=0.05, seed=1)
    own = noise(64, 128, size=1e-3, seed=2)
    alike = own.cumsum(1)
    for change, due in ((own, True), (alike, False), (-alike, False), (own * torch.tensor([1, -1]).repeat(64), True)):
        weights = base + change.reshape(-1)
        for costs in level_costs(weights, base, (64, 128), 128, 1 << 20):
            if not costs.step:
                assert costs.nearest is due
            assert all(drop.sampling.nearest is costs.nearest for drop in offers([costs])[0])
        narrow = level_costs(weights.bfloat16(), base.bfloat16(), (64, 128), 128, 1 << 20)
        assert not any(costs.nearest for costs in narrow)


def test_rounding_to_the_nearest_spares_noise_the_more_the_finer_steps_are() -> None:
    base, weights = tuned(torch.float32, 1e-3)
    costs = costs_of(weights, base)
    assert costs.nearest
    (_, bits, harm), (_, other_bits, other_harm) = offers([costs]), offers([replace(costs, nearest=False)])
    rates = np.array([0.5, 1.0, 2.0, 3.0]) * N
    part = np.interp(rates, bits, harm) / np.interp(rates, other_bits, other_harm)
    assert (part < 1).all()
    assert (np.diff(part) < 0).all()
    assert part[-1] < 0.7
