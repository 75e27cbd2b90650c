"""Parts of tensors: what a rank asks for is what the whole tensor has there, and no other chunk is read for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support import RecordingStore, State, assert_same, examples, near, noise, same_bits, slots, write_folder
from torch import Tensor

import tallstore
from tallstore.errors import DamagedError, NoSuchTensorError, OptionError
from tallstore.stores import open_store
from tallstore.zoo import Zoo

CHUNK = 1024


def zoo() -> tuple[State, State]:
    """A tensor of each kind, in several chunks that no row begins or ends with."""
    base = {
        "moved": noise(50, 77, seed=1),
        "frozen": noise(50, 77, seed=2),
        "grown": noise(40, 77, seed=3),
        "half": noise(50, 77, seed=4).bfloat16(),
        "wide": noise(3, 2500, seed=5),
        "deep": noise(9, 8, 5, 7, seed=6),
        "flat": noise(3000, seed=7),
    }
    task = {name: near(tensor, 20) for name, tensor in base.items()}
    task["frozen"] = base["frozen"].clone()
    task["half"] = task["half"].float()
    task["grown"] = torch.cat([task["grown"], noise(30, 77, seed=8)])
    task["head"], task["scalar"] = noise(60, 77, seed=9), torch.tensor(3.0)
    task["tied"] = task["moved"]
    task["empty"] = noise(0, 4)
    return base, task


@pytest.fixture(scope="module", params=["raw", "planes+zstd", "reference", "fit", "exact"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zoo, State]]:
    path = tmp_path_factory.mktemp("slices") / "zoo"
    base, task = zoo()
    options = {
        "raw": {"base_codec": "raw"},
        "planes+zstd": {},
        "reference": {"base_storage": "reference"},
        "fit": {"recipe": "fit"},
        "exact": {"exact": "all"},
    }[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", CHUNK)
        tallstore.pack(base, {"t": task, "u": task}, path, **options)
    with tallstore.open(path, base=base if request.param == "reference" else None) as found:
        yield found, found.state_dict("t", exact=request.param == "exact")


@pytest.fixture(scope="module")
def plain(opened: tuple[Zoo, State], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The task as safetensors has it."""
    path = tmp_path_factory.mktemp("plain") / "t.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in opened[1].items()}, path)
    with safe_open(path, "pt") as file:
        yield file


def test_it_is_used_as_a_file_is(opened: tuple[Zoo, State], tmp_path: Path) -> None:
    """Call for call what safetensors gives."""
    found, state = opened
    exact = "exact" in found.manifest.tasks["t"].parts
    found.export("t", tmp_path / "t", exact=exact)
    with safe_open(tmp_path / "t" / "model.safetensors", "pt") as file, found.weights("t", exact=exact) as weights:
        assert sorted(file.keys()) == sorted(weights.keys())
        assert file.metadata() == weights.metadata()
        names = weights.keys()
        for name in names:
            theirs, ours = file.get_slice(name), weights.get_slice(name)
            assert ours.get_shape() == theirs.get_shape() == list(state[name].shape)
            assert ours.get_dtype() == theirs.get_dtype()
            assert same_bits(weights.get_tensor(name), file.get_tensor(name))
        assert same_bits(weights.get_slice("moved")[3:9, 5:70], file.get_slice("moved")[3:9, 5:70])


INDEX = st.one_of(
    st.builds(slice, st.none() | st.integers(-60, 60), st.none() | st.integers(-60, 60)),
    st.builds(slice, st.none() | st.integers(0, 3000), st.none() | st.integers(0, 3000)),
    st.integers(-3, 2),
    st.just(Ellipsis),
)


@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_any_slice_is_what_the_tensor_has_there(opened: tuple[Zoo, State], data: st.DataObject) -> None:
    found, state = opened
    name = data.draw(st.sampled_from(sorted(set(state) - {"empty", "scalar"})))
    index = tuple(data.draw(st.lists(INDEX, min_size=1, max_size=state[name].dim(), unique_by=_is_ellipsis)))
    weights = found.weights("t", exact="exact" in found.manifest.tasks["t"].parts)
    assert same_bits(weights.get_slice(name)[index], state[name][index].contiguous())


