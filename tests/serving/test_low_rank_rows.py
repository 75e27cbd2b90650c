"""Products of thin matrices in a mixed batch: each row is its task's, by every way of a layer, in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from multitask_models import near_enough
from support import ThinNet, kinds, packed, packed_in_chunks, spoilt, thin_zoo, without_kernels

from tallstore.archive.resident_product import ResidentProduct
from tallstore.kernels import products
from tallstore.serving import linear
from tallstore.serving.low_rank import LowRankRows
from tallstore.zoo import Zoo

NAMES = ["b", "a", None, "b", "a"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Of several chunks a tensor, which begin and end within a row."""
    base, tasks = thin_zoo()
    with packed_in_chunks(base, tasks, tmp_path_factory.mktemp("thin") / "zoo.tall", 1 << 13) as (found, _):
        yield found


def check(opened: Zoo, dtype: torch.dtype = torch.float32) -> None:
    multi = opened.multitask(ThinNet(dtype), write_base=True)
    ids = torch.randint(0, 300, (len(NAMES), 11), generator=torch.Generator().manual_seed(1))
    found = multi(ids, tasks=NAMES)
    for row, name in enumerate(NAMES):
        model = ThinNet(dtype)
        if name is not None:
            opened.load_into(model, name)
        with torch.no_grad():
            wanted = model(ids[row : row + 1])[0]
        if dtype == torch.float32:
            assert near_enough(found[row], wanted)
        else:
            assert float((found[row] - wanted).abs().max()) <= 4e-2 * float(wanted.abs().max())


@pytest.mark.parametrize("way", ["marks", "rows", "moved rows", "whole", "quickest"])
def test_every_row_is_its_task_s_by_every_way(way: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "quickest":
        monkeypatch.setattr(linear, "COPY", -1e9 if "rows" in way else 1e9)
        monkeypatch.setattr(linear, "WRITE", -1e9 if way == "whole" else 1e9)
        monkeypatch.setattr(linear, "THIN", 1e9 if way == "moved rows" else 0)
    check(zoo)


def test_so_it_is_by_the_reference(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)
    check(zoo)


def test_so_it_is_on_other_devices(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "backend_of", lambda _: "torch")
    check(zoo)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_models_of_other_types_are_decoded(dtype: torch.dtype, zoo: Zoo) -> None:
    check(zoo, dtype)


def test_where_a_nan_is_the_rest_stays_right(tmp_path: Path) -> None:
    base, tasks = thin_zoo()
    tasks["a"]["inner.weight"] = spoilt(tasks["a"]["inner.weight"], float("nan"), 20_000)
    with packed(base, tasks, tmp_path / "zoo.tall") as opened:
        ids = torch.arange(33).reshape(3, 11)
        found = opened.multitask(ThinNet(), write_base=True)(ids, tasks=["b", "a", "b"])
        model = ThinNet()
        opened.load_into(model, "b")
        with torch.no_grad():
            assert near_enough(found[::2], model(ids[::2]))
        assert bool(found[1].isnan().all())


def test_it_takes_little_memory(tmp_path: Path) -> None:
    """Beside the model about what the archive has of the tasks, and no more after a batch."""
    base, tasks = thin_zoo()
    with packed(base, tasks, tmp_path / "zoo.tall") as opened:
        assert kinds(opened, "a")["inner.weight"] == "sampled"
        multi = opened.multitask(ThinNet(), write_base=True, decoded_bytes=0)
        before = multi.resident_bytes
        assert before < 2 * (opened.info()["bytes"]["masks"] + opened.info()["bytes"]["private"])
        multi(torch.arange(22).reshape(2, 11), tasks=["a", "b"])
        assert multi.resident_bytes <= before + 8 * 260 * 3


@pytest.mark.parametrize("name", ["embed.weight", "near.weight", "inner.weight", "outer.weight"])
def test_outputs_and_rows_are_those_of_the_whole_matrix(name: str, zoo: Zoo) -> None:
    shape = zoo.base(name).flatten(1).shape
    kept = zoo._decoder.packed("a", name).product
    assert isinstance(kept, ResidentProduct)
    thin = LowRankRows.of(kept, *shape)
    assert thin is not None
    matrix = torch.zeros(shape)
    thin.add_all(matrix)
    x = torch.randn(7, shape[1], generator=torch.Generator().manual_seed(3))
    y = torch.ones(7, shape[0])
    thin.add_outputs(y, x)
    assert near_enough(y, 1 + x @ matrix.T)
    half = torch.ones(7, shape[0], dtype=torch.bfloat16)
    thin.add_outputs(half, x.bfloat16())
    assert float((half.float() - y).abs().max()) <= 2e-2 * float(y.abs().max())
    index = torch.tensor([shape[0] - 1, 0, 31, 31, 63, 64, 85, 100])
    rows = torch.zeros(len(index), shape[1])
    thin.add_rows(rows, index)
    assert near_enough(rows, matrix[index])
    assert LowRankRows.of(kept, shape[0] * 2, shape[1] // 2) is None
