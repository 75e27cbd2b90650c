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
from support import without_kernels as no_kernels
from support import write_folder
from torch import Tensor

import tallstore
from tallstore import codecs
from tallstore.checkpoints import Checkpoint, open_checkpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.encoder import straight, work
from tallstore.encoder.chunk import Made, Row, encode_chunk, task_vector
from tallstore.encoder.kept import remeasure
from tallstore.encoder.quality import agreement
from tallstore.errors import CheckpointError
from tallstore.kernels import fast
from tallstore.recipes.allocation import Levels, magnitudes
from tallstore.recipes.fit import Fit
from tallstore.recipes.solo import Solo

pytestmark = pytest.mark.skipif(fast.pack_kernels() is None, reason="needs numba, and kernels that are not turned off")
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


def start_of(base: Tensor) -> straight.Start:
    found = straight.start_of(base, float(base.float().abs().max()))
    assert found is not None
    return found


def always(base: Tensor, weights: Tensor, recipe: Solo, start: int, *, exact: bool = False) -> Made:
    """What the general way makes of a row."""
    rows, vector, mask = [Row(2, weights, exact=exact)], codecs.VECTOR["ones"], codecs.MASK["adaptive"]
    coded = encode_chunk(base, rows, recipe, vector, mask, torch.device("cpu"), "w", start)
    return remeasure(coded, rows, base, rounded=False, vector=vector, mask=mask).rows[0]


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


@settings(max_examples=100, deadline=None)
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
    recipe, mask = settled(Levels((low * unit,), width * unit)), codecs.MASK["adaptive"]
    here = slice(start, start + n)
    found = straight.marked(checkpoint, "w", start, start_of(base[here]), recipe, mask, 2, "w")
    assert found is not None
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
    recipe, mask = settled(Levels((16_388.0,))), codecs.MASK["adaptive"]
    checkpoint = saved(tmp_path, {"w": weights})
    found = straight.marked(checkpoint, "w", 0, start_of(base), recipe, mask, 2, "w")
    assert found is not None
    assert found[0].scale > 2.0**16
    assert found[0].sums[0] == float("inf")
    check_same(found[0], always(base, weights, recipe, 0))
    check_same(found[0], without_kernels(base, weights, recipe, 0))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_numbers_are_widened_and_rounded_as_torch_has_it(kind: torch.dtype) -> None:
    """All there are, what lies between two of them, and what is next to that."""
    compiled = fast.kernels()
    assert compiled is not None
    words = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(len(words), np.float32)
    compiled.widen(wide, words, kind == torch.bfloat16)
    due = torch.from_numpy(words.view(np.int16)).view(kind).float().numpy()
    number = ~np.isnan(due)
    assert np.isnan(wide[~number]).all()
    np.testing.assert_array_equal(wide[number].view(np.uint32), due[number].view(np.uint32))
    unit = np.uint32(1 << 16 if kind == torch.bfloat16 else 1 << 13)
    near = [
        (due[number].view(np.uint32) + step).view(np.float32)
        for step in (0, 1, unit // 2 - 1, unit // 2, unit // 2 + 1)
    ]
    small = np.arange(-4097, 4098, dtype=np.float32) * np.float32(2.0**-26)
    values = np.concatenate(
        [*near, small, np.nextafter(small, np.float32(1)), np.float32([65519.996, 65520, 65535, 65536])]
    )
    values = values[~np.isnan(values)]
    due = torch.from_numpy(values).to(kind).float().numpy()
    rounded = values.copy()
    compiled.narrow(rounded, np.empty_like(values), kind == torch.bfloat16)
    np.testing.assert_array_equal(rounded.view(np.uint32), due.view(np.uint32))


LADDERS = st.sampled_from(
    [
        Levels((0.001, 0.004, 0.02)),
        Levels(tuple(0.002 * (0.62 + i) for i in range(7))),
        Levels((0.0, 0.5)),
        Levels(tuple(0.03 * i for i in range(7)), 0.03),
        Levels((1e-9, 1e9)),
        Levels((1e9, 2e9)),
    ]
)
"""Few and many, hard ones and with dither, one that is used and none."""


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 5000), st.sampled_from([0.0, 0.02, 0.4, 1.0]), LADDERS, st.integers(0, 2**32))
def test_a_row_is_put_on_levels_as_always(
    tmp_path_factory: pytest.TempPathFactory, n: int, start: int, share: float, levels: Levels, seed: int
) -> None:
    base = given_base(start + n + 3, seed)
    weights = changed(base, seed, share)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    recipe, here = settled(levels), slice(start, start + n)
    found = straight.leveled(checkpoint, "w", start, start_of(base[here]), levels, recipe.seed(2, "w"))
    assert found is not None
    made, moved = found
    assert made == always(base[here], weights[here], recipe, start)
    assert moved == (not same_words(weights[here], base[here]))
    assert made == without_kernels(base[here], weights[here], recipe, start)
    # What was measured and what was said to be decoded is what a decoder gives.
    tau, step = (
        task_vector(base[here], weights[here]),
        torch.from_numpy(codecs.VECTOR["q4"].decode(made.data, n).copy()),
    )
    assert made.sums == agreement(tau, step)
    decoded = always(base[here], weights[here], recipe, start, exact=True).decoded
    assert decoded is not None
    assert torch.equal(decoded, base[here] + step)
    checkpoint.close()


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 5000), st.sampled_from([0.0, 0.4, 1.0]), LADDERS, NARROW, UNITS, st.integers(0, 2**32))
def test_a_narrow_row_is_put_on_levels_as_always(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    start: int,
    share: float,
    levels: Levels,
    kind: torch.dtype,
    unit: float,
    seed: int,
) -> None:
    base = given_base(start + n + 3, seed, kind, unit)
    weights = changed(base, seed, share, unit)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    levels = Levels(tuple(bound * unit for bound in levels.bounds), levels.width * unit)
    recipe, here = settled(levels), slice(start, start + n)
    found = straight.leveled(checkpoint, "w", start, start_of(base[here]), levels, recipe.seed(2, "w"))
    assert found is not None
    made, moved = found
    check_same(made, always(base[here], weights[here], recipe, start))
    check_same(made, without_kernels(base[here], weights[here], recipe, start))
    assert moved == (not same_words(weights[here], base[here]))
    checkpoint.close()


