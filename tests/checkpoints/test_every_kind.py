"""Every kind of checkpoint passes the suite of `tallstore.testing`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tallstore
from tallstore.archive.archive import open_archive
from tallstore.archive.checkpoint import ArchiveBase
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint, open_checkpoint
from tallstore.checkpoints.joined import JoinedCheckpoint
from tallstore.checkpoints.rounded import RoundedBase
from tallstore.testing import CheckpointContract


class TestFile(CheckpointContract):
    ordered = False  # safetensors sorts by type and name

    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        save_file(dict(state), folder / "model.safetensors")
        with closing(open_checkpoint(folder / "model.safetensors")) as checkpoint:
            yield checkpoint


class TestShards(CheckpointContract):
    ordered = False

    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        files = {
            "model-00001-of-00002.safetensors": list(state)[::2],
            "model-00002-of-00002.safetensors": list(state)[1::2],
        }
        for file, names in files.items():
            save_file({name: state[name] for name in names}, folder / file)
        table = {name: file for file, names in files.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
        with closing(open_checkpoint(folder)) as checkpoint:
            yield checkpoint


class TestPickle(CheckpointContract):
    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        torch.save(dict(state), folder / "pytorch_model.bin")
        with closing(open_checkpoint(folder / "pytorch_model.bin")) as checkpoint:
            yield checkpoint


class TestStateDict(CheckpointContract):
    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        with closing(open_checkpoint(dict(state))) as checkpoint:
            yield checkpoint


class TestFileSystem(CheckpointContract):
    ordered = False

    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        pytest.importorskip("fsspec")
        save_file(dict(state), folder / "model.safetensors")
        with closing(open_checkpoint(f"{folder.as_uri()}/model.safetensors")) as checkpoint:
            yield checkpoint


class TestJoined(CheckpointContract):
    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        names = list(state)
        parts = [open_checkpoint({f"x.{name}": state[name] for name in own}) for own in (names[:3], names[3:])]
        table = {name: (int(number >= 3), f"x.{name}") for number, name in enumerate(names)}
        with closing(JoinedCheckpoint("both", parts, table)) as checkpoint:
            yield checkpoint


class TestRounded(CheckpointContract):
    """Tensors so small are as they are."""

    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        with closing(RoundedBase(open_checkpoint(dict(state)))) as checkpoint:
            yield checkpoint


class TestBaseOfAnArchive(CheckpointContract):
    @contextmanager
    def opened(self, state: Mapping[str, Tensor], folder: Path) -> Iterator[Checkpoint]:
        tallstore.pack(dict(state), {"task": dict(state)}, folder / "zoo")
        with open_archive(folder / "zoo") as zoo, closing(ArchiveBase(Reader(zoo.store, zoo.manifest))) as checkpoint:
            yield checkpoint
