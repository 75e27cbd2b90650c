from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Hub, serving
from support import bytes_of, tiny_zoo, write_folder

import tallstore
from tallstore.stores import far

TOKEN = "hf_goodgoodgood"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, with shorter waits between them."""
    monkeypatch.setattr(far, "_WAIT", 0.002)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as a folder: tasks a, b and c, with a configuration each and a vocabulary that they share."""
    folder = tmp_path_factory.mktemp("zoo")
    base, tasks = tiny_zoo(3)
    for name, state in tasks.items():
        write_folder(folder / name, state, name=name)
        (folder / name / "vocab.txt").write_text("one\ntwo\n" * 300)
    tallstore.pack(base, {name: folder / name for name in tasks}, folder / "zoo")
    return folder / "zoo"


@pytest.fixture
def hub(zoo: Path) -> Iterator[Hub]:
    """A Hub with the archive as user/zoo, and the user's token."""
    with serving({"user/zoo": bytes_of(zoo)}, {TOKEN: "user"}) as running:
        yield running


@pytest.fixture
def empty(zoo: Path) -> Iterator[Hub]:
    """A Hub where nothing is yet."""
    with serving(tokens={TOKEN: "user"}) as running:
        yield running


def needed(zoo: Path, *tasks: str) -> dict[str, int]:
    """What tasks need of the archive, by the layout of its folder: path → bytes. The manifest is not in it."""
    return {
        path: len(data)
        for path, data in bytes_of(zoo).items()
        if path.startswith(("base/", "vector/", "common/", *(f"tasks/{task}/" for task in tasks)))
        and not path.endswith("exact.safetensors")
    }


def manifest_of(files: dict[str, bytes]) -> dict[str, object]:
    return dict(json.loads(files["tall.json"]))