@settings(max_examples=40, deadline=None)
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
    found = straight.counted(checkpoint, "w", cut, start_of(torch.cat([base[a:b] for a, b in runs])))
    assert found is not None
    for tile, counted in zip(cut, found, strict=True):
        before, after = (torch.cat([each[a:b] for a, b in tile]) for each in (base, weights))
        due = magnitudes(task_vector(before, after).numpy(), before.float().numpy())
        np.testing.assert_array_equal(counted.counts, due.counts)
        assert (counted.first, counted.base_energy) == (due.first, due.base_energy)
    before = torch.cat([base[a:b] for a, b in runs])
    subtracted = straight.moved(checkpoint, "w", runs, start_of(before))
    assert subtracted is not None
    tau, moved = subtracted
    after = torch.cat([weights[a:b] for a, b in runs])
    due = task_vector(before, after)
    assert moved == (not same_words(after, before))
    assert same_words(torch.from_numpy(tau), due)
    checkpoint.close()


def test_runs_are_cut_where_tiles_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "STATISTIC_TILE", 10)
    runs = [work.Item("w", start, stop, ()) for start, stop in ((0, 4), (8, 14), (20, 45))]
    tiles = [[(0, 4), (8, 14)], [(20, 30)], [(30, 40)], [(40, 45)]]
    assert [tile.tolist() for tile in work._cut(runs)] == [[list(run) for run in tile] for tile in tiles]
    assert [tile.tolist() for tile in work._cut(runs[2:])] == [[[20, 30]], [[30, 40]], [[40, 45]]]
    runs[1] = work.Item("w", 8, 16, ())
    assert [tile.tolist() for tile in work._cut(runs[:2])] == [[[0, 4], [8, 14]], [[14, 16]]]


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
    recipe, mask = settled(Levels((0.5,))), codecs.MASK["adaptive"]
    assert straight.counted(checkpoint, "w", [np.array([(0, 40_000)])], start) is None
    assert straight.marked(checkpoint, "w", 0, start, recipe, mask, 2, "w") is None
    assert straight.leveled(checkpoint, "w", 0, start, Levels((0.5, 0.9)), 0) is None
    assert straight.start_of(weights, work._largest(weights)) is None


