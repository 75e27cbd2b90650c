"""Rows that go straight from their files to measures and marks: the bits of the general way, and its errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import write_folder
from torch import Tensor

import tallstore
from tallstore import codecs
from tallstore.checkpoints import Checkpoint, open_checkpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.encoder import straight, work
from tallstore.encoder.chunk import Made, Row, encode_chunk, task_vector
from tallstore.encoder.quality import agreement
from tallstore.errors import CheckpointError
from tallstore.kernels import fast
from tallstore.recipes.allocation import Levels, magnitudes
from tallstore.recipes.fit import Fit
from tallstore.recipes.solo import Solo

pytestmark = pytest.mark.skipif(fast.pack_kernels() is None, reason="needs numba, and kernels that are not turned off")
SIZES = st.sampled_from([1, 3, 4, 5, 1023, 1024, 1025, 4099, 32_767, 32_768, 32_769, 70_001])


def changed(base: Tensor, seed: int, share: float) -> Tensor:
    """Some of it moved, in runs, by steps of all sizes; some of what is left is another zero."""
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.random(-(-len(base) // 700)) < share, 700)[: len(base)]
    steps = (rng.standard_normal(len(base)) * 2.0 ** rng.integers(-20, 0, len(base))).astype(np.float32)
    return base + torch.from_numpy(np.where(runs, steps, np.float32(0)))


def saved(folder: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsCheckpoint([folder / "model.safetensors"], str(folder))


def settled(levels: Any) -> Solo:
    """A recipe whose precision is chosen."""
    recipe = Solo()
    recipe._chosen = {(2, "w"): levels}
    return recipe


@settings(max_examples=60, deadline=None)
@given(
    SIZES, st.integers(0, 5000), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.0, 0.02]), st.integers(0, 2**32)
)
def test_a_row_is_marked_as_always(
    tmp_path_factory: pytest.TempPathFactory, n: int, start: int, share: float, width: float, seed: int
) -> None:
    base = torch.from_numpy(np.random.default_rng(seed).standard_normal(start + n + 3).astype(np.float32))
    weights = changed(base, seed, share)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    recipe, mask = settled(Levels((0.003,), width)), codecs.MASK["adaptive"]
    here = slice(start, start + n)
    found = straight.marked(checkpoint, "w", start, base[here].numpy(), recipe, mask, 2, "w")
    assert found is not None
    made, moved = found
    coded = encode_chunk(
        base[here], [Row(2, weights[here])], recipe, codecs.VECTOR["ones"], mask, torch.device("cpu"), "w", start
    )
    assert made == coded.rows[0]
    assert moved == (not torch.equal(weights[here].view(torch.int32), base[here].view(torch.int32)))
    checkpoint.close()


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
    base = torch.from_numpy(np.random.default_rng(seed).standard_normal(start + n + 3).astype(np.float32))
    weights = changed(base, seed, share)
    checkpoint = saved(tmp_path_factory.mktemp("row"), {"other": torch.ones(3), "w": weights})
    recipe, here = settled(levels), slice(start, start + n)

    def always(*, exact: bool = False) -> Made:
        row = Row(2, weights[here], exact=exact)
        codec, mask, cpu = codecs.VECTOR["ones"], codecs.MASK["adaptive"], torch.device("cpu")
        return encode_chunk(base[here], [row], recipe, codec, mask, cpu, "w", start).rows[0]

    found = straight.leveled(checkpoint, "w", start, base[here].numpy(), levels, recipe.seed(2, "w"))
    assert found is not None
    made, moved = found
    assert made == always()
    assert moved == (not torch.equal(weights[here].view(torch.int32), base[here].view(torch.int32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "encode_kernels", lambda: None)
        assert made == always()
    # What was measured and what was said to be decoded is what a decoder gives.
    tau, step = (
        task_vector(base[here], weights[here]),
        torch.from_numpy(codecs.VECTOR["q4"].decode(made.data, n).copy()),
    )
    assert made.sums == agreement(tau, step)
    decoded = always(exact=True).decoded
    assert decoded is not None
    assert torch.equal(decoded, base[here] + step)
    checkpoint.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6), st.integers(0, 2**32))
def test_runs_are_counted_as_always(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int) -> None:
    ends = np.cumsum(np.array(lengths) + 5).tolist()
    runs = [(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    cut = [np.array(each) for each in (runs[: seed % len(runs)], runs[seed % len(runs) :]) if each]
    base = torch.from_numpy(np.random.default_rng(seed).standard_normal(ends[-1] + 1).astype(np.float32))
    weights = changed(base, seed, 0.5)
    checkpoint = saved(tmp_path_factory.mktemp("runs"), {"w": weights})
    found = straight.counted(checkpoint, "w", cut, torch.cat([base[a:b] for a, b in runs]).numpy())
    assert found is not None
    for tile, counted in zip(cut, found, strict=True):
        before, after = (torch.cat([each[a:b] for a, b in tile]) for each in (base, weights))
        due = magnitudes(task_vector(before, after).numpy(), before.numpy())
        np.testing.assert_array_equal(counted.counts, due.counts)
        assert (counted.first, counted.base_energy) == (due.first, due.base_energy)
    before = torch.cat([base[a:b] for a, b in runs])
    subtracted = straight.moved(checkpoint, "w", runs, before.numpy())
    assert subtracted is not None
    tau, moved = subtracted
    after = torch.cat([weights[a:b] for a, b in runs])
    due = task_vector(before, after)
    assert moved == (not torch.equal(after.view(torch.int32), before.view(torch.int32)))
    assert torch.equal(torch.from_numpy(tau).view(torch.int32), due.view(torch.int32))
    checkpoint.close()


def test_runs_are_cut_where_tiles_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "STATISTIC_TILE", 10)
    runs = [work.Item("w", start, stop, ()) for start, stop in ((0, 4), (8, 14), (20, 45))]
    tiles = [[(0, 4), (8, 14)], [(20, 30)], [(30, 40)], [(40, 45)]]
    assert [tile.tolist() for tile in work._cut(runs)] == [[list(run) for run in tile] for tile in tiles]
    assert [tile.tolist() for tile in work._cut(runs[2:])] == [[[20, 30]], [[30, 40]], [[40, 45]]]
    runs[1] = work.Item("w", 8, 16, ())
    assert [tile.tolist() for tile in work._cut(runs[:2])] == [[[0, 4], [8, 14]], [[14, 16]]]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 2.0**101])
@pytest.mark.parametrize("at", [0, 33_000])
def test_what_arithmetic_cannot_carry_is_left_to_the_general_way(tmp_path: Path, odd: float, at: int) -> None:
    base = torch.zeros(40_000)
    weights = base.clone()
    weights[at] = odd
    checkpoint = saved(tmp_path, {"w": weights})
    recipe, mask = settled(Levels((0.5,))), codecs.MASK["adaptive"]
    assert straight.counted(checkpoint, "w", [np.array([(0, 40_000)])], base.numpy()) is None
    assert straight.marked(checkpoint, "w", 0, base.numpy(), recipe, mask, 2, "w") is None
    assert straight.leveled(checkpoint, "w", 0, base.numpy(), Levels((0.5, 0.9)), 0) is None


def test_other_rules_levels_types_and_sources_are_left_to_it_too(tmp_path: Path) -> None:
    base, mask = torch.zeros(100), codecs.MASK["adaptive"]
    checkpoint = saved(tmp_path / "f32", {"w": base})
    half = saved(tmp_path / "bf16", {"w": base.bfloat16()})
    memory = open_checkpoint({"w": base})

    def marked(source: Checkpoint, recipe: Any) -> object:
        return straight.marked(source, "w", 0, base.numpy(), recipe, mask, 2, "w")

    signs = settled(Levels((0.5,)))
    assert marked(checkpoint, signs) is not None
    for source, recipe in (
        (half, signs),
        (memory, signs),
        (checkpoint, settled(Levels((0.5, 0.9)))),
        (checkpoint, Fit()),
    ):
        assert marked(source, recipe) is None
    assert straight.moved(half, "w", [(0, 100)], base.numpy()) is None
    assert straight.moved(memory, "w", [(0, 100)], base.numpy()) is None
    for source, there in ((checkpoint, True), (half, False), (memory, False)):
        found = straight.leveled(source, "w", 0, base.numpy(), Levels((0.5, 0.9)), 0)
        assert (found is not None) == there
    assert straight.leveled(checkpoint, "w", 0, torch.zeros(101).numpy(), Levels((0.5, 0.9)), 0) is None  # cut off
    cut = [np.array([(0, 100)])]
    assert straight.counted(checkpoint, "w", cut, base.numpy()) is not None
    assert straight.counted(half, "w", cut, base.numpy()) is None
    assert straight.counted(memory, "w", cut, base.numpy()) is None


def zoo(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Checkpoints in files: sampled tensors, still and small ones, NaN, bfloat16, rows of their own."""
    g = torch.Generator().manual_seed(3)
    shapes = {"big": (800, 700), "still": (300, 200), "norm": (64,), "odd": (1, 40_001), "broken": (200, 300)}
    base = {name: torch.randn(shape, generator=g) * 0.1 for name, shape in shapes.items()}
    tasks = {}
    for t in "abcd":
        state = {name: w + 0.01 * torch.randn(w.shape, generator=g) for name, w in base.items()}
        state["still"] = base["still"].clone()
        tasks[t] = state
    tasks["b"]["broken"][100, 3] = float("nan")
    tasks["c"] = {name: w.bfloat16() for name, w in tasks["c"].items()}
    tasks["d"]["big"] = torch.cat([tasks["d"]["big"], torch.ones(9, 700)])
    paths = {name: write_folder(folder / name, state) for name, state in tasks.items()}
    return write_folder(folder / "base", base), paths


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 0.3}, {"bits": 2.5}, {"exact": ["a"]}, {"max_error": 0.4}, {"base_storage": "bf16"}],
    ids=str,
)
def test_archives_are_the_same(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = zoo(tmp_path)
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
