"""Rows that go straight from their files to measures and marks: the bits of the general way, and its errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import examples, write_folder
from support import without_kernels as no_kernels
from torch import Tensor

import tallstore
from tallstore import codecs
from tallstore.checkpoints import Checkpoint, open_checkpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.encoder import encode_item, fused_rows, items, measure_item, row_bits
from tallstore.encoder.chunk import Made, TaskRow, encode_chunk, task_vector
from tallstore.encoder.fused_rows import Fallback
from tallstore.encoder.metrics import agreement
from tallstore.encoder.remeasure import remeasure
from tallstore.errors import CheckpointError
from tallstore.kernels.native import encode as native
from tallstore.kernels.native import library
from tallstore.recipes.histogram import magnitudes
from tallstore.recipes.quantizers import Quantizer
from tallstore.recipes.solo import Solo

pytestmark = pytest.mark.skipif(library.chosen() is None, reason="needs the native library")
SIZES = st.sampled_from([1, 3, 4, 5, 1023, 1024, 1025, 4099, 32_767, 32_768, 32_769, 70_001])
KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
NARROW = st.sampled_from([torch.bfloat16, torch.float16])
UNITS = st.sampled_from([1.0, 2.0**-20, 2.0**13, 2.0**-124])
"""What weights are multiples of: usual ones; float16's small ones, and its largest; bfloat16's small ones."""


def given_base(n: int, seed: int, kind: torch.dtype = torch.float32, unit: float = 1.0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return (torch.from_numpy(values) * unit).clamp(-(2.0**15), 2.0**15).to(kind)


def changed(base: Tensor, seed: int, share: float, unit: float = 1.0) -> Tensor:
    """Some of it moved, in runs, by steps of all sizes; some of what is left is another zero."""
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.random(-(-len(base) // 700)) < share, 700)[: len(base)]
    steps = (rng.standard_normal(len(base)) * 2.0 ** rng.integers(-20, 0, len(base))).astype(np.float32)
    moved = base.float() + torch.from_numpy(np.where(runs, steps, np.float32(0))) * unit
    return moved.clamp(-(2.0**15), 2.0**15).to(base.dtype)


def start_of(base: Tensor) -> fused_rows.Start:
    found = fused_rows.start_of(base, float(base.float().abs().max()))
    assert found is not None
    return found


def row_of(checkpoint: Checkpoint, base: fused_rows.Start) -> native.NativeRow:
    found = fused_rows.row_in_file(checkpoint, "w", base)
    assert found is not None
    return found


def marked(checkpoint: Checkpoint, start: int, base: fused_rows.Start, recipe: Solo) -> tuple[Made, bool] | Fallback:
    rule, mask = recipe.rule([2], "w"), codecs.MASK["adaptive"]
    return fused_rows.marked(row_of(checkpoint, base), start, base, rule, recipe, mask, 2)


def always(base: Tensor, weights: Tensor, recipe: Solo, start: int, *, exact: bool = False) -> Made:
    """What the general way makes of a row."""
    rows, vector, mask = [TaskRow(2, weights, exact=exact)], codecs.VECTOR["ones"], codecs.MASK["adaptive"]
    coded = encode_chunk(base, rows, recipe, vector, mask, torch.device("cpu"), "w", start)
    made = remeasure(*(coded, rows, base), rounded=False, codecs=(vector, mask), recipe=recipe, tensor="w", first=start)
    return made.rows[0]


def without_kernels(base: Tensor, weights: Tensor, recipe: Solo, start: int) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        no_kernels(patch)
        return always(base, weights, recipe, start)


def check_same(made: Made, due: Made) -> None:
    assert replace(made, sums=()) == replace(due, sums=())
    np.testing.assert_array_equal(made.sums, due.sums)  # a sum that overflowed may be NaN, in both


def same_words(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def saved(folder: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsCheckpoint([folder / "model.safetensors"], str(folder))


def settled(levels: Any) -> Solo:
    """A recipe whose precision is chosen."""
    recipe = Solo()
    recipe._chosen = {(2, "w"): levels}
    return recipe


@settings(max_examples=examples(100), deadline=None)
@given(
    SIZES,
    st.integers(0, 5000),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.003, 1.5]),
    st.sampled_from([0.0, 0.02]),
    KINDS,
    UNITS,
    st.integers(0, 2**32),
)
def test_a_row_is_marked_as_always(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    start: int,
    share: float,
    low: float,
    width: float,
    kind: torch.dtype,
    unit: float,
    seed: int,
) -> None:
    base = given_base(start + n + 3, seed, kind, unit)
    weights = changed(base, seed, share, unit)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    recipe, here = settled(Quantizer((low * unit,), width * unit)), slice(start, start + n)
    found = marked(checkpoint, start, start_of(base[here]), recipe)
    assert not isinstance(found, Fallback)
    made, moved = found
    check_same(made, always(base[here], weights[here], recipe, start))
    check_same(made, without_kernels(base[here], weights[here], recipe, start))
    assert moved == (not same_words(weights[here], base[here]))
    checkpoint.close()


def test_what_rounds_to_infinity_is_measured_as_always(tmp_path: Path) -> None:
    """Few are marked, and the scale that makes up for the rest is beyond float16."""
    base = torch.full((40_001,), 2.0**15, dtype=torch.float16)
    weights = base - 2.0**14
    base[:5] = torch.tensor([0.0, -0.0, 2.0**-24, 32736.0, -3 * 2.0**-24])
    weights[:5] = base[:5] + torch.tensor([16_400.0, -16_400.0, 16_400.0, -16_400.0, 16_400.0])
    recipe, checkpoint = settled(Quantizer((16_388.0,))), saved(tmp_path, {"w": weights})
    found = marked(checkpoint, 0, start_of(base), recipe)
    assert not isinstance(found, Fallback)
    assert found[0].scale > 2.0**16
    assert found[0].sums[0] == float("inf")
    check_same(found[0], always(base, weights, recipe, 0))
    check_same(found[0], without_kernels(base, weights, recipe, 0))


LADDERS = st.sampled_from(
    [
        Quantizer((0.001, 0.004, 0.02)),
        Quantizer(tuple(0.002 * (0.62 + i) for i in range(7))),
        Quantizer((0.0, 0.5)),
        Quantizer(tuple(0.03 * i for i in range(7)), 0.03),
        Quantizer((1e-9, 1e9)),
        Quantizer((1e9, 2e9)),
    ]
)
"""Few and many, hard ones and with dither, one that is used and none."""


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, st.integers(0, 5000), st.sampled_from([0.0, 0.02, 0.4, 1.0]), LADDERS, st.integers(0, 2**32))
def test_a_row_is_put_on_levels_as_always(
    tmp_path_factory: pytest.TempPathFactory, n: int, start: int, share: float, levels: Quantizer, seed: int
) -> None:
    base = given_base(start + n + 3, seed)
    weights = changed(base, seed, share)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    recipe, here = settled(levels), slice(start, start + n)
    begin = start_of(base[here])
    found = fused_rows.leveled(row_of(checkpoint, begin), start, begin, levels, recipe.seed(2, "w"))
    assert not isinstance(found, Fallback)
    made, moved = found
    assert made == always(base[here], weights[here], recipe, start)
    assert moved == (not same_words(weights[here], base[here]))
    assert made == without_kernels(base[here], weights[here], recipe, start)
    assert made.codec == ("dither-levels" if levels.width else "q4")
    # What was measured and what was said to be decoded is what a decoder gives.
    tau, step = (
        task_vector(base[here], weights[here]),
        torch.from_numpy(codecs.VECTOR[made.codec].decode(made.data, n).copy()),
    )
    assert made.sums == agreement(tau, step)
    decoded = always(base[here], weights[here], recipe, start, exact=True).decoded
    assert decoded is not None
    assert torch.equal(decoded, base[here] + step)
    checkpoint.close()


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, st.integers(0, 5000), st.sampled_from([0.0, 0.4, 1.0]), LADDERS, NARROW, UNITS, st.integers(0, 2**32))
def test_a_narrow_row_is_put_on_levels_as_always(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    start: int,
    share: float,
    levels: Quantizer,
    kind: torch.dtype,
    unit: float,
    seed: int,
) -> None:
    base = given_base(start + n + 3, seed, kind, unit)
    weights = changed(base, seed, share, unit)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    levels = Quantizer(tuple(bound * unit for bound in levels.bounds), levels.width * unit)
    recipe, here = settled(levels), slice(start, start + n)
    begin = start_of(base[here])
    found = fused_rows.leveled(row_of(checkpoint, begin), start, begin, levels, recipe.seed(2, "w"))
    assert not isinstance(found, Fallback)
    made, moved = found
    check_same(made, always(base[here], weights[here], recipe, start))
    check_same(made, without_kernels(base[here], weights[here], recipe, start))
    assert moved == (not same_words(weights[here], base[here]))
    checkpoint.close()


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6), KINDS, UNITS, st.integers(0, 2**32))
def test_runs_are_counted_as_always(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], kind: torch.dtype, unit: float, seed: int
) -> None:
    ends = np.cumsum(np.array(lengths) + 5).tolist()
    runs = [(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    cut = [np.array(each) for each in (runs[: seed % len(runs)], runs[seed % len(runs) :]) if each]
    base = given_base(ends[-1] + 1, seed, kind, unit)
    weights = changed(base, seed, 0.5, unit)
    checkpoint = saved(tmp_path_factory.mktemp("runs"), {"w": weights})
    begin = start_of(torch.cat([base[a:b] for a, b in runs]))
    row = row_of(checkpoint, begin)
    found = fused_rows.counted(row, cut, begin)
    assert not isinstance(found, Fallback)
    for tile, counted in zip(cut, found, strict=True):
        before, after = (torch.cat([each[a:b] for a, b in tile]) for each in (base, weights))
        due = magnitudes(task_vector(before, after).numpy(), before.float().numpy())
        np.testing.assert_array_equal(counted.counts, due.counts)
        assert (counted.first, counted.base_energy) == (due.first, due.base_energy)
    before = torch.cat([base[a:b] for a, b in runs])
    subtracted = fused_rows.moved(row, runs, begin)
    assert not isinstance(subtracted, Fallback)
    tau, moved = subtracted
    after = torch.cat([weights[a:b] for a, b in runs])
    due = task_vector(before, after)
    assert moved == (not same_words(after, before))
    assert same_words(torch.from_numpy(tau), due)
    checkpoint.close()


def test_runs_are_cut_where_tiles_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_item, "STATISTIC_TILE", 10)
    runs = [items.Item("w", start, stop, ()) for start, stop in ((0, 4), (8, 14), (20, 45))]
    tiles = [[(0, 4), (8, 14)], [(20, 30)], [(30, 40)], [(40, 45)]]
    assert [tile.tolist() for tile in measure_item.cut_tiles(runs)] == [[list(run) for run in tile] for tile in tiles]
    assert [tile.tolist() for tile in measure_item.cut_tiles(runs[2:])] == [[[20, 30]], [[30, 40]], [[40, 45]]]
    runs[1] = items.Item("w", 8, 16, ())
    assert [tile.tolist() for tile in measure_item.cut_tiles(runs[:2])] == [[[0, 4], [8, 14]], [[14, 16]]]


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        *((kind, odd) for kind in (torch.float32, torch.bfloat16) for odd in (*NOT_FINITE, 1.01 * 2.0**100)),
        *((torch.float16, odd) for odd in (*NOT_FINITE, 1.001 * 2.0**15, -65504.0)),
    ],
)
@pytest.mark.parametrize("at", [0, 33_000])
def test_what_arithmetic_cannot_carry_is_left_to_the_general_way(
    tmp_path: Path, kind: torch.dtype, odd: float, at: int
) -> None:
    base = torch.full((40_000,), 2.0**15 if kind == torch.float16 else 2.0**100).to(kind)
    weights, start = base.clone(), start_of(base)
    weights[at] = odd
    checkpoint = saved(tmp_path, {"w": weights})
    row, beyond = row_of(checkpoint, start), Fallback.OUT_OF_REACH
    assert fused_rows.counted(row, [np.array([(0, 40_000)])], start) is beyond
    assert marked(checkpoint, 0, start, settled(Quantizer((0.5,)))) is beyond
    assert fused_rows.leveled(row, 0, start, Quantizer((0.5, 0.9)), 0) is beyond
    assert fused_rows.start_of(weights, row_bits.largest_of(weights)) is None


def test_rows_of_other_types_and_sources_take_the_general_way(tmp_path: Path) -> None:
    base = torch.zeros(100)
    single, half = saved(tmp_path / "f32", {"w": base}), saved(tmp_path / "bf16", {"w": base.bfloat16()})
    memory = open_checkpoint({"w": base})
    for start, there in ((start_of(base), single), (start_of(base.bfloat16()), half)):
        for source in (single, half, memory):
            assert (fused_rows.row_in_file(source, "w", start) is not None) == (source is there)
    assert fused_rows.start_of(base.double(), 0.0) is None


def test_a_row_that_is_cut_off_takes_the_general_way(tmp_path: Path) -> None:
    checkpoint, start = saved(tmp_path, {"w": torch.zeros(100)}), start_of(torch.zeros(101))
    row = row_of(checkpoint, start)
    assert marked(checkpoint, 0, start, settled(Quantizer((0.5,)))) is Fallback.CUT_OFF
    assert fused_rows.leveled(row, 0, start, Quantizer((0.5, 0.9)), 0) is Fallback.CUT_OFF
    assert fused_rows.counted(row, [np.array([(0, 101)])], start) is Fallback.CUT_OFF


def zoo(folder: Path, kind: torch.dtype = torch.float32) -> tuple[Path, dict[str, Path]]:
    """Checkpoints in files: sampled tensors, still and small ones, NaN, another type, rows of their own."""
    g = torch.Generator().manual_seed(3)
    shapes = {"big": (800, 700), "still": (300, 200), "norm": (64,), "odd": (1, 40_001), "broken": (200, 300)}
    base = {name: (torch.randn(shape, generator=g) * 0.1).to(kind) for name, shape in shapes.items()}
    tasks = {}
    for t in "abcd":
        state = {name: (w + 0.01 * torch.randn(w.shape, generator=g)).to(kind) for name, w in base.items()}
        state["still"] = base["still"].clone()
        tasks[t] = state
    tasks["b"]["broken"][100, 3] = float("nan")
    other = torch.float16 if kind == torch.bfloat16 else torch.bfloat16
    tasks["c"] = {name: w.to(other) for name, w in tasks["c"].items()}
    tasks["d"]["big"] = torch.cat([tasks["d"]["big"], torch.ones(9, 700, dtype=kind)])
    paths = {name: write_folder(folder / name, state) for name, state in tasks.items()}
    return write_folder(folder / "base", base), paths


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 0.3}, {"bits": 2.5}, {"exact": ["a"]}, {"max_error": 0.4}, {"base_storage": "bf16"}],
    ids=str,
)
def test_archives_are_the_same(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_archives(options, torch.float32, tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        # κ = 1: there masks are better than dropping some changes, which is no row's own affair.
        (torch.bfloat16, {"quality": "balanced", "kappa": 1}),
        (torch.bfloat16, {"bits": 2.5, "kappa": 1}),
        (torch.float16, {"bits": 0.3, "kappa": 1}),
        (torch.float16, {"quality": "balanced", "max_error": 0.4, "kappa": 1}),
    ],
    ids=str,
)
def test_archives_of_narrow_rows_are_the_same(
    kind: torch.dtype, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_archives(options, kind, tmp_path, monkeypatch)
    base, tasks = tmp_path / "base", {t: tmp_path / t for t in "abcd"}
    no_kernels(monkeypatch)
    tallstore.pack(base, tasks, tmp_path / "reference.tall", **options)
    assert (tmp_path / "straight.tall").read_bytes() == (tmp_path / "reference.tall").read_bytes()


def check_archives(options: dict[str, Any], kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = zoo(tmp_path, kind)
    calls: list[bool] = []
    seen(monkeypatch, calls.append)
    tallstore.pack(base, tasks, tmp_path / "straight.tall", **options)
    assert any(calls) == ("base_storage" not in options)
    assert (False in calls) == ("base_storage" not in options)
    monkeypatch.setattr(SafetensorsCheckpoint, "place", Checkpoint.place)
    tallstore.pack(base, tasks, tmp_path / "general.tall", **options)
    assert (tmp_path / "straight.tall").read_bytes() == (tmp_path / "general.tall").read_bytes()


def seen(monkeypatch: pytest.MonkeyPatch, tell: Callable[[bool], object]) -> None:
    """Tell of each row whether it went straight."""

    real = encode_item.code_from_file

    def straight_or_not(*args: Any) -> Any:
        found = real(*args)
        tell(isinstance(found, items.Outcome))
        return found

    monkeypatch.setattr(encode_item, "code_from_file", straight_or_not)


def test_a_file_that_is_cut_off_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = zoo(tmp_path)
    from tallstore.encoder import driver

    real = driver.Stream.gather_statistics

    def cut(self: driver.Stream, engine: Any) -> None:
        real(self, engine)
        os.truncate(tasks["a"] / "model.safetensors", 1_000_000)

    monkeypatch.setattr(driver.Stream, "gather_statistics", cut)
    with pytest.raises(CheckpointError, match=r"a/model\.safetensors: cut off in tensor 'big'"):
        tallstore.pack(base, {"a": tasks["a"]}, tmp_path / "zoo.tall")
    assert not (tmp_path / "zoo.tall").exists()
