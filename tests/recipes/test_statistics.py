from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.recipes.ordered_sum import sum_rows
from tallstore.recipes.statistics import Trim

from .zoo import tile, tiles


def trimmed(tau: Tensor, percent: float, size: int) -> Trim:
    trim = Trim(percent)
    for statistic in trim.statistics(len(tau)):
        for each in tiles(torch.zeros(tau.shape[1]), tau, size):
            statistic.update(each)
        statistic.finish()
    return trim


def kth(tau: Tensor, percent: float) -> Tensor:
    """The threshold as the reference's `topk_values_mask` has it."""
    d = tau.shape[1]
    return tau.abs().kthvalue(d - int(d * (percent / 100)), dim=1).values


@settings(deadline=None)
@given(st.data())
def test_the_threshold_is_the_kth_magnitude(data: st.DataObject) -> None:
    n_tasks, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    value = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]), st.floats(width=32, allow_nan=False))
    tau = torch.tensor(data.draw(st.lists(value, min_size=n_tasks * n, max_size=n_tasks * n))).reshape(n_tasks, n)
    percent = data.draw(st.one_of(st.sampled_from([1, 20, 50, 99.9]), st.floats(0.01, 99.99)))
    size = data.draw(st.integers(1, n))
    assert torch.equal(trimmed(tau, percent, size).thresholds(), kth(tau, percent))


@pytest.mark.parametrize("percent", [0.001, 7, 20, 33.3, 99.999])
def test_so_it_is_over_many_parameters(percent: float) -> None:
    tau = torch.randn(3, 30_001) ** 3
    trim = trimmed(tau, percent, 4096)
    assert torch.equal(trim.thresholds(), kth(tau, percent))
    kept = trim(tile(torch.zeros(30_001), tau))
    assert torch.equal(kept, torch.where(tau.abs() >= kth(tau, percent).unsqueeze(1), tau, 0))


def test_100_percent_reads_nothing_and_keeps_all() -> None:
    tau = torch.randn(2, 5)
    assert Trim(100).statistics(2) == ()
    assert torch.equal(Trim(100)(tile(torch.zeros(5), tau)), tau)


def test_tasks_that_lack_tensors_are_ranked_by_what_they_have() -> None:
    tau = torch.randn(2, 100)
    trim = Trim(20)
    for statistic in trim.statistics(3):
        statistic.update(tile(torch.zeros(60), tau[:, :60], tasks=(0, 1)))
        statistic.update(tile(torch.zeros(40), tau[1:, 60:], tasks=(1,)))
        statistic.finish()
    expected = [kth(tau[:1, :60], 20)[0], kth(tau[1:], 20)[0]]
    assert trim.thresholds()[:2].tolist() == [float(value) for value in expected]
    assert trim(tile(torch.zeros(0), torch.zeros(1, 0), tasks=(2,))).shape == (1, 0)


def test_float64_is_ranked_as_float32() -> None:
    tau = torch.randn(1, 999, dtype=torch.float64)
    trim = trimmed(tau, 20, 100)
    kept = trim(tile(torch.zeros(999, dtype=torch.float64), tau))
    assert kept.dtype == torch.float64
    assert torch.equal(kept != 0, tau.float().abs() >= kth(tau.float(), 20))


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan"), float("inf"), "20"])
def test_percentages_that_make_no_sense(percent: float) -> None:
    with pytest.raises(OptionError, match="percentage"):
        Trim(percent)


@pytest.mark.parametrize("n_tasks", [1, 2, 8, 15, 16, 17, 18, 20, 32, 33, 64, 255, 256, 257, 300])
def test_sums_have_the_bits_of_torch_sum(n_tasks: int) -> None:
    rows = torch.randn(n_tasks, 320)
    assert torch.equal(sum_rows(rows), rows.sum(0))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70))
def test_sums_do_not_depend_on_the_tile(n_tasks: int, n: int, size: int) -> None:
    rows = torch.randn(n_tasks, n)
    assert torch.equal(torch.cat([sum_rows(part) for part in rows.split(size, dim=1)]), sum_rows(rows))
