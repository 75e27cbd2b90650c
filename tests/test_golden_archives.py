"""What every released minor version wrote is read to the same bits by this one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from spec.second_reader import Archive
from support import ROOT

import tallstore
from spec.vectors import Plain, read_plain
from tallstore.format.version import NEWEST
from tallstore.tensors import NAME, as_bytes

GOLDEN = ROOT / "tests" / "golden"
ARCHIVES = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/*/zoo.tall"))


def plain(tensors: Mapping[str, torch.Tensor]) -> Plain:
    return {name: (NAME[t.dtype], tuple(t.shape), as_bytes(t.contiguous()).tobytes()) for name, t in tensors.items()}


def decoded(folder: Path, form: str) -> dict[str, Plain]:
    return {path.stem: read_plain(path) for path in sorted((folder / form).glob("*.safetensors"))}


def test_every_minor_version_has_its_archives() -> None:
    major, minor = map(int, NEWEST.split("."))
    assert {f"{major}.{n}" for n in range(minor + 1)} == {name.split("/")[0] for name in ARCHIVES}


def test_they_are_those_that_were_committed() -> None:
    lines = (GOLDEN / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    folders = [GOLDEN / name.split("/")[0] for name in ARCHIVES]
    paths = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {p.relative_to(GOLDEN).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths} == listed


@pytest.mark.parametrize("name", ARCHIVES)
def test_it_is_read_to_the_same_bits(name: str) -> None:
    folder = GOLDEN / name
    base = folder / "base.safetensors"
    given = base if base.is_file() else None
    with tallstore.open(folder / "zoo.tall", base=given) as zoo:
        assert zoo.verify().tasks == zoo.tasks
        assert sorted(zoo.tasks) == list(decoded(folder, "decoded"))
        assert zoo.manifest.version == name.split("/", maxsplit=1)[0]
        for form, exact in (("decoded", False), ("exact", True)):
            for task, wanted in decoded(folder, form).items():
                found = plain(zoo.state_dict(task, exact=exact))
                assert list(found) == list(wanted)
                assert found == wanted
    archive = Archive(folder / "zoo.tall", read_plain(base) if given else None)
    for task, wanted in decoded(folder, "decoded").items():
        assert archive.decode(task) == wanted