def _is_ellipsis(index: object) -> object:
    return "..." if index is Ellipsis else id(index)


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> object:
    """Whatever may stand in brackets behind a tensor of this shape, right or wrong."""
    size = max((*shape, 3))
    places = st.lists(st.integers(-size - 1, size), max_size=4)
    masks = st.sampled_from([(*shape[:1],), (*shape[1:2],), tuple(shape[:2]), (3,)])
    bits = masks.map(lambda of: torch.rand(of, generator=torch.Generator().manual_seed(len(of))) > 0.5)
    one = st.one_of(
        st.integers(-size - 1, size),
        st.integers(-size, size - 1).map(np.int64),
        st.integers(-size, size - 1).map(torch.tensor),
        st.builds(
            slice,
            st.none() | st.integers(-size, size),
            st.none() | st.integers(-size, size),
            st.none() | st.integers(-1, 9),
        ),
        st.sampled_from([None, Ellipsis, True, False, 1.5]),
        places,
        places.map(lambda of: torch.tensor(of, dtype=torch.int64)),
        places.map(lambda of: np.array(of, dtype=np.int64)),
        bits,
        bits.map(lambda of: of.tolist() if of.dim() == 1 else of.numpy()),
    )
    return draw(one | st.lists(one, max_size=len(shape) + 2).map(tuple))


@given(data=st.data())
@settings(max_examples=examples(40, least=7), deadline=None)
def test_any_index_gives_what_safetensors_gives(opened: tuple[Zoo, State], plain: Any, data: st.DataObject) -> None:
    """Results and errors, call for call."""
    found, state = opened
    weights = found.weights("t", exact="exact" in found.manifest.tasks["t"].parts)
    for _ in range(12):
        name = data.draw(st.sampled_from(sorted(state)))
        index = data.draw(indices(tuple(state[name].shape)))
        theirs, ours = attempt(plain.get_slice(name), index), attempt(weights.get_slice(name), index)
        if isinstance(theirs, Tensor):
            assert isinstance(ours, Tensor), (name, index, ours)
            assert same_bits(ours, theirs.contiguous()), (name, index)
        else:
            assert isinstance(ours, OptionError), (name, index, theirs, ours)
            assert isinstance(ours, type(theirs)), (name, index, theirs, ours)


def attempt(tensor: object, index: object) -> Tensor | Exception:
    try:
        found: Tensor = tensor[index]  # type: ignore[index]
    except Exception as error:  # whatever it is, the other one is to have it too
        return error
    return found


def test_what_is_no_index_says_so_as_torch_does(opened: tuple[Zoo, State]) -> None:
    found, _state = opened
    weights = found.weights("t")
    assert same_bits(weights.get_slice("scalar")[...], weights.get_tensor("scalar"))
    assert weights.get_slice("empty")[:, 1:3].shape == (0, 2)
    for odd, kind in (
        (50, IndexError),
        (-51, IndexError),
        (slice(0, 9, -2), ValueError),
        ("x", TypeError),
        ([60], IndexError),
    ):
        with pytest.raises(kind, match=r"'moved' of shape \[50, 77\]") as caught:
            weights.get_slice("moved")[odd]
        assert isinstance(caught.value, OptionError)
    with pytest.raises(IndexError, match="too many indices"):
        weights.get_slice("moved")[0, 0, 0]
    with pytest.raises(NoSuchTensorError, match="no tensor 'nothing'; it has"):
        weights.get_tensor("nothing")


# Which bytes are read.


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Zoo, RecordingStore]]:
    monkeypatch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", CHUNK)
    base = {"w": noise(64, 256, seed=1), "v": noise(64, 256, seed=2)}
    tallstore.pack(base, {t: {n: near(w, i) for n, w in base.items()} for i, t in enumerate("ab", 5)}, tmp_path / "zoo")
    store = RecordingStore(open_store(tmp_path / "zoo"))
    with Zoo(store) as found:
        found.weights("a").get_slice("w")[0:1]  # headers
        store.ranges.clear()
        yield found, store


