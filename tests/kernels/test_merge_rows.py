"""Merging in one pass against the plain path: the same bits, whatever the number of tasks, their sizes and values."""

from __future__ import annotations

import pytest
import torch

from tallstore.archive.merge import _move
from tallstore.archive.tiles import RowsTile
from tallstore.kernels import fast
from tallstore.merging import make_method
from tallstore.recipes.sums import sum_rows

pytestmark = pytest.mark.skipif(fast.kernels() is None, reason="numba is not installed")


def rows_of(tasks: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tasks * n)
    rows = torch.randn(tasks, n, generator=generator, dtype=dtype)
    rows *= torch.rand(tasks, n, generator=generator, dtype=dtype) < 0.3
    rows[0, : n // 7] = -0.0
    if n > 20:
        rows[-1, 11], rows[0, 13], rows[0, 17] = float("inf"), float("nan"), torch.finfo(dtype).max
        rows[-1, 17] = torch.finfo(dtype).max
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [1, 2, 7, 15, 16, 17, 33, 300])
@pytest.mark.parametrize("n", [1, 63, 4096, 9001])
@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_it_is_the_method_s_own_delta(dtype: torch.dtype, tasks: int, n: int, k: int) -> None:
    compiled = fast.kernels()
    assert compiled is not None
    method = make_method("consensus", k=k, alpha=0.7, source="tasks")
    least, inner = method.of_sums() or (-1, 0.0)
    assert (least, inner) == (k, 0.7)
    rows = rows_of(tasks, n, dtype)
    base = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    base[: n // 3] = -0.0
    due, found = base.clone(), base.clone()
    tile = RowsTile(tuple(range(tasks)), sum_rows(rows), (rows != 0).to(torch.uint8), (1.0,) * tasks, rows)
    _move(due, method.delta(tile), 0.3)
    kind = found.numpy().dtype.type
    compiled.merge_rows(found.numpy(), rows.numpy(), least, kind(inner), kind(0.3))
    word = torch.int32 if dtype == torch.float32 else torch.int64
    nan = due.isnan()
    assert torch.equal(nan, found.isnan())
    assert torch.equal(due[~nan].view(word), found[~nan].view(word))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [1, 5, 40])
@pytest.mark.parametrize("n", [1, 15, 4096, 9001])
def test_lengths(dtype: torch.dtype, tasks: int, n: int) -> None:
    compiled = fast.kernels()
    assert compiled is not None
    rows = rows_of(tasks, n, dtype).nan_to_num(0, 3, -3).clamp(-3, 3)
    method = make_method("consensus", k=2, source="tasks")
    tile = RowsTile(tuple(range(tasks)), sum_rows(rows), (rows != 0).to(torch.uint8), (1.0,) * tasks, rows)
    squares = torch.ones(tasks, dtype=torch.float64)
    found = compiled.measure_rows(squares.numpy(), rows.numpy(), 2, rows.numpy().dtype.type(1))
    torch.testing.assert_close(squares, 1 + rows.double().square().sum(1))
    assert found == pytest.approx(float(method.delta(tile).double().square().sum()), rel=1e-12)


def test_what_is_no_sum_of_decoded_task_vectors_says_so() -> None:
    assert make_method("arithmetic", source="tasks", alpha=0.5).of_sums() == (0, 0.5)
    assert make_method("arithmetic", source="vector").of_sums() is None
    assert make_method("consensus", source="vector").of_sums() is None
    assert make_method("consensus", source="ties").of_sums() is None
    assert make_method("ties").of_sums() is None
