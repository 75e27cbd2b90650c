"""Whole archives, as one file and as a folder: opened, described, decoded, verified, taken to pieces.

What is given back is what the second reader, written from `spec/` alone, makes of the same bytes.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tallstore
from spec import second_reader
from tallstore.errors import BaseNeededError, FormatError, TallstoreError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.names import check_paths
from tallstore.stores import open_store
from tallstore.tensors import NAME, as_bytes
from tallstore.zoo import Zoo

from . import headers, signed
from .base import INVALID, VALID, Target

MOST = 1 << 23
"""Bytes that an archive may say it decodes to. What says more may be honest, and a caller sees it before decoding."""


@cache
def scratch() -> Path:
    """This process's folder."""
    return Path(tempfile.mkdtemp())


def _size(zoo: Zoo) -> int:
    """What the archive says that its tasks, their ingredients and its base take, decoded."""
    total = zoo.manifest.base.bytes
    for task in zoo.tasks:
        total += sum(
            8 * math.prod(facts.shape) * ITEM_BYTES.get(facts.dtype, 8) for facts in zoo.tensors(task).values()
        )
    return total


def _use(path: Path) -> None:
    """Do everything. What decodes must be right; what `verify` passes must decode, and here and there alike."""
    with tallstore.open(path, threads=1, mapped=path.name.endswith("m")) as zoo:
        zoo.info()
        if _size(zoo) > MOST:
            return
        refused: dict[str, Exception] = {}
        for task in zoo.tasks:
            try:
                if (error := _compare(path, zoo, task)) is not None:
                    refused[f"{task}, second reader"] = error
                _ingredients(zoo, task)
            except BaseNeededError:
                continue
            except TallstoreError as error:
                refused[task] = error
        zoo.verify()
        assert not refused, f"verify finds nothing, and decoding does: {refused}"


def _compare(path: Path, zoo: Zoo, task: str) -> Exception | None:
    """Decode a task in both readers; gives what the second one has against it."""
    for exact in (False, *([True] if "exact" in zoo.manifest.tasks[task].parts else [])):
        state = zoo.state_dict(task, exact=exact)
        try:
            due = second_reader.Archive(path).decode(task, exact=exact)
        except zipfile.BadZipFile:  # a zip's own checksums, which a reader of archives need not look at
            return None
        except Exception as error:
            return error
        _equal(state, due)
    return None


def _ingredients(zoo: Zoo, task: str) -> None:
    for name, facts in zoo.tensors(task).items():
        if facts.kind in {"binary", "signed"}:
            assert zoo.mask(task, name).shape == facts.shape
            zoo.vector(str(facts.base))
        assert zoo.state_dict(task, names=[name])[name].shape == facts.shape
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        zoo.export(task, Path(folder) / "out")
        zoo.write_subset([task], Path(folder) / "sub.tall")
        with tallstore.open(Path(folder) / "sub.tall", threads=1) as smaller:
            assert task in smaller.tasks  # and what it is made of


def _equal(state: dict[str, Tensor], due: dict[str, second_reader.Decoded]) -> None:
    """As the second reader has it; any NaN is as good as any other where something was computed."""
    assert list(state) == list(due)
    for name, tensor in state.items():
        dtype, shape, data = due[name]
        assert (NAME[tensor.dtype], tuple(tensor.shape)) == (dtype, tuple(shape))
        found = as_bytes(tensor.contiguous())
        if found.tobytes() != data:
            other = torch.frombuffer(bytearray(data), dtype=tensor.dtype)
            same = (tensor.reshape(-1).double() == other.double()) | (tensor.reshape(-1).isnan() & other.isnan())
            assert same.all(), f"{name} is not what the second reader reads"
            differ = np.frombuffer(data, np.uint8) != found
            assert tensor.reshape(-1).isnan()[torch.from_numpy(differ.reshape(-1, tensor.element_size()).any(1))].all()


def run_file(data: bytes) -> None:
    path = scratch() / ("zoo-m" if len(data) % 2 else "zoo-p")
    path.write_bytes(data)
    _use(path)


def run_folder(data: bytes) -> None:
    files = signed.unzip(data) or {}
    try:
        check_paths(files)
    except FormatError:
        return  # no folder can hold such files
    root = scratch() / ("folder-m" if len(data) % 2 else "folder-p")
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    _use(root)


def run_zip(data: bytes) -> None:
    path = scratch() / "directory"
    path.write_bytes(data)
    with open_store(path) as store:
        for name in store.paths():
            size = store.size(name)
            assert len(store.read(name, 0, size)) == size


def file_seeds() -> Iterator[bytes]:
    for path in sorted([*VALID.glob("*/archive.tall"), *INVALID.glob("*/archive.tall")]):
        if path.stat().st_size < 1 << 15:
            yield path.read_bytes()


def archive_seeds() -> Iterator[bytes]:
    for files in headers.archives():
        if sum(map(len, files.values())) < 1 << 15:
            try:
                yield signed.zipped(files)
            except (ValueError, UnicodeError):
                continue


TARGETS = {
    "zip": Target(run=run_zip, seeds=file_seeds, max_len=1 << 15),
    "archive": Target(run=run_file, seeds=archive_seeds, mutate=signed.mutate, max_len=1 << 16),
    "folder": Target(run=run_folder, seeds=archive_seeds, mutate=signed.mutate, max_len=1 << 16),
}
