"""Merging in one pass against the plain path: the same bits, whatever the number of tasks, their sizes and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elements import gaps_of
from support import assert_same, packed, tiny_zoo, without_kernels

import tallstore
from tallstore.archive.merging.merger import Merged, _move
from tallstore.archive.merging.tiles import RowsTile, TaskVectorReader
from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import merging
from tallstore.merging import MergeTile, make_method
from tallstore.recipes.ordered_sum import sum_rows

pytestmark = pytest.mark.usefixtures("native")


@cache
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
def test_it_is_the_method_s_own_delta(dtype: torch.dtype, tasks: int, n: int) -> None:
    native = merging()
    assert native is not None
    rows = rows_of(tasks, n, dtype)
    base = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    base[: n // 3] = -0.0
    tile = RowsTile(tuple(range(tasks)), sum_rows(rows), (rows != 0).to(torch.uint8), (1.0,) * tasks, rows)
    for k in (0, 1, 2, 5):
        method = make_method("consensus", k=k, alpha=0.7, source="tasks")
        least, inner, source = method.of_sums() or (-1, 0.0, "")
        assert (least, inner, source) == (k, 0.7, "tasks")
        due, found = base.clone(), base.clone()
        _move(due, method.delta(tile), 0.3)
        kind = found.numpy().dtype.type
        native.merge_rows(found.numpy(), rows.numpy(), least, kind(inner), kind(0.3))
        same(found, due)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [1, 5, 40])
@pytest.mark.parametrize("n", [1, 15, 4096, 9001])
def test_lengths(dtype: torch.dtype, tasks: int, n: int) -> None:
    native = merging()
    assert native is not None
    rows = rows_of(tasks, n, dtype).nan_to_num(0, 3, -3).clamp(-3, 3)
    method = make_method("consensus", k=2, source="tasks")
    tile = RowsTile(tuple(range(tasks)), sum_rows(rows), (rows != 0).to(torch.uint8), (1.0,) * tasks, rows)
    squares = torch.ones(tasks, dtype=torch.float64)
    found = native.measure_rows(squares.numpy(), rows.numpy(), 2, rows.numpy().dtype.type(1))
    torch.testing.assert_close(squares, 1 + rows.double().square().sum(1))
    assert found == pytest.approx(float(method.delta(tile).double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tasks", [1, 3, 17, 40])
@pytest.mark.parametrize("n", [1, 9, 4096, 9001])
@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_rows_that_are_given_by_their_gaps(dtype: Any, tasks: int, n: int, kind: str) -> None:
    native = merging()
    assert native is not None
    rng = np.random.default_rng(tasks * n)
    shares = rng.choice([0.0, 0.001, 0.3, 1.0], tasks)
    symbols = [np.where(rng.random(n) < p, rng.integers(1, 3 if kind == "signed" else 2, n), 0) for p in shares]
    scales = rng.random(tasks).astype(np.float32).astype(dtype)
    signed = [(each == 1).astype(dtype) - (each == 2) for each in symbols]
    rows = np.stack([each * scale for each, scale in zip(signed, scales, strict=True)])
    gaps, signs = zip(*map(gaps_of, symbols), strict=True)
    signs = signs if kind == "signed" else [each[:0] for each in signs]
    where = [np.cumsum([0, *map(len, each)]) for each in (gaps, signs)]
    codes = (np.concatenate(gaps), where[0], np.concatenate(signs), where[1], scales)
    base = rng.standard_normal(n).astype(dtype)
    for k in (0, 2):
        due, found = base.copy(), base.copy()
        native.merge_rows(due, rows, k, dtype(0.7), dtype(0.3))
        native.merge_gaps(found, codes, k, dtype(0.7), dtype(0.3))
        assert found.tobytes() == due.tobytes()
        lengths = np.ones((2, tasks))
        whole = native.measure_rows(lengths[0], rows, k, dtype(0.7))
        assert native.measure_gaps(lengths[1], n, codes, k, dtype(0.7)) == pytest.approx(whole, rel=1e-12)
        np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [1, 3, 16, 35])
@pytest.mark.parametrize("n", [1, 9, 4096, 9001])
@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_masks_that_are_still_packed(dtype: torch.dtype, tasks: int, n: int, kind: str) -> None:
    native = merging()
    assert native is not None
    generator = torch.Generator().manual_seed(tasks * n)
    masks = torch.randint(0, 2 if kind == "binary" else 3, (tasks, n), generator=generator, dtype=torch.uint8)
    vector, base = (torch.randn(n, generator=generator, dtype=dtype) for _ in range(2))
    vector[: n // 5], base[: n // 3] = 0, -0.0
    if n > 20:
        vector[11], vector[13], vector[17] = float("inf"), float("nan"), torch.finfo(dtype).max
    scales = tuple(torch.rand(tasks, generator=generator).tolist())
    codes = np.stack([reference.pack(mask.numpy(), kind) for mask in masks])
    for source in ("vector", "tasks"):
        method = make_method("consensus", k=2, alpha=0.7, source=source)
        due, found = base.clone(), base.clone()
        _move(due, method.delta(MergeTile(tuple(range(tasks)), vector, masks, scales)), 0.3)
        number = found.numpy().dtype.type
        native.merge_masks(
            found.numpy(), vector.numpy(), codes, reference.SYMBOL_BITS[kind], np.array(scales, number),
            source == "vector", 2, number(0.7), number(0.3),
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


WAYS: list[dict[str, Any]] = [{"alpha": 0.4, "k": 2}, {"alpha": 0.4, "k": 0}, {"tasks": ["b", "a"]}, {}]


@pytest.fixture(scope="session")
def merged_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[Path, list[Merged]]]:
    """By recipe and number of tasks an archive, and what the reference path merges: the same for every variant."""

    @cache
    def made(recipe: str, count: int) -> tuple[Path, list[Merged]]:
        base, tasks = tiny_zoo(count)
        for number, task in enumerate(tasks.values()):
            if number % 4 == 1:
                task["fc.weight"] = base["fc.weight"].clone()
        path = tmp_path_factory.mktemp("merged") / "zoo"
        with pytest.MonkeyPatch.context() as patch, packed(base, tasks, path, recipe=recipe) as zoo:
            without_kernels(patch)
            return path, [zoo.merged(**way) for way in WAYS]

    return made


@pytest.mark.parametrize("recipe", ["solo", "fit", "tall", "mean", "emr"])
@pytest.mark.parametrize("count", [3, 18])
def test_an_archive_is_merged_to_the_same_bits_without_them(
    recipe: str, count: int, merged_without: Callable[[str, int], tuple[Path, list[Merged]]]
) -> None:
    path, without = merged_without(recipe, count)
    with tallstore.open(path) as zoo:
        for again, way in zip(without, WAYS, strict=True):
            one = zoo.merged(**way)
            assert again.report.alpha == one.report.alpha
            assert_same(one, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_archive_of_marks_is_merged_by_their_gaps(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(5)
    base = {
        name: torch.randn(shape, generator=g).to(dtype) for name, shape in {"w": (300, 401), "v": (90, 100)}.items()
    }
    tasks = {
        t: {name: w + 0.01 * torch.randn(w.shape, generator=g).to(dtype) for name, w in base.items()} for t in "abcd"
    }
    tasks["b"]["w"] = base["w"].clone()
    with packed(base, tasks, tmp_path / "zoo", bits=0.3, kappa=1) as zoo:
        ways: list[dict[str, Any]] = [{"alpha": 0.4, "k": 2}, {"k": 0}, {"tasks": ["c", "a"], "alpha": 1.0}]
        by_gaps: list[bool] = []
        real = TaskVectorReader.gaps

        def seen(*args: Any) -> Any:
            found = real(*args)
            by_gaps.append(found is not None)
            return found

        monkeypatch.setattr(TaskVectorReader, "gaps", seen)
        found = [zoo.merged(**way) for way in ways]
        assert any(by_gaps)
        monkeypatch.setattr(TaskVectorReader, "gaps", lambda *_: None)
        for one, way in zip(found, ways, strict=True):
            again = zoo.merged(**way)
            assert again.report.alpha == one.report.alpha
            assert_same(one, again)