def test_a_rank_reads_the_chunks_of_its_rows(recorded: tuple[Zoo, RecordingStore], tmp_path: Path) -> None:
    found, store = recorded
    read = []
    for rank in range(4):
        store.ranges.clear()
        found.weights("a").get_slice("w")[16 * rank : 16 * (rank + 1)]
        assert {path for path, _, _ in store.ranges} == {"base/base.safetensors", "tasks/a/mask.safetensors"}
        read += store.ranges
        assert len(store.ranges) == 8, "four chunks of the base and four of the mask"
    assert len(read) == len(set(read)), "no rank reads what another one does"
    for path in ("base/base.safetensors", "tasks/a/mask.safetensors"):
        _, places = slots((tmp_path / "zoo" / path).read_bytes())
        low, high = places["w"]
        assert all(low <= start and stop <= high for each, start, stop in read if each == path)
    store.ranges.clear()
    found.weights("a").get_slice("w")[:, 128:]
    assert len(store.ranges) == 32, "columns are in every chunk"


def test_a_stage_reads_the_tensors_that_an_expression_names(recorded: tuple[Zoo, RecordingStore]) -> None:
    found, _store = recorded
    assert list(found.state_dict("a", names="^v$")) == ["v"]
    assert list(found.state_dict("a", names=re.compile("W", re.IGNORECASE))) == ["w"]
    assert list(found.state_dict("a", names=["w", "v"])) == ["w", "v"]
    with pytest.raises(OptionError, match="no regular expression"):
        found.state_dict("a", names="(")
    with pytest.raises(NoSuchTensorError, match="no tensor with 'x'"):
        found.state_dict("a", names="x")


def test_damage_in_a_rank_s_part_is_found_by_that_rank(recorded: tuple[Zoo, RecordingStore], tmp_path: Path) -> None:
    part = tmp_path / "zoo" / "tasks" / "a" / "mask.safetensors"
    data = bytearray(part.read_bytes())
    _low, high = slots(bytes(data))[1]["w"]
    data[high - 20] ^= 1
    part.write_bytes(bytes(data))
    with tallstore.open(tmp_path / "zoo", mapped=False) as found:
        weights = found.weights("a").get_slice("w")
        weights[:16]
        with pytest.raises(DamagedError, match="'w' is damaged"):
            weights[48:]


# Shards out.


def test_an_export_in_shards(opened: tuple[Zoo, State], tmp_path: Path) -> None:
    found, _ = opened
    state = found.state_dict("t")
    folder = found.export("t", tmp_path / "t", max_shard_size="40KB")
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    assert set(index["weight_map"]) == set(state)
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened_file:
            assert same_bits(opened_file.get_tensor(name), state[name])
    assert all((folder / file).stat().st_size < 45_000 for file in files)
    again = found.export("t", folder, overwrite=True)
    assert [p.name for p in again.glob("*.safetensors*")] == ["model.safetensors"]
    with pytest.raises(OptionError, match="max_shard_size"):
        found.export("t", tmp_path / "x", max_shard_size="none")


def test_shards_in_and_shards_out(tmp_path: Path) -> None:
    """What was exported in shards is packed as if it had been one file."""
    base = {f"layer{n}": noise(20, 50, seed=n) for n in range(4)}
    task = {name: near(tensor, 9) for name, tensor in base.items()}
    whole = write_folder(tmp_path / "whole", task)
    tallstore.pack(base, {"t": whole}, tmp_path / "one.tall", exact="t")
    with tallstore.open(tmp_path / "one.tall") as found:
        cut = found.export("t", tmp_path / "cut", exact=True, max_shard_size="5KB")
    assert len(list(cut.glob("*.safetensors"))) == 4
    tallstore.pack(base, {"t": cut}, tmp_path / "two.tall", exact="t")
    assert (tmp_path / "one.tall").read_bytes() == (tmp_path / "two.tall").read_bytes()
    with tallstore.open(tmp_path / "two.tall") as found:
        assert_same(found.state_dict("t", exact=True), task)
