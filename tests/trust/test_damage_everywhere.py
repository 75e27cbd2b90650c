"""Every byte of a small archive flipped, every length of every part cut to: found, or provably without effect.

Here over the smallest archive that holds every kind of part; `python -m trust damage` does it for every codec and kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, bytes_of

import tallstore
from tallstore.errors import DamagedError
from tallstore.zoo import Zoo

from .damage import Counts, Held, Trial, content, cut_file, flip_base, flip_file, own_places
from .small_zoos import KINDS, write

sys.path.insert(0, str(ROOT / "spec" / "vectors"))
from making import build
from making.invalid import BASE, MASK, PRIVATE, VECTOR, sound
from making.numbers import floats


def smallest() -> build.Archive:
    """A masked tensor, a delta, a tie, one stored whole, a file; some hundred bytes a part."""
    archive = sound()
    items = archive.tasks["a"]["mask"][MASK].items
    facts, coded = build.vector(np.arange(3, dtype=np.float32) / 8, (3,), "q4")
    archive.base["d"] = floats("F32", [1.0, 2.0, 3.0])
    archive.base_parts[BASE].items["d"] = build.whole(archive.base["d"], "planes+zstd")
    items["d"] = {**facts, "kind": "delta", "dtype": "F32", "base": "d"}, coded
    head = floats("F16", [1.0, 2.0, 3.0])
    items["head"], items["t"] = build.noted(head), ({"kind": "tied", "to": "w"}, None)
    archive.tasks["a"]["private"] = {PRIVATE: build.Part("private", "a", {"head": build.whole(head)})}
    archive.files, archive.task_files = {"common/x": b"a file"}, {"a": {"x": "common/x"}}
    return archive


def zipped(files: dict[str, bytes]) -> bytes:
    return build.tall([build.ZipEntry(name, data) for name, data in files.items()])


def check(counts: Counts, *, tried: int) -> None:
    assert not counts.wrong, counts.wrong[:5]
    assert counts.flipped + counts.cut + counts.mixed >= tried


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(smallest().build())


def test_every_byte_of_every_part_flipped(trial: Trial) -> None:
    counts = trial.flip_all()
    size = sum(map(len, trial.files.values()))
    check(counts, tried=size)
    assert counts.found_by_verify == counts.flipped
    assert counts.irrelevant < size / 50, "padding alone"


def test_every_length_of_every_part(trial: Trial) -> None:
    counts = Trial(trial.files).cut_all()
    check(counts, tried=sum(map(len, trial.files.values())))
    assert counts.found_by_verify == counts.found_by_decode == counts.cut


def test_every_byte_of_a_single_file_s_own(trial: Trial, tmp_path: Path) -> None:
    """Of the zip around the parts: headers and directory."""
    data = zipped(trial.files)
    own = list(own_places(data))
    check(flip_file(data, trial.wanted, tmp_path, places=own), tried=len(own))
    assert len(own) < len(data) / 2


def test_lengths_of_a_single_file(trial: Trial, tmp_path: Path) -> None:
    data = zipped(trial.files)
    counts = cut_file(data, tmp_path, stride=5)
    check(counts, tried=len(data) // 5)
    assert counts.found_by_verify == counts.cut


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_every_kind_of_archive(kind: str, tmp_path: Path) -> None:
    """A byte here and there, and every other length or so: the script does them all."""
    path, base = write(kind, tmp_path)
    trial = Trial(bytes_of(path), base)
    check(trial.flip_all(stride=211), tried=30)
    check(trial.cut_all(stride=499), tried=30)


def test_a_damaged_base_from_outside(tmp_path: Path) -> None:
    path, base = write("referenced", tmp_path)
    assert base is not None
    with tallstore.open(path, base=base) as zoo:
        wanted = content(zoo)
    check(flip_base(path, base, wanted, tmp_path / "in0", stride=7), tried=100)


def test_parts_of_two_archives_in_every_mixture(tmp_path: Path) -> None:
    """An old manifest with new parts, a new one with old parts, and whatever lies between."""
    one, other = (bytes_of(write("fit f32", tmp_path, seed=seed)[0]) for seed in (0, 1))
    assert one.keys() == other.keys()
    counts = Trial(one).mix(other)
    check(counts, tried=2)
    assert counts.found_by_verify == counts.mixed


@pytest.fixture
def two_alike() -> dict[str, bytes]:
    """Two base tensors and two masked ones of the same type and size: their bytes fit in each other's place."""
    archive = sound()
    second = floats("BF16", [3.0] * 8)
    archive.base["x"] = second
    archive.base_parts[BASE].items["x"] = build.whole(second)
    vectors = archive.groups[0][2][VECTOR].items
    vectors["x"] = build.vector(np.full(8, 0.25, np.float32), (8,))
    archive.tasks["a"]["mask"][MASK].items["x"] = build.mask(np.ones(8, np.uint8), "binary", "BF16", (8,), "x")
    return archive.build()


@pytest.mark.parametrize("path", [BASE, VECTOR, MASK])
@pytest.mark.parametrize("how", ["data", "offsets"])
def test_tensors_in_each_others_place_are_found(path: str, how: str, two_alike: dict[str, bytes]) -> None:
    data = two_alike[path]
    begin = 8 + int.from_bytes(data[:8], "little")
    half = (len(data) - begin) // 2
    swapped = data[:begin] + data[begin + half :] + data[begin : begin + half]
    if how == "offsets":
        first, second = f"[0,{half}]".encode(), f"[{half},{2 * half}]".encode()
        assert first in data and second in data  # noqa: PT018 - one thing
        swapped = data.replace(first, b"@").replace(second, first).replace(b"@", second)
    assert Trial(two_alike).wanted, "it is sound before"
    for step in (Zoo.verify, content):
        with pytest.raises(DamagedError), Zoo(Held({**two_alike, path: swapped}), threads=1) as zoo:
            step(zoo)
