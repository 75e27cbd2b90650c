from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.recipes import GRID, make_recipe
from tallstore.recipes.closed_form import best_magnitude, best_vector, reference, reference_magnitude
from tallstore.recipes.fit import Fit

from .zoo import encode, random_zoo, reconstructed, tile

DTYPES = {torch.float32: torch.int32, torch.float64: torch.int64}

values = st.one_of(
    st.sampled_from([-3.0, -1.5, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0]),
    st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    st.floats(-(2.0**-83), 2.0**-83, width=32, allow_subnormal=False),
)
columns = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(values, min_size=n, max_size=n), min_size=1, max_size=9)
)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(DTYPES[a.dtype]), b.view(DTYPES[b.dtype]))


def error(tau: Tensor, vector: Tensor, masks: Tensor) -> Tensor:
    """Σt (τt − mt·v)² of every parameter, (N,), float64."""
    return (tau.double() - reconstructed(vector.double(), masks)).square().sum(0)


def least_error(tau: Tensor) -> Tensor:
    """By trial of every subset of tasks."""
    tau = tau.double()
    saved = [torch.zeros(tau.shape[1], dtype=torch.float64)]
    for k in range(1, len(tau) + 1):
        saved += [tau[list(on)].sum(0).square() / k for on in itertools.combinations(range(len(tau)), k)]
    return tau.square().sum(0) - torch.stack(saved).amax(0)


def tricky(n_tasks: int, n: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(n_tasks, n, generator=generator)
    return [
        smooth,
        smooth.round(),
        smooth.round() * 1e-20,
        smooth.bfloat16().float(),
        -smooth.abs(),
        torch.zeros(n_tasks, n) * smooth,
        smooth.round().double(),
    ]


@pytest.mark.parametrize("n_tasks", range(1, 34))
def test_the_fast_form_has_the_bits_of_the_reference(n_tasks: int) -> None:
    for n in (1, 3, 501):
        for tau in tricky(n_tasks, n, seed=n_tasks):
            assert same_bits(best_vector(tau), reference(tau))
            assert same_bits(best_magnitude(tau.abs()), reference_magnitude(tau.abs()))


@settings(deadline=None)
@given(columns)
def test_so_has_it_on_ties_and_signed_zeros(rows: list[list[float]]) -> None:
    tau = torch.tensor(rows).T.contiguous()
    assert same_bits(best_vector(tau), reference(tau))
    assert same_bits(best_magnitude(tau.abs()), reference_magnitude(tau.abs()))


def test_a_mean_that_underflows_is_the_positive_zero() -> None:
    """Three candidates tie, the most tasks win, and −2⁻¹⁴⁹ / 3 rounds to a zero."""
    tau = torch.tensor([-(2.0**-149), 0.0, 0.0]).unsqueeze(1)
    assert same_bits(reference(tau), torch.zeros(1))
    assert same_bits(best_vector(tau), torch.zeros(1))


def test_the_block_is_of_no_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    tau = torch.randn(5, 1000)
    whole = best_vector(tau)
    monkeypatch.setattr("tallstore.recipes.closed_form.CPU_BLOCK", 64)
    assert same_bits(best_vector(tau), whole)


@settings(deadline=None)
@given(columns)
def test_no_choice_of_vector_and_masks_has_less_error(rows: list[list[float]]) -> None:
    tau = torch.tensor(rows).T.contiguous()
    fit = Fit()
    at = tile(torch.zeros(tau.shape[1]), tau)
    vector = fit.vector(at)
    found = error(tau, vector, fit.masks(at, vector))
    energy = tau.double().square().sum(0)
    assert torch.all(found <= least_error(tau) + 1e-6 * energy)


@settings(deadline=None)
@given(columns)
def test_a_shared_magnitude_is_as_good_as_any(rows: list[list[float]]) -> None:
    tau = torch.tensor(rows).T.contiguous()
    fit = Fit(kind="signed")
    at = tile(torch.zeros(tau.shape[1]), tau)
    vector = fit.vector(at)
    masks = fit.masks(at, vector)
    assert torch.all(vector >= 0)
    assert torch.all((masks == 2) <= (tau < 0))
    assert torch.all((masks == 1) <= (tau > 0))
    found = error(tau, vector, masks)
    assert torch.all(found <= least_error(tau.abs()) + 1e-6 * tau.double().square().sum(0))


@pytest.mark.parametrize("other", [("mean", {}), ("tall", {}), ("tall", {"topk": 20}), ("ties", {}), ("emr", {})])
def test_never_worse_than_another_recipe(other: tuple[str, dict[str, object]]) -> None:
    base, weights = random_zoo(7, 3000)
    tau = weights - base
    best = error(tau, *encode(make_recipe("fit"), base, weights))
    for lam in (*GRID, 1.0):
        options = {} if other[0] == "emr" else {"lam": lam}
        theirs = error(tau, *encode(make_recipe(other[0], **options, **other[1]), base, weights))
        assert torch.all(best <= theirs * (1 + 1e-5) + 1e-12)


@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_permuting_the_tasks_permutes_the_masks(kind: str) -> None:
    base, weights = random_zoo(9, 800)
    order = torch.randperm(9)
    fit = make_recipe("fit", kind=kind)
    vector, masks = encode(fit, base, weights)
    other_vector, other_masks = encode(fit, base, weights[order])
    assert same_bits(vector, other_vector)
    assert torch.equal(masks[order], other_masks)


def test_the_rules_for_ties() -> None:
    def best(*tau: float) -> float:
        return float(best_vector(torch.tensor(tau, dtype=torch.float32).unsqueeze(1)))

    assert best(1, -1) == 1  # as good on both sides: the largest values win
    assert best(3, 1, 1, 1) == 1.5  # as good with 1 task and with 4: more tasks win …
    assert best(3, -1.5, -1.5, -1.5, -1.5) == -1.5  # … whichever side they are on


def test_zero_where_all_are_zero() -> None:
    tau = torch.tensor([[0.0, -0.0], [-0.0, -0.0]])
    fit = Fit()
    vector = fit.vector(tile(torch.zeros(2), tau))
    assert same_bits(vector, torch.zeros(2))
    assert not fit.masks(tile(torch.zeros(2), tau), vector).any()


def test_masks_are_made_against_the_stored_vector() -> None:
    at = tile(torch.zeros(3), torch.tensor([[1.0, 1.0, 1.0]]))
    assert Fit().masks(at, torch.tensor([1.9, 2.0, -1.0])).tolist() == [[1, 0, 0]]
    at = tile(torch.zeros(3), torch.tensor([[1.0, -1.0, -1.0]]))
    assert Fit(kind="signed").masks(at, torch.tensor([1.9, 1.9, 2.0])).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_a_tile_that_no_task_has(kind: str) -> None:
    at = tile(torch.zeros(4), torch.zeros(0, 4))
    fit = make_recipe("fit", kind=kind)
    assert torch.equal(fit.vector(at), torch.zeros(4))
    assert fit.masks(at, torch.zeros(4)).shape == (0, 4)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match="ternary"):
        make_recipe("fit", kind="ternary")
