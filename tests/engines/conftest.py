"""An archive for the small engine, and the end of what tests open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import write_folder

import tallstore

from .small_engine import CONFIG, OPEN, base_state, task_states


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    write_folder(folder / "base", base_state(), **CONFIG)
    for name, state in task_states().items():
        write_folder(folder / name, state, **CONFIG, _name_or_path=name, _model_name_or_path=name)
        (folder / name / "vocab.txt").write_text("one\ntwo\n")
    write_folder(folder / "wide", {n: torch.cat([t, t]) for n, t in base_state().items()}, **CONFIG)
    write_folder(folder / "other", base_state(), **{**CONFIG, "rope_theta": 5.0})
    write_folder(folder / "words", base_state(), **CONFIG)
    (folder / "words" / "vocab.txt").write_text("two\none\n")
    shutil.copy(folder / "all" / "vocab.txt", folder / "wide")
    shutil.copy(folder / "all" / "vocab.txt", folder / "other")
    tasks = {name: folder / name for name in ("all", "one", "none", "wide", "other", "words")}
    tallstore.pack(folder / "base", tasks, folder / "zoo", quality="lossless")
    return folder / "zoo"


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()
