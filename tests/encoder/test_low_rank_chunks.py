"""Chunks of which a product is told first, and what tensors are offered with one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from planted import Singles, planted
from torch import Tensor

from tallstore.codecs.dare import Added
from tallstore.encoder.sampled_rows import encode_sampled, level_costs
from tallstore.kernels.dare import TYPES
from tallstore.kernels.low_rank import LowRank
from tallstore.recipes.coherence import picked
from tallstore.recipes.common_columns import find_columns
from tallstore.recipes.sampled_changes import LevelCosts, offers
from tallstore.tensors import TORCH


def pair(changes: Singles, dtype: str, seed: int = 9) -> tuple[Tensor, Tensor]:
    """A base and a task, flat."""
    drawn = np.random.default_rng(seed).standard_normal(changes.size).astype(np.float32) * np.float32(0.05)
    base = torch.from_numpy(drawn).to(TORCH[dtype])
    return base, (base.float() + torch.from_numpy(changes.reshape(-1))).to(TORCH[dtype])


def told(weights: Tensor, base: Tensor, shape: tuple[int, int], step: float) -> LowRank | None:
    """What is told of all rows, in one chunk."""
    changes = (weights.float() - base.float()).numpy().reshape(shape)
    columns = find_columns([changes], step, shape[0], changes.size)
    return None if columns is None else columns.rows_of(changes, 0, changes.size)


# Offers.


def costs_of(changes: Singles, dtype: str, chunk: int = 1 << 20) -> tuple[list[LevelCosts], Tensor, Tensor]:
    """Of a few rows of a tensor; with the whole of it."""
    base, weights = pair(changes, dtype)
    rows, length = changes.shape
    at = picked(rows)
    own, before = (each.view(rows, length)[at].reshape(-1) for each in (weights, base))
    return level_costs(own, before, (rows, length), length, chunk), base, weights


def check_hull(bits: npt.NDArray[np.float64], harm: npt.NDArray[np.float64]) -> None:
    """Bits rise, harm falls, and by ever less."""
    assert len(bits) > 10
    assert (np.diff(bits) > 0).all()
    assert (np.diff(harm) < 0).all()
    slopes = np.diff(harm) / np.diff(bits)
    assert (np.diff(slopes) >= -1e-9 * np.abs(slopes[1:])).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_wins_where_rows_have_much_in_common(dtype: str) -> None:
    """The more so, the more they have; every offer is one of those of its own changes, with what the product takes."""
    gains = []
    for noise in (0.3, 1.0):
        costs, _, _ = costs_of(1e-3 * planted(400, 300, (1.0, 0.6), noise), dtype)
        assert [each.step > 0 for each in costs] == [False] + [True] * (len(costs) - 1)
        assert len(costs) > 1
        drops, bits, harm = offers(costs)
        assert len(drops) == len(bits)
        check_hull(bits, harm)
        alone = {each.step: offers([each]) for each in costs}
        for drop, taken, spoilt in zip(drops, bits.tolist(), harm.tolist(), strict=True):
            own, own_bits, own_harm = alone[drop.step]
            (at,) = np.flatnonzero(own_bits == taken)
            assert own[at].step == drop.step
            assert own_harm[at] == spoilt
        plain, plain_bits, plain_harm = offers(costs[:1])
        assert {drop.step for drop in plain} == {0.0}
        assert any(drop.step for drop in drops)
        both = (harm >= plain_harm[-1]) & (harm <= plain_harm[0])
        among = np.interp(harm[both], plain_harm[::-1], plain_bits[::-1])
        assert (bits[both] <= among * (1 + 1e-9)).all(), "no offer is worse than without products"
        rate = 1.0 * 400 * 300
        gains.append(float(np.interp(rate, plain_bits, plain_harm) / np.interp(rate, bits, harm)))
    assert gains[0] > 2 * gains[1] > 2.6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("huge", [0, 5])
def test_it_never_does_where_they_have_nothing(dtype: str, huge: int) -> None:
    for seed in range(4):
        changes = planted(400, 1000, (), 1e-3, seed)
        changes[picked(400)[:huge]] *= 30
        costs, _, _ = costs_of(changes, dtype)
        drops, bits, harm = offers(costs)
        check_hull(bits, harm)
        assert {drop.step for drop in drops} == {0.0}


UNEVEN = 1.5
"""How many times as bad noise behind a product is counted to be: at least; or as it is to them."""


def noise_of(harm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The noise that is counted as such harm behind a product."""
    return np.minimum(harm / UNEVEN, np.sqrt(harm))


