"""Packed rows: what they hold comes back in every form, and native kernels give what the reference gives."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from itertools import product as product_of

import numpy as np
import pytest
import torch

from tallstore.kernels.device_rows import DeviceProducts, DeviceRows, DeviceVector
from tallstore.kernels.packed_rows import FORMS, PackedRows, SharedVector, moved_rows, product
from tallstore.kernels.products import ReferenceProducts, outputs, products, write_rows
from tallstore.kernels.row_packing import LevelChunk, pack_rows

CHUNK = 1024
SHAPES = [(1, 8), (3, 1), (37, 24), (5, 700), (70, 33), (2, 1500)]
KINDS = [
    *("binary", "signed", "levels", "many levels", "one common level", "two common levels", "rare levels"),
    *("vector", "vector codes", "steps", "many steps"),
]


STEPS = ("steps", "many steps")
COMMON = {"one common level": (1, 4), "two common levels": (2, 7), "rare levels": (4, 250)}
"""How many of how many levels five in six marks have."""


def forms(kind: str) -> tuple[str, ...]:
    """Those that can hold a kind: a code is a byte at most."""
    return tuple(form for form in FORMS if kind != "many steps" or form != "codes")


@cache
def packed(kind: str, shape: tuple[int, int], dtype: torch.dtype, form: str | None, seed: int = 0) -> PackedRows:
    rng = np.random.default_rng(seed)
    n = shape[0] * shape[1]
    counts = {"binary": 2, "levels": 13, "many levels": 200, "steps": 7, "many steps": 700}
    count = counts.get(kind, COMMON[kind][1] if kind in COMMON else 3)
    every_step = rng.integers(-350, 351, count).astype(np.float32)  # one table for all chunks
    chances = np.full(count, 0.12 / max(count - 1, 1))
    chances[0] = 0.88
    if kind in COMMON:
        chances[1:] = 0.02 / (count - 1)
        chances[1 : 1 + COMMON[kind][0]] += 0.1 / COMMON[kind][0]
    chunks = []
    for start in range(0, n, CHUNK):
        table = rng.integers(-8, 9, count).astype(np.float32) / 64
        if kind == "steps":
            table = rng.integers(-9, 10, count).astype(np.float32)
        if kind == "many steps":
            table = every_step
        table[0] = 0
        codes = rng.choice(count, min(CHUNK, n - start), p=chances).astype(np.uint16 if count > 256 else np.uint8)
        if seed % 2:  # many rows without any
            codes[(np.arange(start, start + len(codes)) // shape[1]) % 3 > 0] = 0
        chunks.append(LevelChunk(codes, table))
    vector = None
    if kind == "vector":
        vector = SharedVector(codes=rng.integers(-4, 5, n).astype(np.float32), bits=32, tables=None, chunk=CHUNK)
    if kind == "vector codes":
        tables = rng.integers(-4, 5, (-(-n // CHUNK), 16)).astype(np.float32)
        vector = SharedVector(
            codes=rng.integers(0, 256, -(-n // 2)).astype(np.uint8), bits=4, tables=tables, chunk=CHUNK
        )
    return pack_rows(chunks, shape, dtype, CHUNK, steps=kind in STEPS, vector=vector, form=form)


def base_of(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Small multiples of a power of two, and no 0: a step from there is a subnormal number."""
    numbers = torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(3))
    return numbers.masked_fill(numbers == 0, 5).div(32).to(dtype)


