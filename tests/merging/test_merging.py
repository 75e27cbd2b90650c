from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.merging import (
    ALPHAS,
    METHODS,
    MergeTile,
    Method,
    consensus_bits,
    consensus_mask,
    make_method,
    sum_source,
)
from tallstore.recipes import Tile, make_recipe

GOLDEN = Path(__file__).parent.parent / "recipes" / "golden"
NAMES = ("balanced-4", "coarse-6", "minilm-8", "random-20", "random-5")


def load(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def random_tile(n_tasks: int, n: int, symbols: int = 2, scales: Sequence[float] | None = None) -> MergeTile:
    masks = torch.randint(0, symbols, (n_tasks, n), dtype=torch.uint8)
    return MergeTile(tuple(range(n_tasks)), torch.randn(n), masks, tuple(scales or [1.0] * n_tasks))


def merge(method: Method, tile: MergeTile, size: int = 1 << 20) -> Tensor:
    n = len(tile.vector)
    cut = [
        MergeTile(tile.tasks, tile.vector[a : a + size], tile.masks[:, a : a + size], tile.scales)
        for a in range(0, n, size)
    ]
    for statistic in method.statistics(len(tile.tasks)):
        for each in cut:
            statistic.update(each)
        statistic.finish()
    return torch.cat([method.delta(each) for each in cut])


@pytest.mark.parametrize("name", NAMES)
def test_consensus_masks_are_the_references(name: str) -> None:
    golden = load(name)
    rows = golden["tall/mask/0.6"]
    n_tasks, n = golden["weights"].shape
    masks = torch.from_numpy(np.unpackbits(rows, axis=1, count=n, bitorder="little"))
    for k in range(n_tasks + 2):
        wanted = golden[f"consensus/{k}"]
        assert np.array_equal(np.packbits(consensus_mask(masks, k).numpy(), bitorder="little"), wanted)
        assert np.array_equal(consensus_bits(list(rows), n, k), wanted)


@settings(deadline=None)
@given(st.integers(1, 33), st.integers(1, 300), st.data())
def test_packed_consensus_is_the_consensus(n_tasks: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n_tasks + 1))
    masks = np.random.default_rng(n).integers(0, 2, (n_tasks, n), dtype=np.uint8)
    bits = consensus_bits(list(np.packbits(masks, axis=1, bitorder="little")), n, k)
    assert np.array_equal(np.unpackbits(bits, bitorder="little")[:n], masks.sum(0) >= k)
    assert not np.unpackbits(bits, bitorder="little")[n:].any()


def test_packed_consensus_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.random.default_rng(3).integers(0, 2, (9, 5001), dtype=np.uint8)
    rows = list(np.packbits(masks, axis=1, bitorder="little"))
    monkeypatch.setattr("tallstore.merging.consensus.BLOCK", 24)
    assert np.array_equal(
        np.unpackbits(consensus_bits(rows, 5001, 4), count=5001, bitorder="little"), masks.sum(0) >= 4
    )


def test_consensus_of_no_tasks() -> None:
    assert consensus_bits([], 5, 0).tolist() == [0b11111]
    assert consensus_bits([], 5, 1).tolist() == [0]
    assert consensus_mask(torch.zeros(0, 3, dtype=torch.uint8), 1).tolist() == [False] * 3


@pytest.mark.parametrize("source", ["vector", "tasks", "ties"])
def test_consensus_at_0_is_the_plain_merge_and_above_t_nothing(source: str) -> None:
    tile = random_tile(5, 400)
    plain = make_method("ties", alpha=0.3) if source == "ties" else make_method("arithmetic", alpha=0.3, source=source)
    assert torch.equal(merge(make_method("consensus", k=0, alpha=0.3, source=source), tile), merge(plain, tile))
    assert not merge(make_method("consensus", k=6, source=source), tile).any()
    at_2 = merge(make_method("consensus", k=2, alpha=0.3, source=source), tile)
    assert torch.equal(at_2, merge(plain, tile) * (tile.masks.sum(0) >= 2))


def test_signed_symbols_are_users_of_either_sign() -> None:
    masks = torch.tensor([[0, 1, 2], [2, 0, 2]], dtype=torch.uint8)
    assert consensus_mask(masks, 2).tolist() == [False, False, True]


def test_decoded_task_vectors() -> None:
    masks = torch.tensor([[0, 1, 2], [2, 0, 1]], dtype=torch.uint8)
    tile = MergeTile((0, 1), torch.tensor([1.0, 2.0, 3.0]), masks, (1.0, 0.5))
    assert tile.tau.tolist() == [[0, 2, -3], [-0.5, 0, 1.5]]


def test_task_arithmetic() -> None:
    tile = random_tile(4, 50, symbols=3, scales=[1.0, 0.5, 2.0, 1.0])
    assert torch.equal(make_method("arithmetic", alpha=0.4).delta(tile), tile.vector * 0.4)
    total = make_method("arithmetic", source="tasks").delta(tile)
    assert torch.allclose(total, tile.tau.sum(0))
    assert make_method("arithmetic", source="tasks").approximate
    assert not make_method("arithmetic").approximate


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_ties_of_decoded_task_vectors_is_ties(how: str) -> None:
    """That of the recipe, which `tests/recipes` compares with the reference's."""
    tile = random_tile(6, 1000, scales=[1.0, 0.5, 2.0, 1.0, 1.5, 0.25])
    recipe = make_recipe("ties", lam=1.0, merge=how)
    as_weights = Tile(tile.tasks, torch.zeros(1000), tile.tau, tile.tau)
    for statistic in recipe.statistics(6):
        statistic.update(as_weights)
        statistic.finish()
    merged = merge(make_method("ties", alpha=0.5, merge=how), tile, size=101)
    assert torch.equal(merged, recipe.vector(as_weights) * 0.5)


@pytest.mark.parametrize("method_id", list(METHODS))
def test_tiles_give_what_the_whole_gives(method_id: str) -> None:
    tile = random_tile(6, 1000)
    assert torch.equal(merge(make_method(method_id), tile), merge(make_method(method_id), tile, size=77))


@pytest.mark.parametrize("method_id", list(METHODS))
def test_a_tile_that_no_task_has(method_id: str) -> None:
    tile = MergeTile((), torch.zeros(3), torch.zeros(0, 3, dtype=torch.uint8), ())
    assert torch.equal(merge(make_method(method_id), tile), torch.zeros(3))


def test_the_papers_range_of_alpha() -> None:
    assert tuple(np.linspace(0.0, 1.0, 11)[1:]) == pytest.approx(ALPHAS)


def test_where_the_sum_is() -> None:
    assert [sum_source(recipe) for recipe in ("tall", "fit", "ties", "mean")] == ["vector", "tasks", "tasks", "tasks"]


@pytest.mark.parametrize("k", [-1, 1.0, True, "2", None])
def test_a_k_that_makes_no_sense(k: object) -> None:
    with pytest.raises(OptionError, match="k is a number of tasks"):
        make_method("consensus", k=k)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(OptionError, match="no merging method 'magic'; there are 'arithmetic', 'consensus', 'ties'"):
        make_method("magic")
    with pytest.raises(OptionError, match="no option 'k'"):
        make_method("arithmetic", k=1)
    for alpha in (float("nan"), float("inf"), 1e39, -1e39, "1"):
        with pytest.raises(OptionError, match="α"):
            make_method("ties", alpha=alpha)
    with pytest.raises(OptionError, match="source"):
        make_method("arithmetic", source="ties")
    with pytest.raises(OptionError, match="source"):
        make_method("consensus", source="magic")
