"""Encoding on a GPU chooses what the recipes choose on a CPU: v, masks and sums, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elements import DTYPES, bits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import examples, read_all, tiny_zoo
from torch import Tensor

import tallstore
from tallstore import codecs
from tallstore.encoder import chunk
from tallstore.encoder import select_gpu as encoder_device
from tallstore.encoder.backend import Backend, backend_of
from tallstore.encoder.chunk import TaskRow, tiles
from tallstore.recipes import RECIPES, Recipe, make_recipe
from tallstore.recipes.quantizers import Quantizer

pytest.importorskip("triton")

if not torch.cuda.is_available():
    from tallstore.kernels.gpu import encode

NAME = "a.weight"
SIZES = st.sampled_from([1, 7, 8, 127, 129, 1024, 1500])
WAYS: Sequence[tuple[str, dict[str, Any]]] = (
    ("tall", {"lam": 0.4}),
    ("tall", {"lam": 0.3, "topk": 30}),
    ("mean", {"lam": 0.6}),
    ("emr", {}),
    ("fit", {}),
    ("fit", {"kind": "signed"}),
    ("ties", {"lam": 0.5}),
    ("ties", {"lam": 0.5, "merge": "mean", "topk": 60}),
    ("solo", {}),
)


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """The interpreter takes its time for each program: longer blocks, fewer of them."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(encode, "WARPS", 16)
        yield


def moved(base: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """A fine-tune: steps of every size and none, equal ones, opposite ones, and weights of either zero."""
    g = torch.Generator().manual_seed(seed)
    n = len(base)
    step = torch.randn(n, generator=g, dtype=torch.float64) * 2.0 ** torch.randint(-12, 0, (n,), generator=g)
    equal = torch.tensor([0.5, -0.5, 0.25, 2.0**-140])[torch.randint(0, 4, (n,), generator=g)]
    which = torch.randint(0, 8, (n,), generator=g)
    step = torch.where(which < 2, equal.double(), torch.where(which == 2, 0.0, step))
    weights = (base.double() + step).to(dtype)
    weights[which == 3] = 0.0
    weights[which == 4] = -0.0
    return weights


def zoo(n: int, base_dtype: torch.dtype, dtypes: Sequence[torch.dtype], seed: int) -> tuple[Tensor, list[TaskRow]]:
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=g, dtype=torch.float64) * 2.0 ** torch.randint(-6, 2, (n,), generator=g)
    odd = torch.tensor([0.0, -0.0, 2.0**-130, -(2.0**-149), 2.0**-24, 2.0**14, 1.0])
    at = torch.randint(0, 3 * len(odd), (n,), generator=g)
    base = torch.where(at < len(odd), odd.double()[at % len(odd)], base).to(base_dtype)
    base[::16] = 0.0
    rows = [TaskRow(task, moved(base, dtype, seed + task)) for task, dtype in enumerate(dtypes)]
    for row in rows:
        # So small that candidates for v tie.
        few = torch.randint(-4, 5, (len(row.weights[::16]),), generator=g).double()
        row.weights[::16] = (few * 2.0**-149).to(row.weights.dtype)
    return base, rows


def ready(way: str, options: dict[str, Any], base: Tensor, rows: Sequence[TaskRow]) -> Recipe:
    """A recipe whose statistics are finished."""
    recipe = make_recipe(way, **options)
    for statistic in recipe.statistics(len(rows)):
        for each in statistic.condense(map(statistic.measure, tiles(base, rows, NAME))):
            statistic.update(each)
        statistic.finish()
    if way == "solo":
        # Every sort of threshold, whatever the statistics would make of so few elements.
        sorts = (Quantizer((0.25,)), Quantizer((0.125,), 0.5), Quantizer((0.0,)), Quantizer((0.1, 0.2)), None)
        for row in rows:
            recipe._chosen.pop((row.task, NAME), None)
            if (levels := sorts[row.task % len(sorts)]) is not None:
                recipe._chosen[row.task, NAME] = levels
    return recipe


