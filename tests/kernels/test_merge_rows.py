"""Merging in one pass against the plain path: the same bits, whatever the number of tasks, their sizes and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same, packed, tiny_zoo

from tallstore.archive.merge import _move
from tallstore.archive.tiles import RowsTile
from tallstore.kernels import cpu, fast
from tallstore.merging import MergeTile, make_method
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
    least, inner, source = method.of_sums() or (-1, 0.0, "")
    assert (least, inner, source) == (k, 0.7, "tasks")
    rows = rows_of(tasks, n, dtype)
    base = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    base[: n // 3] = -0.0
    due, found = base.clone(), base.clone()
    tile = RowsTile(tuple(range(tasks)), sum_rows(rows), (rows != 0).to(torch.uint8), (1.0,) * tasks, rows)
    _move(due, method.delta(tile), 0.3)
    kind = found.numpy().dtype.type
    compiled.merge_rows(found.numpy(), rows.numpy(), least, kind(inner), kind(0.3))
    same(found, due)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [1, 3, 16, 35])
@pytest.mark.parametrize("n", [1, 9, 4096, 9001])
@pytest.mark.parametrize("kind", ["binary", "signed"])
@pytest.mark.parametrize("source", ["vector", "tasks"])
def test_masks_that_are_still_packed(dtype: torch.dtype, tasks: int, n: int, kind: str, source: str) -> None:
    compiled = fast.kernels()
    assert compiled is not None
    generator = torch.Generator().manual_seed(tasks * n)
    masks = torch.randint(0, 2 if kind == "binary" else 3, (tasks, n), generator=generator, dtype=torch.uint8)
    vector, base = (torch.randn(n, generator=generator, dtype=dtype) for _ in range(2))
    vector[: n // 5], base[: n // 3] = 0, -0.0
    if n > 20:
        vector[11], vector[13], vector[17] = float("inf"), float("nan"), torch.finfo(dtype).max
    scales = tuple(torch.rand(tasks, generator=generator).tolist())
    method = make_method("consensus", k=2, alpha=0.7, source=source)
    due, found = base.clone(), base.clone()
    _move(due, method.delta(MergeTile(tuple(range(tasks)), vector, masks, scales)), 0.3)
    number = found.numpy().dtype.type
    codes = np.stack([cpu.pack(mask.numpy(), kind) for mask in masks])
    compiled.merge_masks(
        found.numpy(), vector.numpy(), codes, cpu.SYMBOL_BITS[kind], np.array(scales, number), source == "vector", 2,
        number(0.7), number(0.3),
    )  # fmt: skip
    same(found, due)


def same(found: torch.Tensor, due: torch.Tensor) -> None:
    """Equal in every bit, but for those of a NaN."""
    word = torch.int32 if due.dtype == torch.float32 else torch.int64
    nan = due.isnan()
    assert torch.equal(nan, found.isnan())
    assert torch.equal(due[~nan].view(word), found[~nan].view(word))


def test_what_is_no_sum_says_so() -> None:
    assert make_method("arithmetic", source="tasks", alpha=0.5).of_sums() == (0, 0.5, "tasks")
    assert make_method("consensus", source="vector", k=3).of_sums() == (3, 1.0, "vector")
    assert make_method("consensus", source="ties").of_sums() is None
    assert make_method("ties").of_sums() is None


@pytest.mark.parametrize("recipe", ["solo", "fit", "tall", "mean", "emr"])
@pytest.mark.parametrize("count", [3, 18])
def test_an_archive_is_merged_to_the_same_bits_without_them(
    recipe: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = tiny_zoo(count)
    for number, task in enumerate(tasks.values()):
        if number % 4 == 1:
            task["fc.weight"] = base["fc.weight"].clone()
    with packed(base, tasks, tmp_path / "zoo", recipe=recipe) as zoo:
        ways: list[dict[str, Any]] = [{"alpha": 0.4, "k": 2}, {"alpha": 0.4, "k": 0}, {"tasks": ["b", "a"]}, {}]
        found = [zoo.merged(**way) for way in ways]
        monkeypatch.setattr(fast, "kernels", lambda: None)
        for one, way in zip(found, ways, strict=True):
            again = zoo.merged(**way)
            assert again.report.alpha == one.report.alpha
            assert_same(one, again)
