"""Every valid vector decodes to the stored bits, in both readers; every invalid one raises what it must."""

from __future__ import annotations

import hashlib
import resource
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore
from tallstore import Zoo, errors
from tallstore.tensors import NAME, TORCH, as_bytes, shape_of

from .second_reader import Archive
from .vectors import INVALID, VALID, VECTORS, Plain, Vector, invalid, read_plain, valid

READINGS = {
    "mapped": {"mapped": True, "threads": 1},
    "plain": {"mapped": False, "threads": 1},
    "threads": {"mapped": True, "threads": 3},
}
MEMORY = 64 << 20
SECONDS = 10.0
"""Far above what any of them takes, and far below what it would take to believe a hostile number."""


def opened(vector: Vector, **how: Any) -> Zoo:
    return tallstore.open(vector.archive, base=vector.base, **how)


def plain(tensors: Mapping[str, torch.Tensor]) -> Plain:
    return {name: (NAME[t.dtype], tuple(t.shape), as_bytes(t.contiguous()).tobytes()) for name, t in tensors.items()}


def in_torch(file: Plain) -> Plain:
    """What a file holds as torch has it: of types that it lacks, bytes."""
    return {name: (NAME[TORCH[dtype]], shape_of(dtype, shape), data) for name, (dtype, shape, data) in file.items()}


def check_equal(found: Plain, due: Plain) -> None:
    assert list(found) == list(due)
    assert not [name for name in due if found[name] != due[name]]


def test_vectors_are_those_that_were_committed() -> None:
    lines = (VECTORS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    there = {
        path.relative_to(VECTORS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("valid", "invalid")
        for path in (VECTORS / part).rglob("*")
        if path.is_file()
    }
    assert there == listed
    assert len(VALID) >= 25
    assert len(INVALID) >= 100


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", VALID)
def test_valid_decodes(name: str, reading: str) -> None:
    vector = valid(name)
    with opened(vector, **READINGS[reading]) as zoo:
        assert sorted(zoo.tasks) == sorted(vector.decoded())
        for task, due in vector.decoded().items():
            check_equal(plain(zoo.state_dict(task)), in_torch(due))
        for task, due in vector.decoded("exact").items():
            check_equal(plain(zoo.state_dict(task, exact=True)), in_torch(due))


@pytest.mark.parametrize("name", VALID)
def test_valid_verifies(name: str) -> None:
    with opened(valid(name)) as zoo:
        assert zoo.verify().tasks == zoo.tasks


@pytest.mark.parametrize("name", VALID)
def test_valid_decodes_tensor_by_tensor(name: str) -> None:
    vector = valid(name)
    with opened(vector) as zoo:
        for task, due in vector.decoded().items():
            for tensor in due:
                check_equal(plain(zoo.state_dict(task, names=[tensor])), in_torch({tensor: due[tensor]}))


@pytest.mark.parametrize("name", VALID)
def test_second_reader_decodes(name: str) -> None:
    vector = valid(name)
    archive = Archive(vector.archive, read_plain(vector.base) if vector.base else None)
    assert sorted(archive.tasks) == sorted(vector.decoded())
    for task, due in vector.decoded().items():
        check_equal(archive.decode(task), due)
    for task, due in vector.decoded("exact").items():
        check_equal(archive.decode(task, exact=True), due)


def test_tied_tensors_share_their_memory() -> None:
    with opened(valid("tied")) as zoo:
        state = zoo.state_dict("a")
    assert state["first"].data_ptr() == state["w"].data_ptr()
    assert state["head.tied"].data_ptr() == state["head"].data_ptr()


@pytest.mark.parametrize("path", sorted(VECTORS.glob("valid/*/archive.tall")), ids=lambda path: path.parent.name)
def test_zip_tools_unpack_what_is_valid(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == "tall.json"


def test_a_newer_minor_version_is_named() -> None:
    with opened(valid("newer-minor")) as zoo:
        assert zoo.manifest.version == "1.9"


@contextmanager
def _raises(facts: Mapping[str, str]) -> Iterator[None]:
    """The very class that is named, with the words that are named; soon, and with little memory."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(errors.TallstoreError) as caught:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is getattr(errors, facts["error"]), caught.value
    assert facts["mentions"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < MEMORY
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert time.monotonic() - begun < SECONDS


def _decode(zoo: Zoo) -> None:
    for task in zoo.tasks:
        zoo.state_dict(task)


STEPS: dict[str, Callable[[Zoo], object]] = {"decode": _decode, "verify": Zoo.verify}
ONE = [name for name in INVALID if not {"tasks", "tensors"} & invalid(name).expected.keys()]
MANY = [
    pytest.param(name, kind, key, id=f"{name}-{key}")
    for name in INVALID
    for kind in ("tasks", "tensors")
    for key in invalid(name).expected.get(kind, ())
]
SEVERAL = sorted(set(INVALID) - set(ONE))


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
@pytest.mark.parametrize("name", ONE)
def test_invalid_is_refused(name: str, mapped: bool) -> None:
    vector = invalid(name)
    facts = vector.expected
    if facts["at"] == "open":
        with _raises(facts):
            opened(vector, mapped=mapped, threads=1)
        return
    with opened(vector, mapped=mapped, threads=1) as zoo, _raises(facts):
        STEPS[facts["at"]](zoo)


@pytest.mark.parametrize(("name", "kind", "key"), MANY)
def test_each_spoiled_one_is_refused(name: str, kind: str, key: str) -> None:
    """A spoiled task or tensor is refused when it is asked for; the sound ones beside it are not."""
    facts = invalid(name).expected[kind][key]
    with opened(invalid(name), threads=1) as zoo, _raises(facts):
        zoo.state_dict(key) if kind == "tasks" else zoo.state_dict("a", names=[key])


@pytest.mark.parametrize("name", ["entries", "parts"])
def test_a_task_does_not_suffer_from_its_neighbours(name: str) -> None:
    with opened(invalid(name), threads=1) as zoo:
        assert plain(zoo.state_dict("a")) == valid_neighbour(zoo)


def valid_neighbour(zoo: Zoo) -> Plain:
    """What task `a` of those archives is, from its ingredients."""
    moved = zoo.base("w").float() + zoo.vector("w")
    state = {"w": torch.where(zoo.mask("a", "w"), moved.to(torch.bfloat16), zoo.base("w"))}
    return plain(state)


@pytest.mark.parametrize("name", SEVERAL)
def test_verify_refuses_an_archive_with_spoiled_ones(name: str) -> None:
    with opened(invalid(name), threads=1) as zoo, pytest.raises(errors.ArchiveError):
        zoo.verify()


def test_a_tensor_with_nothing_behind_it_is_refused_before_it_is_allocated() -> None:
    with opened(invalid("private-of-2-to-48")) as zoo, pytest.raises(errors.FormatError):
        zoo.state_dict("a")