def test_other_rules_levels_types_and_sources_are_left_to_it_too(tmp_path: Path) -> None:
    base, mask = torch.zeros(100), codecs.MASK["adaptive"]
    start = start_of(base)
    checkpoint = saved(tmp_path / "f32", {"w": base})
    half = saved(tmp_path / "bf16", {"w": base.bfloat16()})
    memory = open_checkpoint({"w": base})

    def marked(source: Checkpoint, recipe: Any) -> object:
        return straight.marked(source, "w", 0, start, recipe, mask, 2, "w")

    signs = settled(Levels((0.5,)))
    assert marked(checkpoint, signs) is not None
    for source, recipe in (
        (half, signs),
        (memory, signs),
        (checkpoint, settled(Levels((0.5, 0.9)))),
        (checkpoint, Fit()),
    ):
        assert marked(source, recipe) is None
    assert straight.moved(half, "w", [(0, 100)], start) is None
    assert straight.moved(memory, "w", [(0, 100)], start) is None
    for source, there in ((checkpoint, True), (half, False), (memory, False)):
        found = straight.leveled(source, "w", 0, start, Levels((0.5, 0.9)), 0)
        assert (found is not None) == there
    assert straight.leveled(checkpoint, "w", 0, start_of(torch.zeros(101)), Levels((0.5, 0.9)), 0) is None  # cut off
    cut = [np.array([(0, 100)])]
    assert straight.counted(checkpoint, "w", cut, start) is not None
    assert straight.counted(half, "w", cut, start) is None
    assert straight.counted(memory, "w", cut, start) is None
    below = start_of(base.bfloat16())
    for source, there in ((checkpoint, False), (half, True)):
        assert (straight.marked(source, "w", 0, below, signs, mask, 2, "w") is not None) == there
        assert (straight.moved(source, "w", [(0, 100)], below) is not None) == there
        assert (straight.counted(source, "w", cut, below) is not None) == there
    assert straight.start_of(base.double(), 0.0) is None


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
        (torch.bfloat16, {}),
        (torch.bfloat16, {"bits": 2.5}),
        (torch.float16, {"bits": 0.3}),
        (torch.float16, {"max_error": 0.4}),
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
    assert not all(calls)
    monkeypatch.setattr(SafetensorsCheckpoint, "place", Checkpoint.place)
    tallstore.pack(base, tasks, tmp_path / "general.tall", **options)
    assert (tmp_path / "straight.tall").read_bytes() == (tmp_path / "general.tall").read_bytes()


def seen(monkeypatch: pytest.MonkeyPatch, tell: Callable[[bool], object]) -> None:
    """Tell of each row whether it went straight."""
    from tallstore.encoder import work

    real = work._straight

    def straight_or_not(*args: Any) -> Any:
        found = real(*args)
        tell(found is not None)
        return found

    monkeypatch.setattr(work, "_straight", straight_or_not)


def test_a_file_that_is_cut_off_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = zoo(tmp_path)
    from tallstore.encoder import stream

    real = stream.Stream._statistics

    def cut(self: stream.Stream, engine: Any) -> None:
        real(self, engine)
        os.truncate(tasks["a"] / "model.safetensors", 1_000_000)

    monkeypatch.setattr(stream.Stream, "_statistics", cut)
    with pytest.raises(CheckpointError, match=r"a/model\.safetensors: cut off in tensor 'big'"):
        tallstore.pack(base, {"a": tasks["a"]}, tmp_path / "zoo.tall")
    assert not (tmp_path / "zoo.tall").exists()