def types() -> list[tuple[torch.dtype, torch.dtype]]:
    """The task's type and the model's."""
    return [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_holds_the_same_values(kind: str, shape: tuple[int, int]) -> None:
    dtype = torch.bfloat16 if kind in STEPS else torch.float32
    wanted = packed(kind, shape, dtype, forms(kind)[-1]).values(0, shape[0])
    assert wanted.any() or wanted.size < 50
    sizes = {}
    for form in forms(kind):
        own = packed(kind, shape, dtype, form)
        assert (own.values(0, shape[0]) == wanted).all()
        other = packed(kind, shape, dtype, form, seed=1)
        assert (form != "bitmap" or shape != (70, 33)) or other.held < shape[0] or not other.marks
        assert (other.values(0, shape[0]) == packed(kind, shape, dtype, None, seed=1).values(0, shape[0])).all()
        for first in range(0, shape[0], 17):
            last = min(first + 11, shape[0])
            assert (own.values(first, last) == wanted[first:last]).all()
        sizes[form] = len(own.places) + len(own.levels)
    assert len(packed(kind, shape, dtype, None).places) <= max(sizes.values())


def test_levels_that_are_rare_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice(7, 50_000, p=[0.6, 0.18, 0.18, 0.015, 0.015, 0.005, 0.005]).astype(np.uint8)
    table = np.array([0, 1, -1, 2, -2, 3, -3], np.float32)
    own = pack_rows([LevelChunk(codes, table)], (500, 100), torch.float32, 1 << 16)
    assert (own.values(0, 500).reshape(-1) == table[codes]).all()
    assert (own.form, own.bits, own.table_bits) == ("bitmap", 1, 3)
    share = -np.log2(0.18 / 0.4) * 0.36 / 0.4 + 0.04 / 0.4 * 5  # about what an entropy code would take of each mark
    assert own.rare is not None
    assert 8 * (len(own.levels) + len(own.rare.fields)) < 1.2 * share * own.marks
    assert own.nbytes < 50_000 / 8 + 1.2 * share * own.marks / 8 + 1000


def held() -> list[tuple[str, str]]:
    """Every kind in every form that can hold it."""
    return [(kind, form) for kind in KINDS for form in forms(kind)]


@pytest.mark.parametrize(("kind", "form"), held())
def test_native_rows_are_the_reference_s(kind: str, form: str, native: str) -> None:
    for (task, model), shape, seed in product_of(types(), SHAPES, (0, 1)):
        if kind in STEPS and task == torch.float32:
            continue  # steps are of narrow types
        own, base = packed(kind, shape, task, form, seed), base_of(shape, model)
        wanted = moved_rows(own, base, 0)
        out = torch.empty_like(base)
        products().rows(out, base, own, None)
        assert torch.equal(out, wanted)
        index = torch.randint(shape[0], (19,), generator=torch.Generator().manual_seed(1))
        out = torch.empty(19, shape[1], dtype=model)
        products().rows(out, base, own, index)
        assert torch.equal(out, wanted[index])


@pytest.mark.parametrize(
    "index", [torch.zeros(2, dtype=torch.int32), torch.zeros(2), torch.zeros(4, dtype=torch.int64)]
)
def test_kernels_are_given_no_memory_that_they_would_read_past(index: torch.Tensor) -> None:
    own, base = packed("signed", (64, 40), torch.float32, None), base_of((64, 40), torch.float32)
    with pytest.raises(ValueError, match="contiguous indices of int64"):
        write_rows(torch.empty(2, 40), base, own, index)


@pytest.mark.parametrize("share", [0.2, 0.06, 0.01, 0.002, 0.0001])
def test_gaps_take_fields_of_a_size_that_fits(share: float, native: str) -> None:
    """And rows without marks are left out where that takes less; walks begin at any row."""
    rng = np.random.default_rng(0)
    marks = rng.random((211, 300)) < share
    marks[rng.random(211) < 0.6] = False
    base = torch.zeros(211, 300)
    chunk = LevelChunk(marks.reshape(-1).astype(np.uint8), np.array([0, 1], np.float32))
    own = pack_rows([chunk], (211, 300), torch.float32, 1 << 16, form="gaps")
    wanted = torch.from_numpy(marks).float()
    assert torch.equal(moved_rows(own, base, 0), wanted)
    ideal = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert 8 * own.nbytes <= 1.35 * ideal * own.held * 300 + 32 * (own.held + 14 + 6 * len(own.index)) + 128
    out = torch.empty_like(base)
    products().rows(out, base, own, None)
    assert torch.equal(out, wanted)
    for row in (210, 3, 100):
        products().rows(out[:1], base, own, torch.tensor([row]))
        assert torch.equal(out[0], wanted[row])


@pytest.mark.parametrize(("kind", "form"), held())
def test_native_products_are_the_reference_s(kind: str, form: str, native: str) -> None:
    """All numbers are small multiples of a power of two: every order of summing gives the same."""
    for (task, model), shape in product_of(types(), SHAPES):
        if kind in STEPS and task == torch.float32:
            continue  # steps are of narrow types
        if task == torch.float32 != model:
            continue  # the task's element is rounded to another type than the product's
        own, other, base = packed(kind, shape, task, form), packed(kind, shape, task, form, 5), base_of(shape, model)
        counts = [1, 3, 0, 8, 2, 21, 40, 65]
        x = torch.randint(-3, 4, (sum(counts) + 1, shape[1]), generator=torch.Generator().manual_seed(2)).float()
        bias = torch.arange(shape[0]).float()
        runs, at = [], 1
        for n, count in enumerate(counts):
            runs.append(((own, other, None)[n % 3], bias if n % 2 else None, at, at + count))
            at += count
        found, wanted = (torch.zeros(len(x), shape[0]) for _ in range(2))
        products().add(found, x, base, torch.ones(shape[0]), runs)
        ReferenceProducts().add(wanted, x, base, torch.ones(shape[0]), runs)
        assert torch.equal(found, wanted)
        assert torch.equal(wanted[1:2], product(x[1:2], own, base))
        few = products().outputs(x[:13].to(model), base, torch.ones(shape[0]), runs[:4])
        assert few is not None, "so few are computed at once"
        assert torch.equal(few, wanted[:13] + x[:13] @ base.float().T + 1)
        assert products().outputs(x[:65].to(model), base, torch.ones(shape[0]), runs[:4]) is None
        y = outputs(x[:13].to(model), base, torch.ones(shape[0], dtype=model), runs[:4])
        assert torch.equal(y, few.to(model))


@pytest.mark.parametrize(("kind", "form"), held())
def test_outputs_by_own_rows_are_the_reference_s(kind: str, form: str, native: str) -> None:
    """All numbers are small multiples of a power of two: every order of summing gives the same."""
    for task, shape in product_of((torch.float32, torch.bfloat16, torch.float16), SHAPES):
        if kind in STEPS and task == torch.float32:
            continue  # steps are of narrow types
        own, other, base = (
            packed(kind, shape, task, form),
            packed(kind, shape, task, form, 5),
            base_of(shape, task).float(),
        )
        counts = [1, 3, 0, 8, 9, 21, 40, 65]
        x = torch.randint(-3, 4, (sum(counts) + 1, shape[1]), generator=torch.Generator().manual_seed(2)).float()
        runs, at = [], 1
        for n, count in enumerate(counts):
            runs.append(((own, other, None)[n % 3], torch.arange(shape[0]).float() if n % 2 else None, at, at + count))
            at += count
        for bias in (None, torch.ones(shape[0])):
            found, wanted = (torch.full((len(x), shape[0]), 9.0) for _ in range(2))
            products().own(found, x, base, bias, runs)
            ReferenceProducts().own(wanted, x, base, bias, runs)
            assert torch.equal(found, wanted)
            assert (found[0] == 9).all(), "of no run"


def test_outputs_by_own_rows_depend_on_no_other_token_and_on_no_thread(native: str) -> None:
    shape = (2000, 520)
    base, x = torch.randn(shape), torch.randn(61, 520)
    own = packed("levels", shape, torch.float32, "gaps")
    threads, found = torch.get_num_threads(), []
    try:
        for count, cuts in ((1, [0, 61]), (2, [0, 61]), (3, [0, 24, 61]), (1, [0, 1, 9, 40, 61])):
            torch.set_num_threads(count)
            y = torch.empty(61, 2000)
            products().own(y, x, base, None, [(own, None, a, b) for a, b in pairwise(cuts)])
            found.append(y)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.allclose(found[0], x @ moved_rows(own, base, 0).T, atol=1e-4)


def test_own_rows_are_made_of_no_other_types(native: str) -> None:
    own, base = packed("levels", (16, 40), torch.bfloat16, None), base_of((16, 40), torch.bfloat16)
    with pytest.raises(ValueError, match="multiplied in float32"):
        products().own(torch.empty(1, 16), torch.zeros(1, 40), base, None, [(own, None, 0, 1)])


DEVICE_KINDS = [kind for kind in KINDS if kind not in STEPS]


def on_device(own: PackedRows, device: torch.device) -> DeviceRows:
    vector = None if own.vector is None else DeviceVector.of(own.vector, device)
    return DeviceRows.of(own, device, vector)


@pytest.mark.parametrize("types", types(), ids=str)
@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_rows_on_a_device_are_the_reference_s(
    kind: str, types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    task, model = types
    for shape in SHAPES:
        own, base = packed(kind, shape, task, "codes"), base_of(shape, model)
        wanted, index = moved_rows(own, base, 0), torch.tensor([0, shape[0] - 1, 0])
        out = torch.empty_like(base, device=device)
        DeviceProducts().rows(out, base.to(device), on_device(own, device), None)
        assert torch.equal(out.cpu(), wanted)
        few = torch.empty(3, shape[1], dtype=model, device=device)
        DeviceProducts().rows(few, base.to(device), on_device(own, device), index)
        assert torch.equal(few.cpu(), wanted[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize(
    "kinds", [("signed", "binary"), ("levels", "vector codes"), ("many levels", "signed")], ids=str
)
def test_a_device_s_products_are_the_reference_s(
    kinds: tuple[str, str], name: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Tokens grouped by task, tasks of other tables, bits and chunks in one batch; rows and columns that fill no tile.

    All numbers are small multiples of a power of two: every order of summing gives the same.
    """
    backend = DeviceProducts()
    if name == "triton":
        pytest.importorskip("triton")
        from tallstore.kernels.gpu.products import TritonProducts

        backend = TritonProducts()
    shape = (37, 90)
    tasks = [packed(kind, shape, dtype, "codes", seed) for seed, kind in enumerate(kinds)]
    base, bias = base_of(shape, dtype), torch.arange(37).float()
    x = torch.randint(-3, 4, (23, shape[1]), generator=torch.Generator().manual_seed(2)).float()
    wanted, found = torch.ones(23, shape[0]), torch.ones(23, shape[0], device=device)
    runs = [(tasks[1], None, 0, 17), (tasks[0], bias, 17, 20), (None, bias, 21, 23)]
    ReferenceProducts().add(wanted, x, base, torch.ones(37), runs)
    own = [
        (None if rows is None else on_device(rows, device), None if b is None else b.to(device), *tokens)
        for rows, b, *tokens in runs
    ]
    backend.add(found, x.to(device), base.to(device), torch.ones(37, device=device), own)
    assert torch.equal(found.cpu(), wanted)


def marked_rows(rows: Iterable[int], shape: tuple[int, int], apart: int = 16) -> PackedRows:
    """A mark in every 16th place of some rows, of values that tell one from another."""
    codes = np.zeros(shape[0] * shape[1], np.uint8)
    for row in rows:
        codes[row * shape[1] + row % apart : (row + 1) * shape[1] : apart] = 1 + row % 3
    table = np.array([0, 1, -2, 3], np.float32)
    chunks = [LevelChunk(codes[at : at + CHUNK], table) for at in range(0, len(codes), CHUNK)]
    return pack_rows(chunks, shape, torch.float32, CHUNK, steps=False, vector=None, form="bitmap")


def test_a_share_that_begins_with_rows_without_marks(native: str) -> None:
    """A thread's room holds what its last call left there, of another task: no walk may go on from that."""
    shape = (8192, 256)
    base, x = torch.zeros(shape), torch.randint(-3, 4, (2, 256), generator=torch.Generator().manual_seed(5)).float()
    few, more = marked_rows(range(7000, 7005), shape, 8), marked_rows([*range(100, 110), *range(7000, 7040)], shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the second share is [4096, 8192), and the rows begin far within it
    try:
        for packed_ in (few, more, few, more):
            y = products().outputs(x, base, None, [(packed_, None, 0, 2)])
            assert y is not None
            assert torch.equal(y, x @ moved_rows(packed_, base, 0).T)
    finally:
        torch.set_num_threads(threads)
