"""Sampled tensors of float32 in memory: a product and levels give the bits of decoding, wherever a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import (
    ThinNet,
    check_that_models_are_switched,
    kinds,
    noise,
    packed_in_chunks,
    same_bits,
    spoilt,
    thin_zoo,
    without_kernels,
)
from torch import Tensor

import tallstore
from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.archive.resident_product import ResidentProduct, add_on_device
from tallstore.archive.resident_sampled import packed_apart
from tallstore.codecs.dare import Added, Apart, DareCodec
from tallstore.errors import DamagedError, FormatError
from tallstore.kernels.dare import SHARES, Sampling
from tallstore.kernels.lattice import LEVELS
from tallstore.kernels.low_rank import LowRank
from tallstore.tensors import as_bytes
from tallstore.zoo import Zoo

CODEC = DareCodec()
ALL = Sampling(100, np.full(LEVELS, SHARES - 1, np.uint16), np.full(LEVELS, 0x3C00, np.uint16))
THIN = ("embed.weight", "near.weight", "inner.weight", "outer.weight")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Of several chunks a tensor, which begin and end within a row."""
    base, tasks = thin_zoo()
    with packed_in_chunks(base, tasks, tmp_path_factory.mktemp("thin") / "zoo.tall", 1 << 13) as (found, _):
        assert all(kinds(found, task)[name] == "sampled" for task in tasks for name in THIN)
        yield found