def test_the_bits_and_the_rest_of_a_product_count() -> None:
    costs, _, _ = costs_of(1e-3 * planted(400, 300, (1.0, 0.6), 0.3), "BF16")
    plain, told = costs[0], costs[1]
    assert 0 < told.left < 0.5
    assert told.common_bits > 0
    drops, bits, harm = offers([told])
    free, free_bits, free_harm = offers([replace(told, common_bits=0.0, left=1.0)])
    assert len(drops) == len(free)
    assert bits == pytest.approx(free_bits + told.common_bits)
    assert noise_of(harm) == pytest.approx(noise_of(free_harm) * told.left)
    alone = offers([plain])
    for dear in (replace(told, common_bits=1e9), replace(told, left=1e9)):
        drops, bits, harm = offers([plain, dear])
        few = [n for n, drop in enumerate(drops) if not drop.step]
        assert bits[few].tolist() == alone[1].tolist()
        assert all(bits[n] > 1e9 for n, drop in enumerate(drops) if drop.step)
    assert offers([])[0] == []


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_offered_is_what_a_tensor_takes_and_loses(dtype: str, noise: float) -> None:
    costs, base, weights = costs_of(1e-3 * planted(400, 300, (1.0, 0.6), noise), dtype)
    drops, bits, harm = offers(costs)
    tried = [n for n, drop in enumerate(drops) if drop.step and 0.1 < harm[n] < 10]
    assert len(tried) > 3
    for at in tried[:: len(tried) // 3]:
        taken = lost = 0.0
        added = told(weights, base, (400, 300), drops[at].step)
        assert added is not None
        for seed in range(3):
            made, moved = encode_sampled(weights, base, dtype, drops[at], 0, seed, Added(added))
            assert moved
            assert made.data[0] == 3
            error, norm, *_ = made.sums
            taken, lost = taken + 8 * len(made.data) / 3, lost + error / norm / 3
        assert taken == pytest.approx(bits[at], rel=0.1, abs=2500)
        assert lost == pytest.approx(float(noise_of(harm[at])), rel=0.2)


def test_products_are_asked_for_of_several_rows_that_are_no_longer_than_a_chunk() -> None:
    changes = 1e-3 * planted(400, 300, (1.0, 0.6), 0.3)
    base, weights = pair(changes, "BF16")
    own, before = (each.view(400, 300)[picked(400)] for each in (weights, base))
    for columns, chunk in ((300, 1 << 20), (300, 599), (300, 300), (200, 1 << 20)):
        rows = (each[:, :columns].reshape(-1) for each in (own, before))
        assert len(level_costs(*rows, (400, 300), columns, chunk)) > 1
    flat = own.reshape(-1), before.reshape(-1)
    assert len(level_costs(*flat, (1, own.numel()), own.numel(), 1 << 20)) == 1
    assert len(level_costs(*flat, (400, 300), 300, 299)) == 1, "rows are longer than a chunk"


def test_sums_beyond_the_type_are_no_offer() -> None:
    """Where the base has numbers next to the largest, a product may carry them over: plain offers stay as they are."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 512, generator=generator) * 1000
    base.view(-1)[::97] = 65504
    pull = 30 * torch.randn(64, 1, generator=generator) @ torch.randn(1, 512, generator=generator)
    task = (base + pull).clamp(-65504, 65504).half().reshape(-1)
    costs = level_costs(task, base.half().reshape(-1), (64 * 16, 512), 512, 1 << 20)
    assert len(costs) >= 1
    _, bits, harm = offers(costs)
    assert len(bits) >= len(offers(costs[:1])[1]) > 10
    assert np.isfinite(bits).all()
    assert np.isfinite(harm).all()


def test_changes_are_rounded_to_the_nearest_where_they_are_unlike() -> None:
    """Not where magnitudes are few, nor where those side by side are alike; nor in types of few bits."""
    rng = np.random.default_rng(3)
    base = torch.from_numpy(rng.standard_normal((64, 256), np.float32))
    noise = rng.standard_normal((64, 256), np.float32)
    few = np.sign(noise) * np.where(rng.random(noise.shape) < 0.5, np.float32(1), np.float32(1.4))
    alike = noise + np.roll(noise, 1, axis=1)

    def nearest(changes: Singles, dtype: torch.dtype = torch.float32) -> bool:
        before = base.to(dtype)
        after = (before + torch.from_numpy(changes * np.float32(0.01))).to(dtype)
        return level_costs(after.reshape(-1), before.reshape(-1), (64, 256), 256, 1 << 14)[0].nearest

    assert nearest(noise)
    assert not nearest(few)
    assert not nearest(alike)
    assert not nearest(noise, torch.bfloat16)


def test_widths_of_huge_changes_are_numbers_of_their_type() -> None:
    changes = torch.from_numpy(np.random.default_rng(4).standard_normal((64, 256), np.float32)) * 3e37
    kept, bits, _ = offers(level_costs(changes.reshape(-1), torch.zeros(1 << 14), (64, 256), 256, 1 << 14))
    assert np.isfinite(bits).all()
    assert max(int(each.sampling.widths.max()) for each in kept) <= 0x7F7F
