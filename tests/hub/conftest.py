from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Hub, Repository, serving
from processes import Forks
from safetensors.torch import save
from support import bytes_of, tiny_zoo, write_folder

import tallstore
from tallstore.cli import main
from tallstore.stores import retries

TOKEN = "hf_goodgoodgood"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, with shorter waits between them."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)


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


def add_models(hub: Hub) -> None:
    """A base and two fine-tunes in repositories of their own."""
    base, tasks = tiny_zoo(2)
    files = {"model.safetensors": save(base), "config.json": b"{}", "README.md": b"# base", "extra.onnx": b"x" * 3000}
    hub.repos["user/base"] = Repository()
    hub.repos["user/base"].add("main", files, "base")
    for name, state in tasks.items():
        hub.repos[f"user/{name}"] = Repository()
        hub.repos[f"user/{name}"].add("main", {"model.safetensors": save(state)}, name)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[str, bytes]:
    """An archive that references its base on the Hub, packed once: on every Hub of these tests the base is the same."""
    folder = tmp_path_factory.mktemp("small")
    code = 'import tallstore; tallstore.pack("user/base", {"a": "user/a", "b": "user/b"}, args[0], base_storage="reference")'
    with serving() as hub:
        add_models(hub)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "other"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = forks.run(code, str(folder / "small"), env=env)
    assert done[0] == 0, done
    return bytes_of(folder / "small")


@pytest.fixture
def referencing(hub: Hub, small: dict[str, bytes], tmp_path: Path) -> Path:
    """An archive on the Hub whose base is in a repository of its own."""
    add_models(hub)
    for path, data in small.items():
        (tmp_path / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "small" / path).write_bytes(data)
    hub.repos["user/small"] = Repository()
    hub.repos["user/small"].add("main", small, "small")
    hub.log.clear()
    return tmp_path / "small"


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


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, output, errors."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
