"""What an archive from a stranger must not do is refused over the network by the same errors as on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Hub, serving
from support import ROOT, bytes_of

import tallstore
from tallstore.errors import TallstoreError

VECTORS = ROOT / "spec" / "vectors"
INVALID = sorted(path.name for path in (VECTORS / "invalid").iterdir() if next(path.glob("archive*"), None))


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """One repository a vector: a folder's files, or `archive.tall`."""
    repos = {}
    for name in INVALID:
        (archive,) = (VECTORS / "invalid" / name).glob("archive*")
        repos[f"bad/{name}"] = bytes_of(archive) if archive.is_dir() else {"archive.tall": archive.read_bytes()}
    with serving(repos) as running:
        yield running


def used(url: str | Path, **how: object) -> str:
    """Everything that one can do with an archive; the kind of error that it ends with."""
    try:
        with tallstore.open(url, **how) as zoo:  # type: ignore[arg-type]
            zoo.verify()
            for task in zoo.tasks:
                zoo.state_dict(task)
                for path in zoo.manifest.tasks[task].files.values():
                    zoo.store.read(path, 0, zoo.store.size(path))
    except TallstoreError as error:
        assert "\n" not in str(error)
        return type(error).__name__
    return "fine"


@pytest.mark.filterwarnings("ignore:hf.*to be fetched again:UserWarning")
@pytest.mark.parametrize("name", INVALID)
def test_far_away_is_refused_like_here(name: str, server: Hub, tmp_path: Path) -> None:
    (archive,) = (VECTORS / "invalid" / name).glob("archive*")
    here = used(archive)
    web = f"{server.cdn}/cdn/bad/{name}/{server.commit(f'bad/{name}')}"
    there = used(web if archive.is_dir() else f"{web}/archive.tall")
    assert there == here
    if archive.is_dir():
        hub = {"endpoint": server.url, "cache_dir": tmp_path / "cache"}
        assert used(f"hf://bad/{name}", **hub) == here
        assert used(f"hf://bad/{name}", lazy=True, **hub) == here