def assert_same_choice(
    base: Tensor, rows: Sequence[TaskRow], recipe: Recipe, codec: str, where: Any, start: int
) -> None:
    wanted = chunk.choose(base, rows, recipe, codecs.VECTOR[codec], torch.device("cpu"), NAME, start)
    found = encoder_device.choose(base, rows, recipe, codecs.VECTOR[codec], where, NAME, start)
    assert found.vector == wanted.vector
    assert torch.equal(bits(found.stored), bits(wanted.stored))
    for mine, theirs in zip(found.packed, wanted.packed, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert torch.equal(found.totals, wanted.totals)


@pytest.mark.parametrize(("way", "options"), WAYS, ids=str)
@settings(max_examples=examples(6, least=2), deadline=None)
@given(SIZES, st.sampled_from(DTYPES), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from(["f32", "bf16", "q4"]))
@example(127, torch.float32, 3, 0, "f32")  # means that underflow to a zero
def test_one_type(device: Any, way: str, options: Any, n: int, dtype: Any, count: int, seed: int, codec: str) -> None:
    base, rows = zoo(n, dtype, [dtype] * count, seed)
    recipe = ready(way, options, base, rows)
    assert_same_choice(base, rows, recipe, "ones" if way == "solo" else codec, device, seed * 64)


F32, BF16, F16, F64 = DTYPES


@pytest.mark.parametrize(("way", "options"), [WAYS[1], WAYS[5], WAYS[-1]], ids=str)
@pytest.mark.parametrize(
    ("base_dtype", "dtypes"),
    [(F32, (BF16, F16, F32)), (BF16, (F32, F16)), (F64, (F32, BF16)), (F16, (F64, F32, BF16))],
    ids=str,
)
def test_mixed_types_and_short_rows(device: Any, way: str, options: Any, base_dtype: Any, dtypes: Any) -> None:
    base, rows = zoo(1300, base_dtype, dtypes, 7)
    rows[0] = TaskRow(0, rows[0].weights[:333])
    recipe = ready(way, options, base, rows)
    assert_same_choice(base, rows, recipe, "ones" if way == "solo" else "f32", device, 0)


@pytest.mark.parametrize(("way", "count"), [("tall", 17), ("fit", 16), ("fit", 17), ("tall", 32)])
def test_many_tasks(device: Any, way: str, count: int) -> None:
    base, rows = zoo(150, torch.float32, [torch.float32] * count, count)
    assert_same_choice(base, rows, ready(way, {"lam": 0.4} if way == "tall" else {}, base, rows), "f32", device, 0)


def test_a_chunk_of_several_tiles(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_device, "PIECE", chunk.TILE)
    base, rows = zoo(chunk.TILE + 2077, torch.bfloat16, [torch.bfloat16] * 2, 5)
    rows[0] = TaskRow(0, rows[0].weights[:5001])
    # The hash of places counts on beyond 32 bits.
    assert_same_choice(base, rows, ready("solo", {}, base, rows), "ones", device, (1 << 32) - 7005)


@pytest.mark.parametrize(("way", "codec"), [("solo", None), ("fit", "q4"), ("emr", "bf16")])
def test_packing_gives_the_same_archive(
    device: Any, way: str, codec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = tiny_zoo(3, torch.bfloat16)
    # κ = 1: there masks are better than dropping some changes, of which no device has a kernel.
    options = {"recipe": way, **({"bits": 1, "kappa": 1} if codec is None else {"vector": codec})}
    tallstore.pack(base, tasks, tmp_path / "cpu", device="cpu", **options)
    used = []
    lane = encoder_device.lane_of

    def seen(device: torch.device) -> Any:
        used.append(device)
        return lane(device)

    monkeypatch.setattr(encoder_device, "lane_of", seen)
    monkeypatch.setattr(encoder_device, "has_kernels", lambda _: True)
    # The interpreter does one thing at a time.
    workers = 1 if device.type == "cpu" else None
    tallstore.pack(base, tasks, tmp_path / "kernels", device=device.type, workers=workers, **options)
    assert used
    assert read_all(tmp_path / "kernels") == read_all(tmp_path / "cpu")


def test_too_many_tasks_are_left_to_the_cpu(device: Any) -> None:
    base, rows = zoo(8, torch.float32, [torch.float32] * 33, 1)
    recipe = ready("fit", {}, base, rows)
    assert backend_of(rows, recipe, codecs.VECTOR["f32"], device, NAME) is Backend.REFERENCE
    here = Backend.GPU if encoder_device.has_kernels(device) else Backend.REFERENCE
    assert backend_of(rows[:32], recipe, codecs.VECTOR["f32"], device, NAME) is here


def test_every_recipe_has_a_rule() -> None:
    assert {way for way, _ in WAYS} == set(RECIPES)
