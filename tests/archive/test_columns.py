"""Chunks that need their tensor's first one: parts of a tensor come back, and what is wrong with that one is named.

The archives are those of the specification, made by hand: their chunks begin within rows, and ask for all columns that
the first one tells or for some, or tell their own.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import serving
from support import RecordingStore, raw, same_bits, slots
from torch import Tensor, nn

import tallstore
from spec.vectors import Vector, invalid, valid
from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.locations import Places, coded
from tallstore.archive.manifests import read_manifest
from tallstore.archive.reader import Place, Reader
from tallstore.codecs.base import Buffer, Columns
from tallstore.codecs.dare import DareCodec
from tallstore.errors import ArchiveError, DamagedError, FormatError
from tallstore.stores import open_store
from tallstore.zoo import Zoo

ARCHIVE = valid("low-rank-columns")
VECTORS = {"low-rank-columns": ARCHIVE} | {name: valid(name) for name in ("low-rank-f32", "dare-f32")}
"""Those of float32 too, some of whose tensors have no products."""
PART = "tasks/a/mask.safetensors"
CHUNK, WIDTH = 1024, 40
ASK = {
    "BF16": (1, 2, 5),
    "F16": (1, 2, 5),
    "wide BF16": (1, 2, 3, 4, 5),
    "full F16": (1,),
    "odd BF16": (1,),
    "most": (1,),
}
"""Of some tensors, the chunks that have no columns of their own."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """First chunks whose columns were decoded."""
    found: list[bytes] = []
    columns = DareCodec.columns

    def counted(self: DareCodec, first: Buffer) -> Columns:
        found.append(bytes(first))
        return columns(self, first)

    monkeypatch.setattr(DareCodec, "columns", counted)
    return found


@pytest.fixture
def reader() -> Iterator[Reader]:
    with closing(open_store(ARCHIVE.archive)) as store:
        yield Reader(store, read_manifest(store))


def folder(path: Path) -> Path:
    """The archive as one, in which files can be changed."""
    with zipfile.ZipFile(ARCHIVE.archive) as file:
        file.extractall(path)
    return path


def flip(root: Path, name: str, chunk: int) -> None:
    """A bit in the middle of a chunk."""
    path = root / PART
    data = bytearray(path.read_bytes())
    entry = json.loads(json.loads(data[8 : slots(bytes(data))[0]])["__metadata__"]["tallstore"])["entries"][name]
    sizes = [size for size, _ in entry["chunks"]]
    data[slots(bytes(data))[1][name][0] + sum(sizes[:chunk]) + sizes[chunk] // 2] ^= 16
    path.write_bytes(bytes(data))


def decoded(task: str, name: str) -> bytes:
    return ARCHIVE.decoded()[task][name][2]


def chunk_of(name: str, index: int) -> bytes:
    """What comes back of a chunk of task a."""
    return decoded("a", name)[2 * index * CHUNK : 2 * (index + 1) * CHUNK]


def flat(sliced: object) -> bytes:
    assert isinstance(sliced, Tensor)
    return raw(sliced).tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("vector", VECTORS, ids=VECTORS)
def test_any_part_of_a_tensor_is_what_the_whole_has_there(vector: str, mapped: bool, threads: int) -> None:
    archive = VECTORS[vector]
    with tallstore.open(archive.archive, mapped=mapped, threads=threads) as zoo:
        for task, tensors in archive.decoded().items():
            weights, state = zoo.weights(task), zoo.state_dict(task)
            for name, (_, shape, data) in tensors.items():
                assert flat(state[name]) == data
                for a, b in ((0, 1), (shape[0] // 2, shape[0] // 2 + 1), (shape[0] - 1, shape[0]), (1, shape[0])):
                    assert same_bits(weights.get_slice(name)[a:b], state[name][a:b])
            for name in {"BF16", "columns", "first level alone"} & set(tensors):
                assert same_bits(weights.get_slice(name)[:, 3:5], state[name][:, 3:5].contiguous())


def test_a_part_is_read_with_the_first_chunk_and_no_other(tmp_path: Path) -> None:
    root = folder(tmp_path / "zoo")
    store = RecordingStore(open_store(root))
    entries = slots((root / PART).read_bytes())[1]
    with Zoo(store) as zoo:
        weights = zoo.weights("a")
        weights.get_slice("most")[:1]  # headers
        chunks = coded(Reader(store, zoo.manifest).places([PART], "mask", "a")["BF16"]).chunks
        spans = [(entries["BF16"][0] + chunks.before(i), chunks.length(i)) for i in range(6)]
        for row, index, wanted in (
            (26, 1, {1, 0}),
            (30, 1, {1}),
            (60, 2, {2}),
            (80, 3, {3}),
            (105, 4, {4}),
            (140, 5, {5}),
        ):
            store.ranges.clear()
            weights.get_slice("BF16")[row : row + 1]
            assert row * WIDTH // CHUNK == index
            read = {(start, stop - start) for path, start, stop in store.ranges if path == PART}
            assert read == {spans[i] for i in wanted}, "columns are kept from the first time on"


def test_parts_are_read_from_far_away() -> None:
    data = ARCHIVE.archive.read_bytes()
    with serving({"user/zoo": {"zoo.tall": data}}) as server:
        address = f"{server.cdn}/cdn/user/zoo/{server.commit('user/zoo')}/zoo.tall"
        with tallstore.open(address) as far:
            for task in ("a", "b"):
                assert flat(far.weights(task).get_slice("F16")[130:]) == decoded(task, "F16")[2 * 130 * WIDTH :]
                state = far.state_dict(task)
                assert {name: flat(tensor) for name, tensor in state.items()} == {
                    name: tensor[2] for name, tensor in ARCHIVE.decoded()[task].items()
                }


def test_damage_of_the_first_chunk_is_named_where_a_later_one_is_asked_for(tmp_path: Path) -> None:
    root = folder(tmp_path / "zoo")
    flip(root, "BF16", 0)
    said = rf"^{root}: {PART}: tensor 'BF16' is damaged \(chunk 0: checksum differs\); fetch or pack it again$"
    with tallstore.open(root, threads=1, mapped=False) as zoo:
        rows = zoo.weights("a").get_slice("BF16")
        for index in (1, 2, 5):
            with pytest.raises(DamagedError, match=said):
                rows[index * CHUNK // WIDTH + 1 : index * CHUNK // WIDTH + 2]
        for row in (77, 80, 105, 120):  # of chunks without a product, and with columns of their own
            assert flat(rows[row : row + 1]) == decoded("a", "BF16")[2 * row * WIDTH : 2 * (row + 1) * WIDTH]
        assert flat(zoo.weights("a").get_slice("F16")[26:]) == decoded("a", "F16")[2 * 26 * WIDTH :]
        with pytest.raises(DamagedError, match=said):
            zoo.state_dict("a", names=["BF16"])
        with pytest.raises(DamagedError, match=said):
            zoo.weights("b").get_slice("BF16")[26:27]
        with pytest.raises(DamagedError, match=rf"{PART}: damaged \(sha256 differs\)"):
            zoo.verify()


def test_damage_of_a_later_chunk_is_its_own(tmp_path: Path) -> None:
    root = folder(tmp_path / "zoo")
    flip(root, "BF16", 1)
    with tallstore.open(root, threads=1, mapped=False) as zoo:
        rows = zoo.weights("a").get_slice("BF16")
        assert flat(rows[60:61]) == decoded("a", "BF16")[2 * 60 * WIDTH : 2 * 61 * WIDTH]
        with pytest.raises(DamagedError, match=r"tensor 'BF16' is damaged \(chunk 1: checksum differs\)"):
            rows[30:31]


SPOILT = invalid("codes-of-columns")


@pytest.mark.parametrize("task", SPOILT.expected["tasks"])
def test_what_a_first_chunk_cannot_tell_is_refused_where_a_later_one_is_asked_for(task: str) -> None:
    """Each time that it is; and its own elements come back where it is sound."""
    facts = SPOILT.expected["tasks"][task]
    with tallstore.open(SPOILT.archive, threads=1) as zoo:
        rows = zoo.weights(task).get_slice("w")
        for _ in range(2):
            with pytest.raises(ArchiveError) as caught:
                rows[-1:]
            assert type(caught.value) in {FormatError, DamagedError}
            assert str(caught.value).startswith(f"{SPOILT.archive}: tasks/{task}/mask.safetensors: tensor 'w'")
            assert facts["mentions"] in str(caught.value) or task == "first-asks"
        if not task.startswith("first-") or "of-mode" in task:
            assert len(rows[:CHUNK]) == CHUNK
            return
        with pytest.raises(ArchiveError):
            rows[:1]


# Columns are decoded once for chunks that are asked for together.


def read_chunk(chunks: ChunkReader, place: Place, name: str, base: np.ndarray, index: int) -> bytes:
    out = base[2 * index * CHUNK : 2 * (index + 1) * CHUNK].copy()
    chunks.conditional_bytes(place, index, name, out)
    return out.tobytes()


def base_of(name: str) -> np.ndarray:
    with tallstore.open(ARCHIVE.archive) as zoo:
        return raw(zoo.base(name))


def test_columns_are_decoded_once_for_a_run_of_chunks(reader: Reader, asked: list[bytes]) -> None:
    """Of tensors by turns too; and those of a chunk's own are not asked for."""
    places, chunks = reader.places([PART], "mask", "a"), ChunkReader(reader)
    bases = {name: base_of(name) for name in ASK}
    for name, base in bases.items():
        for index in set(range(1, len(coded(places[name]).chunks))) - set(ASK[name]):
            assert read_chunk(chunks, places[name], name, base, index) == chunk_of(name, index)
    assert not asked
    for turn in range(5):
        for name, base in bases.items():
            for index in ASK[name][turn : turn + 1]:
                assert read_chunk(chunks, places[name], name, base, index) == chunk_of(name, index)
    assert asked == [bytes(reader.chunk(places[name], 0, name)) for name in ASK]