def held(zoo: Zoo, task: str, name: str) -> tuple[PackedTensor, Tensor, Tensor]:
    """A tensor as it is kept, the base's, and the task's."""
    packed = zoo._decoder.packed(task, name)
    assert isinstance(packed, PackedTensor)
    return packed, zoo.base(name).reshape(-1), zoo.state_dict(task)[name].reshape(-1)


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize("name", THIN)
def test_what_is_kept_gives_the_bits_of_decoding(
    name: str, native: bool, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        without_kernels(monkeypatch)
    packed, base, wanted = held(zoo, "a", name)
    assert packed.product is not None
    out = torch.empty_like(wanted)
    packed.apply(out, base, 0)
    assert same_bits(out, wanted)
    for start, n in ((8, 100), (4096, 4096), (packed.chunk, 3000), (packed.chunk + 1000, 7000), (packed.chunk, 9000)):
        part = torch.empty(n)
        packed.apply(part, base[start : start + n], start)
        assert same_bits(part, wanted[start : start + n])


def sampled(width: int, size: float = 0.01) -> tuple[bytes, Tensor]:
    """A chunk of codec dare of elements around 0, zeros of both signs among them, and these: one in three is kept."""
    start = noise(64, width, seed=1, size=size).reshape(-1)
    start[::7], start[1::7] = 0.0, -0.0
    thin = torch.randint(-1, 2, (2, 64 + width), generator=torch.Generator().manual_seed(2), dtype=torch.int8).numpy()
    of = LowRank(np.float32(0.004), np.array([0, 2], np.uint8), thin[:, :64].copy(), thin[:, 64:].copy(), 0)
    sampling = Sampling(255, np.full(LEVELS, SHARES // 3, np.uint16), np.full(LEVELS, 0x3C00, np.uint16))
    after = start + noise(len(start), seed=3, size=size)
    return CODEC.encode(as_bytes(after), as_bytes(start), "F32", sampling, 17, Added(of)), start


@pytest.mark.parametrize("width", [33, 128])
def test_taken_apart_a_chunk_gives_what_it_decodes_to(width: int) -> None:
    """Elements to which nothing is added keep every bit: zeros their signs."""
    data, start = sampled(width)
    wanted = start.clone()
    CODEC.decode(data, as_bytes(wanted), "F32")
    assert bool(((wanted == 0) & wanted.signbit()).any())
    apart = CODEC.apart(data, len(start), "F32")
    assert apart is not None
    assert apart.added is not None
    assert 0 < np.count_nonzero(apart.multiples) < len(start) / 2
    packed = packed_apart([apart], 1 << 14)
    assert packed is not None
    out = torch.empty_like(start)
    packed.apply(out, start, 0)
    assert same_bits(out, wanted)
    packed.apply(out[104:205], start[104:205], 104)
    assert same_bits(out, wanted)


def test_what_depends_on_the_base_is_not_taken_apart() -> None:
    data, start = sampled(33)
    assert (
        CODEC.apart(CODEC.encode(as_bytes(start), as_bytes(start * np.nan), "F32", ALL, 0), len(start), "F32") is None
    )
    assert CODEC.apart(CODEC.encode(as_bytes(start), as_bytes(start), "F32", ALL, 0), len(start), "F32") is None
    assert CODEC.apart(data, len(start), "F32") is not None
    with pytest.raises((DamagedError, FormatError)):
        CODEC.apart(data, 2, "F32")


@pytest.mark.parametrize("different", [15, 16, 255, 256])
def test_as_many_changes_are_told_apart_as_a_byte_can(different: int) -> None:
    multiples = np.arange(different + 1, dtype=np.int16) - 9
    packed = packed_apart([Apart(None, multiples, np.float32(0.5))], 1 << 10)
    if different == 256:
        assert packed is None
        return
    assert packed is not None
    assert packed.bits == (4 if different == 15 else 8)
    out = torch.empty(different + 1)
    packed.apply(out, torch.ones(different + 1), 0)
    assert torch.equal(out, 1 + 0.5 * torch.from_numpy(multiples).float())


@pytest.mark.parametrize("name", THIN)
def test_a_product_on_a_device_has_the_bits_of_the_kernel(name: str, zoo: Zoo) -> None:
    packed, base, _ = held(zoo, "b", name)
    product = packed.product
    assert product is not None
    for start, n in ((0, len(base)), (packed.chunk + 1000, 9000)):
        wanted, found = base[start : start + n].clone(), base[start : start + n].clone()
        product.add(wanted, start)
        assert not torch.equal(wanted, found)
        for part, first, last, row, stop, gone in product.runs(start, n):
            columns = product.columns[part.columns][: len(part.shifts)]
            add_on_device(found[first:last], float(part.scale), part.shifts, part.rows[:, row:stop], columns, gone)
        assert same_bits(found, wanted)


def test_columns_are_held_once_and_numbers_are_bytes(zoo: Zoo) -> None:
    packed, base, _ = held(zoo, "a", "outer.weight")
    product = packed.product
    assert product is not None
    assert len(product.columns) == 1
    assert {t.dtype for t in product.tensors} == {torch.int8, torch.uint8}
    assert sum(t.nbytes for t in packed.tensors) < 0.7 * len(base)
    moved = packed.to(lambda tensor: tensor.clone()).product
    assert moved is not None
    assert [t.shape for t in moved.tensors] == [t.shape for t in product.tensors]
    assert not {t.data_ptr() for t in moved.tensors} & {t.data_ptr() for t in product.tensors}
    assert ResidentProduct.of([None, None], 8) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_models_are_switched(threads: int, zoo: Zoo) -> None:
    with tallstore.open(zoo.url, threads=threads) as opened:
        check_that_models_are_switched(opened, ThinNet, torch.float32)


def test_a_switcher_holds_half_a_byte_an_element(zoo: Zoo) -> None:
    model = ThinNet()
    elements = sum(tensor.numel() for tensor in model.parameters())
    assert zoo.switcher(model).resident_bytes < 4 * elements + 2 * 0.75 * elements + 20_000


def test_where_a_nan_is_it_is_kept_as_it_is_coded(tmp_path: Path) -> None:
    base, tasks = thin_zoo()
    tasks["a"]["inner.weight"] = spoilt(tasks["a"]["inner.weight"], float("nan"), 20_000)
    with packed_in_chunks(base, tasks, tmp_path / "zoo.tall", 1 << 13) as (opened, _):
        assert {kinds(opened, "a")[name] for name in THIN} == {"sampled"}
        found = {name: type(opened._decoder.packed("a", name)) for name in THIN}
        assert found == {**dict.fromkeys(THIN, PackedTensor), "inner.weight": CodedConditional}
        check_that_models_are_switched(opened, ThinNet, torch.float32)
