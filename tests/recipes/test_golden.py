"""Agreement with the paper's reference code, bit for bit: `golden/README.md` says how the files were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tallstore.recipes import GRID, make_recipe

from .zoo import encode, gather, tile

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("balanced-4", "coarse-6", "minilm-8", "random-20", "random-5")
RECIPES = {
    "tall": ("tall", {}),
    "tall20": ("tall", {"topk": 20}),
    "ties-mean": ("ties", {"merge": "mean"}),
    "ties-sum": ("ties", {"merge": "sum"}),
}
WHOLE, TILES = 1 << 20, 97


def load(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def zoo_of(golden: dict[str, npt.NDArray[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(golden["base"]), torch.from_numpy(golden["weights"])


def packed(masks: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.packbits(masks.numpy(), axis=-1, bitorder="little")


def test_the_golden_files_are_these() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.npz")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tag", RECIPES)
@pytest.mark.parametrize("size", [WHOLE, TILES])
def test_vectors_and_masks_are_the_references(name: str, tag: str, size: int) -> None:
    golden = load(name)
    recipe_id, options = RECIPES[tag]
    for lam in GRID:
        vector, masks = encode(make_recipe(recipe_id, lam=lam, **options), *zoo_of(golden), size)
        assert np.array_equal(vector.numpy(), golden[f"{tag}/vector"])
        assert np.array_equal(packed(masks), golden[f"{tag}/mask/{lam}"]), lam


@pytest.mark.parametrize("name", NAMES)
def test_a_lambda_for_each_task(name: str) -> None:
    golden = load(name)
    base, weights = zoo_of(golden)
    lams = [GRID[task % len(GRID)] for task in range(len(weights))]
    _, masks = encode(make_recipe("tall", lam=lams), base, weights)
    for task, lam in enumerate(lams):
        assert np.array_equal(packed(masks[task]), golden[f"tall/mask/{lam}"][task])


@pytest.mark.parametrize("name", NAMES)
def test_the_filter_keeps_what_the_reference_keeps(name: str) -> None:
    golden = load(name)
    base, weights = zoo_of(golden)
    recipe = make_recipe("tall", lam=1, topk=7)
    gather(recipe, base, weights, TILES)
    kept = recipe._trim(tile(base, weights)) != 0  # type: ignore[attr-defined]
    assert np.array_equal(packed(kept), golden["top7/kept"])
    assert np.array_equal(recipe.vector(tile(base, weights)).numpy(), golden["top7/vector"])