def test_threads_read_the_same(reader: Reader, asked: list[bytes]) -> None:
    """They may decode columns at the same time: no more often than there are threads."""
    places, chunks = reader.places([PART], "mask", "a"), ChunkReader(reader)
    name, base = "wide F16", base_of("wide F16")
    jobs = [0, 1, 2, 3, 4, 5] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(read_chunk, chunks, places[name], name, base), jobs))
    assert found == [chunk_of(name, index) for index in jobs]
    assert 1 <= len(asked) <= 4


def test_a_failure_is_not_kept(tmp_path: Path, asked: list[bytes]) -> None:
    """A file that is mended is read."""
    root = folder(tmp_path / "zoo")
    sound = (root / PART).read_bytes()
    flip(root, "F16", 0)
    with closing(open_store(root, mapped=False)) as store:
        reader = Reader(store, read_manifest(store))
        place, chunks, base = reader.places([PART], "mask", "a")["F16"], ChunkReader(reader), base_of("F16")
        for _ in range(2):
            with pytest.raises(DamagedError, match="chunk 0"):
                read_chunk(chunks, place, "F16", base, 1)
        assert not asked, "nothing that is damaged is decoded"
        with (root / PART).open("r+b") as file:
            file.write(sound)
        assert read_chunk(chunks, place, "F16", base, 1) == chunk_of("F16", 1)
        assert len(asked) == 1


