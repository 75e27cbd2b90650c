"""What holds for every recipe, the data-free λ, the scales of EMR, and the table."""

from __future__ import annotations

import pytest
import torch

from tallstore.errors import OptionError
from tallstore.recipes import GRID, RECIPES, make_recipe
from tallstore.recipes.norm_match import nearest_norm
from tallstore.recipes.tallmask import TallMasked

from .zoo import encode, gather, random_zoo, reconstructed, tile

VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("emr", {}),
    ("fit", {}),
    ("fit", {"kind": "signed"}),
    ("mean", {}),
    ("tall", {"topk": 30}),
    ("tall", {}),
    ("ties", {"merge": "mean"}),
    ("ties", {}),
]
SUMS = (0.0, 0.0, 0.0, 0.0, 0.0)
every = pytest.mark.parametrize(("recipe_id", "options"), VARIANTS)


@every
def test_tiles_give_what_the_whole_gives(recipe_id: str, options: dict[str, object]) -> None:
    base, weights = random_zoo(6, 1000)
    whole, streamed = make_recipe(recipe_id, **options), make_recipe(recipe_id, **options)
    vector, masks = encode(whole, base, weights)
    other_vector, other_masks = encode(streamed, base, weights, size=77)
    assert torch.equal(vector, other_vector)
    assert torch.equal(masks, other_masks)
    scales, others = ([r.scale(task, SUMS) for task in range(6)] for r in (whole, streamed))
    assert scales == pytest.approx(others, rel=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(recipe_id: str, options: dict[str, object], dtype: torch.dtype) -> None:
    base, weights = random_zoo(4, 100)
    recipe = make_recipe(recipe_id, **options)
    vector, masks = encode(recipe, base.to(dtype), weights.to(dtype))
    assert (vector.dtype, vector.shape) == (dtype, (100,))
    assert (masks.dtype, masks.shape) == (torch.uint8, (4, 100))
    assert int(masks.max()) == (2 if recipe.kind == "signed" else 1)


@every
def test_a_tile_that_few_tasks_have(recipe_id: str, options: dict[str, object]) -> None:
    base, weights = random_zoo(5, 200)
    recipe = make_recipe(recipe_id, **options)
    gather(recipe, base, weights)
    some = tile(base, weights[[1, 4]], tasks=(1, 4))
    assert recipe.masks(some, recipe.vector(some)).shape == (2, 200)
    none = tile(base, weights[:0], tasks=())
    assert torch.equal(recipe.vector(none), torch.zeros(200))
    assert recipe.masks(none, recipe.vector(none)).shape == (0, 200)


@every
def test_recipes_can_be_used_again(recipe_id: str, options: dict[str, object]) -> None:
    recipe = make_recipe(recipe_id, **options)
    encode(recipe, *random_zoo(3, 500, seed=1))
    again = encode(recipe, *random_zoo(4, 300, seed=2))
    fresh = encode(make_recipe(recipe_id, **options), *random_zoo(4, 300, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))


@every
def test_permuting_the_tasks_permutes_the_masks(recipe_id: str, options: dict[str, object]) -> None:
    _, weights = random_zoo(5, 400)
    # On a coarse grid sums are exact, whatever their order.
    base, weights = torch.zeros(400), (weights * 64).round() / 64
    order = [3, 0, 4, 1, 2]
    _, masks = encode(make_recipe(recipe_id, **options), base, weights)
    _, others = encode(make_recipe(recipe_id, **options), base, weights[order])
    assert torch.equal(masks[order], others)


def test_mean_is_the_mean() -> None:
    base, weights = random_zoo(4, 64)
    at = tile(base, weights)
    assert torch.allclose(make_recipe("mean").vector(at), at.tau.mean(0))


def test_emr_elects_masks_and_rescales() -> None:
    tau = torch.tensor([[1.0, -3.0, 1.0, 1e-30], [2.0, 1.0, -1.0, 1e-30], [-1.0, 1.0, 0.0, 0.0]])
    recipe = make_recipe("emr")
    vector, masks = encode(recipe, torch.zeros(4), tau)
    assert vector.tolist() == torch.tensor([2.0, -3.0, 0.0, 1e-30]).tolist()
    assert masks.tolist() == [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert [recipe.scale(task, SUMS) for task in range(3)] == pytest.approx([5 / 5, 4 / 2, 1.0])


def test_emr_keeps_the_sum_of_magnitudes() -> None:
    base, weights = random_zoo(5, 500)
    recipe = make_recipe("emr")
    decoded = reconstructed(*encode(recipe, base, weights))
    for task, tau in enumerate(weights - base):
        assert recipe.scale(task, SUMS) * decoded[task].abs().sum() == pytest.approx(tau.abs().sum())


@pytest.mark.parametrize("recipe_id", ["tall", "ties", "mean"])
def test_without_a_lambda_the_norms_are_matched(recipe_id: str) -> None:
    base, weights = random_zoo(8, 2000)
    weights[0] = base + (weights[0] - base) * 3
    recipe = make_recipe(recipe_id)
    gather(recipe, base, weights, size=333)
    assert isinstance(recipe, TallMasked)
    chosen = [recipe.lam(task) for task in range(8)]
    tau = weights - base
    gaps = []
    for lam in GRID:
        fixed = make_recipe(recipe_id, lam=lam)
        gaps.append((reconstructed(*encode(fixed, base, weights)).norm(dim=1) - tau.norm(dim=1)).abs())
    assert chosen == [GRID[i] for i in torch.stack(gaps).argmin(0).tolist()]


def test_the_nearest_norm() -> None:
    true = torch.tensor([1.0, 2.0, 3.0])
    decoded = torch.tensor([[2.0, 0.9], [1.0, 3.0], [0.0, 0.0]])
    assert nearest_norm(true, decoded, (0.2, 0.3)) == (0.3, 0.2, 0.2)


def test_lambda_by_task_is_the_same_however_given() -> None:
    base, weights = random_zoo(3, 200)
    as_list = encode(make_recipe("tall", lam=[0.2, 0.6, 0.4]), base, weights)[1]
    as_mapping = encode(make_recipe("tall", lam={2: 0.4, 0: 0.2, 1: 0.6}), base, weights)[1]
    assert torch.equal(as_list, as_mapping)


@pytest.mark.parametrize("lam", [0, -1, float("nan"), float("inf"), "0.4", [0.2, 0.0], {0: -1}, [None]])
def test_a_lambda_that_makes_no_sense(lam: object) -> None:
    with pytest.raises(OptionError, match="λ"):
        make_recipe("tall", lam=lam)


@pytest.mark.parametrize("lam", [[0.4], [0.4] * 3, {0: 0.4}, {0: 0.4, 2: 0.4}, []])
def test_lambdas_for_other_tasks_than_there_are(lam: object) -> None:
    with pytest.raises(OptionError, match="the zoo has 2"):
        make_recipe("tall", lam=lam).statistics(2)


@pytest.mark.parametrize("grid", [(), (0.2, 0.0), ("a",)])
def test_a_grid_that_makes_no_sense(grid: object) -> None:
    with pytest.raises(OptionError):
        make_recipe("mean", grid=grid)


def test_the_table_is_closed_and_begins_with_the_default() -> None:
    assert list(RECIPES) == ["solo", "fit", "tall", "ties", "mean", "emr"]
    assert all(recipe.id == name for name, recipe in RECIPES.items())
    with pytest.raises(OptionError, match="no recipe 'magic'; there are 'solo', 'fit', 'tall', 'ties', 'mean', 'emr'"):
        make_recipe("magic")
    with pytest.raises(OptionError, match="no option 'lam'; it has 'kind'"):
        make_recipe("fit", lam=0.4)
    with pytest.raises(OptionError, match="sum or mean"):
        make_recipe("ties", merge="max")
