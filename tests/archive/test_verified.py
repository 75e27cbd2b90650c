"""What was read and found right once is not read ahead again; a file that changed since is another one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import assert_same, same_bits, tiny_zoo
from torch import Tensor, nn

import tallstore
from tallstore.archive import manifests, verified
from tallstore.archive.locations import Place, coded
from tallstore.archive.reader import Reader
from tallstore.format.manifest import Manifest
from tallstore.kernels.fill import FillSource
from tallstore.tensors import empties


class Model(nn.Module):
    """Tensors under a checkpoint's names."""

    def __init__(self, own: dict[str, Tensor]) -> None:
        super().__init__()
        self.own = {name: tensor.clone() for name, tensor in own.items()}

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
        return self.own


@pytest.fixture(params=["raw", "planes+zstd"])
def zoo(target: Path, request: pytest.FixtureRequest) -> Path:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, target, base_codec=request.param)
    return target


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes every reading by position took, the kernels' own ones among them."""
    found: list[int] = []
    before, kernels = os.preadv, Reader.source

    def noted(self: Reader, place: Place, index: int) -> FillSource | None:
        source = kernels(self, place, index)
        found.append(coded(place).chunks.length(index) if source is not None else 0)
        return source

    monkeypatch.setattr(Reader, "source", noted)

    def counted(*given: object) -> int:
        found.append(before(*given))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(os, "preadv", counted)
    return found


def flip(zoo: Path, part: str) -> None:
    """The last byte before the padding of a part that is not zero, in place."""
    file = zoo / part if zoo.is_dir() else zoo
    data = bytearray(file.read_bytes())
    end = len(data)
    if not zoo.is_dir():
        with zipfile.ZipFile(zoo) as listed:
            held = listed.read(part)
        end = data.find(held) + len(held)
    at = next(n for n in range(end - 1, 0, -1) if data[n])
    data[at] ^= 1
    with file.open("r+b") as out:
        out.write(data)


@pytest.mark.parametrize("again", ["the same zoo", "opened anew"])
def test_a_second_writing_reads_the_base_once(zoo: Path, read: list[int], again: str) -> None:
    with tallstore.open(zoo) as opened:
        due = opened.state_dict("a")
        model = Model(opened.state_dict("b"))
        raw = sum(tensor.nbytes for tensor in due.values())
        opened.load_into(model, "a")
        read.clear()
        if again == "the same zoo":
            opened.load_into(model, "a")
    if again == "opened anew":
        with tallstore.open(zoo) as opened:
            opened.load_into(model, "a")
    assert_same(model.own, due)
    assert sum(read) < 1.5 * raw


@pytest.mark.parametrize("part", ["base/base.safetensors", "tasks/a/mask.safetensors"])
@pytest.mark.parametrize("again", ["the same zoo", "opened anew"])
def test_damage_done_meanwhile_leaves_a_model_as_it_was(zoo: Path, part: str, again: str) -> None:
    with tallstore.open(zoo, mapped=False) as opened:
        model = Model(opened.state_dict("b"))
        before = {name: tensor.clone() for name, tensor in model.own.items()}
        opened.load_into(model, "a")
        opened.load_into(model, "b")
        assert_same(model.own, before)
        flip(zoo, part)
        if again == "the same zoo":
            with pytest.raises(tallstore.errors.DamagedError):
                opened.load_into(model, "a")
    with tallstore.open(zoo) as opened, pytest.raises(tallstore.errors.DamagedError):
        opened.load_into(model, "a")
    assert_same(model.own, before)


def test_tensors_that_share_a_block_have_storages_of_their_own(tmp_path: Path) -> None:
    wanted = {f"t{n}": (("F32", "BF16", "F64", "U8")[n % 4], 1000 * n + n % 7) for n in range(30)}
    wanted["large"] = ("F32", (1 << 24) + 3)
    found = empties(wanted)
    assert list(found) == list(wanted)
    for number, (name, tensor) in enumerate(found.items()):
        tensor.fill_(number)
        assert tensor.data_ptr() % 64 == 0
        assert len(tensor) == wanted[name][1]
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(found.values()))
    save_file(found, tmp_path / "saved.safetensors")
    torch.save(found["t9"], tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 10 * found["t9"].nbytes
    assert same_bits(torch.load(tmp_path / "one.pt"), found["t9"])


def test_one_element_may_have_any_stride(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    odd = torch.arange(12.0).view(3, 4)[:1, 0]
    assert odd.stride() == (4,)
    tallstore.pack({**base, "odd": odd}, {"a": {**tasks["a"], "odd": odd + 1, "own": odd}}, tmp_path / "zoo")
    with tallstore.open(tmp_path / "zoo") as opened:
        found = opened.state_dict("a")
        assert (found["odd"].tolist(), found["own"].tolist()) == ([1.0], [0.0])
        model = Model(found)
        model.own["odd"] = torch.zeros(3, 4)[:1, 0]
        opened.load_into(model, "a")
        assert model.own["odd"].tolist() == [1.0]


def test_a_manifest_is_parsed_once_and_another_one_in_its_place_is_another(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = Manifest.from_bytes

    def noted(data: bytes, where: str) -> Manifest:
        parsed.append(where)
        return parse(data, where)

    monkeypatch.setattr(Manifest, "from_bytes", noted)
    monkeypatch.setattr(manifests, "MANIFESTS", verified.RecentlyUsed[Manifest](2))
    for _ in range(3):
        tallstore.open(zoo).close()
    assert len(parsed) == 1
    base, tasks = tiny_zoo(3)
    tallstore.pack(base, tasks, zoo, overwrite=True)
    with tallstore.open(zoo) as opened:
        assert len(opened.tasks) == 3
    monkeypatch.setattr(manifests, "MANIFEST_MOST", 10)
    parsed.clear()
    for _ in range(2):
        tallstore.open(zoo).close()
    assert len(parsed) == 2


def test_values_are_kept_by_number_or_by_size() -> None:
    """Those last asked for; one that is larger than all that may be kept is kept alone."""
    made: list[str] = []

    def make(key: str) -> bytes:
        made.append(key)
        return bytes(int(key[1:]))

    few, small = verified.RecentlyUsed[bytes](2), verified.RecentlyUsed[bytes](10, len)
    for kept, keys, due in (
        (few, "a9 b9 a9 c9 a9 b9", "a9 b9 c9 b9"),
        (small, "a4 b3 c3 a4 d1 a4 c3 b3", "a4 b3 c3 d1 b3"),
        (small, "e12 e12 b3 e12 f0 f0 e12", "e12 b3 e12 f0 e12"),
    ):
        made.clear()
        for key in keys.split():
            assert kept.get(key, lambda key=key: make(key)) == bytes(int(key[1:]))
        assert made == due.split()
