"""Encoding gives the same bytes with the native library and without: every step, and whole archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both, examples, without_kernels

import tallstore
from tallstore import codecs
from tallstore.codecs import codebook
from tallstore.encoder import chunk, encode_item, measure_item, row_bits, select_native
from tallstore.encoder.chunk import TaskRow
from tallstore.kernels import reference
from tallstore.recipes import make_recipe
from tallstore.recipes.base import Tile
from tallstore.recipes.histogram import magnitudes
from tallstore.recipes.norm_match import NormMatch
from tallstore.recipes.quantizers import Quantizer

pytestmark = pytest.mark.usefixtures("native")

SIZES = st.sampled_from([1, 2, 3, 4, 5, 31, 32, 33, 255, 256, 1023, 1024, 1025, 5000])
SEEDS = st.integers(0, 2**32 - 1)


def values(n: int, seed: int, still: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = (rng.standard_t(3, n) * 2.0 ** rng.integers(-30, 3, n)).astype(np.float32)
    found[rng.random(n) < still] = 0
    found[rng.random(n) < 0.05] = -0.0
    found[rng.random(n) < 0.02] = 2.0**-149
    return found


@settings(max_examples=examples(80), deadline=None)
@given(SIZES, SEEDS, st.sampled_from(["binary", "signed"]), st.sampled_from([0.0, 0.001, 0.01, 0.2, 1.0]))
def test_masks(n: int, seed: int, kind: str, density: float) -> None:
    rng = np.random.default_rng(seed)
    symbols = (rng.random(n) < density) * rng.integers(1, 2 if kind == "binary" else 3, n)
    packed = reference.pack(symbols.astype(np.uint8), kind)
    compiled, slow = both(lambda: codecs.MASK["adaptive"].encode_packed(packed, kind, n))
    assert compiled == slow


@settings(max_examples=examples(40), deadline=None)
@given(SIZES, SEEDS, st.sampled_from(["U8", "BF16", "F16", "U16", "F32", "U32", "F64", "I64"]))
def test_planes(n: int, seed: int, dtype: str) -> None:
    item = {"U8": 1, "BF16": 2, "F16": 2, "U16": 2, "F32": 4, "U32": 4, "F64": 8, "I64": 8}[dtype]
    raw = np.random.default_rng(seed).integers(0, 256, n * item).astype(np.uint8)
    compiled, slow = both(lambda: codecs.WHOLE["planes+zstd"].encode(raw, dtype))
    assert compiled == slow


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, SEEDS, st.sampled_from(["q4", "q5", "q8"]), st.sampled_from([0.0, 0.5, 0.95]))
def test_codebooks(n: int, seed: int, codec: str, still: float) -> None:
    found = values(n, seed, still)
    compiled, slow = both(lambda: codecs.VECTOR[codec].encode(found))
    assert compiled == slow


@settings(max_examples=examples(60), deadline=None)
@given(
    SIZES, SEEDS, st.sampled_from([2, 15, 16, 17, 256]), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.9])
)
def test_indices(n: int, seed: int, levels: int, used: float, still: float) -> None:
    """Levels that nothing points at, and few that anything does."""
    rng = np.random.default_rng(seed)
    table = np.concatenate([np.zeros(1, np.float32), rng.standard_normal(levels - 1).astype(np.float32)])
    some = np.flatnonzero(rng.random(levels) < used) if rng.random() < 0.9 else np.arange(1, 2)
    indices = rng.choice(some, n).astype(np.uint8) if len(some) else np.zeros(n, np.uint8)
    indices[rng.random(n) < still] = 0
    codec = codecs.VECTOR["q8"]
    assert isinstance(codec, codebook.Codebook)
    compiled, slow = both(lambda: codec.encode_indices(table, indices))
    assert compiled == slow == codec.encode_indices(table, indices, np.bincount(indices, minlength=levels))
    np.testing.assert_array_equal(codec.decode(compiled, n), table[indices])


def test_a_value_on_an_edge_goes_to_the_lower_level() -> None:
    table = np.array([0.0, -1.0, 1.0, 3.0], np.float32)
    found = np.array([-0.5, 0.5, 2.0, np.nextafter(np.float32(2), np.float32(3)), -9, 9, -0.0], np.float32)
    compiled, slow = both(lambda: codebook.nearest(found, table))
    assert compiled.tolist() == slow.tolist() == [1, 0, 2, 3, 1, 3, 0]


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, SEEDS)
def test_magnitudes(n: int, seed: int) -> None:
    tau, base = values(n, seed), values(n, seed + 1)
    compiled, slow = both(lambda: magnitudes(tau, base))
    np.testing.assert_array_equal(compiled.counts, slow.counts)
    assert compiled.base_energy == slow.base_energy
    assert compiled.moved == np.count_nonzero(tau)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_looks(dtype: torch.dtype) -> None:
    base = torch.from_numpy(values(1500, 1)).to(dtype)
    rows = [base.clone() for _ in range(6)]
    rows[1][7] += 1
    rows[2][1499] = -float("inf")
    rows[3][0] = float("nan")
    rows[4][3] = -300.0
    rows[5][base == 0] = -0.0
    for row in rows:
        compiled, slow = both(lambda row=row: row_bits.same_and_largest(row, base))
        assert compiled[0] == slow[0]
        assert compiled[1] == slow[1] or compiled[1] != compiled[1] or slow[1] != slow[1]
        assert np.isfinite(compiled[1]) == np.isfinite(slow[1])
    assert row_bits.same_and_largest(rows[0], base)[0]
    assert not row_bits.same_and_largest(rows[1], base)[0]


LEVELS = (Quantizer((0.01,)), Quantizer((0.001,), 0.02), Quantizer((0.0,)), Quantizer((0.001, 0.002)))


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from([1, 5, 1000, 1025, chunk.TILE, chunk.TILE + 1, 2 * chunk.TILE + 4099]),
    SEEDS,
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([0, 1 << 20, 1 << 32]),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
)
def test_choices(n: int, seed: int, dtype: torch.dtype, start: int, shares: list[float]) -> None:
    """Tiles are cut where any row ends, in both."""
    recipe = make_recipe("solo")
    base = torch.from_numpy(values(n, seed)).clamp(-100, 100)
    rows = []
    for task, share in enumerate(shares):
        length = max(1, int(n * share))
        step = torch.from_numpy(values(length, seed + task + 1)).clamp(-1, 1)
        rows.append(TaskRow(task, (base[:length] + step).to(dtype)))
        recipe._chosen[task, "w"] = LEVELS[(seed + task) % 3]
    codec = codecs.VECTOR["ones"]
    found = select_native.choose(base, rows, recipe, codec, torch.device("cpu"), "w", start)
    wanted = chunk.choose(base, rows, recipe, codec, torch.device("cpu"), "w", start)
    assert torch.equal(found.totals[:, 1:], wanted.totals[:, 1:])
    torch.testing.assert_close(found.totals[:, 0], wanted.totals[:, 0], rtol=1e-4, atol=1e-4)
    assert found.vector == wanted.vector
    for mine, theirs in zip(found.packed, wanted.packed, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_norms() -> None:
    base, rows = torch.from_numpy(values(5000, 1)), torch.from_numpy(np.stack([values(5000, s) for s in (2, 3)]))
    tile = Tile((0, 1), base, base + rows, (base + rows) - base)

    def measured() -> torch.Tensor:
        statistic = NormMatch(2, lambda tile: tile.tau.sum(0))
        tasks, found = statistic.measure(tile)
        assert tasks == (0, 1)
        statistic.update((tasks, found))
        statistic.finish()
        assert len(statistic.chosen) == 2
        return found

    compiled, slow = both(measured)
    assert torch.equal(compiled, slow)


def zoo(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Sampled tensors, ones of a few tiles, resized and odd ones."""

    def noise(shape: tuple[int, ...], s: int, scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(s)) * scale

    shapes = {"big": (700, 800), "rows": (300, 40), "bias": (57,), "odd": (1, 40_001), "broken": (600, 1000)}
    base = {name: noise(shape, seed + i, 0.1) for i, (name, shape) in enumerate(shapes.items())}
    tasks = {}
    for t in range(3):
        tasks[f"t{t}"] = {
            name: w + noise(tuple(w.shape), 100 * t + i, 0.01) for i, (name, w) in enumerate(base.items())
        }
        tasks[f"t{t}"]["bias"] = base["bias"].clone() if t == 1 else tasks[f"t{t}"]["bias"]
    tasks["t0"]["rows"] = torch.cat([tasks["t0"]["rows"], torch.ones(7, 40)])
    tasks["t2"]["rows"] = tasks["t2"]["rows"][:299]
    tasks["t1"]["broken"][3, 3] = float("nan")
    tasks["t2"] = {name: w.to(torch.bfloat16) for name, w in tasks["t2"].items()}
    return base, tasks


@pytest.fixture(scope="session")
def references() -> dict[str, bytes]:
    """Options → the archive that the reference path packs."""
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 0.3}, {"bits": 2.5}, {"exact": ["t1"]}, {"recipe": "fit"}, {"recipe": "tall"}, {"recipe": "emr"}],
    ids=str,
)
def test_archives(
    options: dict[str, Any], references: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = zoo(1)

    def packed() -> bytes:
        path = tmp_path / "zoo.tall"
        tallstore.pack(base, tasks, path, overwrite=True, **options)
        return path.read_bytes()

    compiled = packed()
    if str(options) not in references:  # the same for every variant
        without_kernels(monkeypatch)
        references[str(options)] = packed()
    assert compiled == references[str(options)]


def test_rows_read_alone_are_those_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = zoo(2)
    tallstore.pack(base, tasks, tmp_path / "alone.tall")
    for module in (measure_item, encode_item):
        monkeypatch.setattr(module, "row_by_row", lambda item, tools: False)
    tallstore.pack(base, tasks, tmp_path / "together.tall")
    assert (tmp_path / "alone.tall").read_bytes() == (tmp_path / "together.tall").read_bytes()