def test_what_is_held_to_switch_by_gives_the_same_from_any_chunk_on(reader: Reader, asked: list[bytes]) -> None:
    places, chunks = Places(reader), ChunkReader(reader)
    for name, indices in ASK.items():
        held = chunks.coded_conditional(places.task("a")[name], name)
        base = torch.from_numpy(base_of(name)).view(torch.float16 if "F16" in name.split() else torch.bfloat16)
        asked.clear()
        for index in range(len(held.ends)):
            out = torch.empty_like(base[index * CHUNK :])
            held.apply(out, base[index * CHUNK :], index * CHUNK)
            assert raw(out).tobytes() == decoded("a", name)[2 * index * CHUNK :]
        assert len(asked) <= len(held.ends)
        asked.clear()
        held.apply(torch.empty_like(base), base, 0)
        assert len(asked) == (1 if indices else 0)


class Model(nn.Module):
    """Of the zoo's matrices."""

    def __init__(self, archive: Vector) -> None:
        super().__init__()
        for name, (dtype, shape, _) in archive.decoded()["a"].items():
            kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=kind), requires_grad=False))


@pytest.mark.parametrize("vector", VECTORS, ids=VECTORS)
def test_models_are_loaded_and_switched(vector: str) -> None:
    archive = VECTORS[vector]
    wanted = {name: data for name, (_, _, data) in archive.decoded()["a"].items()}
    with tallstore.open(archive.archive) as zoo:
        loaded, switched = Model(archive), Model(archive)
        zoo.load_into(loaded, "a")
        zoo.switcher(switched, ["a"]).switch("a")
        for model in (loaded, switched):
            assert {name: flat(own.data) for name, own in model.named_parameters()} == wanted
