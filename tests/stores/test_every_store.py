"""Every store and every sink passes the suite of `tallstore.testing`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from loopback import serving
from support import read_all

from tallstore.errors import ArchiveError
from tallstore.format.manifest import MANIFEST
from tallstore.stores import Sink, Store, open_any, open_sink, open_store
from tallstore.stores.hub_client import Access
from tallstore.testing import SinkContract, StoreContract


def put(target: str | Path, files: Mapping[str, bytes]) -> None:
    """Written as archives are."""
    with open_sink(target) as sink:
        for path in sorted(files, key=MANIFEST.__eq__):  # the manifest is the last
            sink.put(path, [files[path]], len(files[path]))
        sink.commit()


@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "by position"])
class TestOnDisk(StoreContract):
    """A folder and a file."""

    @pytest.fixture(autouse=True)
    def _named(self, name: str, mapped: bool) -> None:
        self._name, self._mapped = name, mapped

    @contextmanager
    def opened(self, files: Mapping[str, bytes], folder: Path) -> Iterator[Store]:
        put(folder / self._name, files)
        with open_store(folder / self._name, mapped=self._mapped) as store:
            yield store


@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
class TestFileSystem(StoreContract):
    """fsspec's, as a folder and as a file."""

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        pytest.importorskip("fsspec")
        self._url = f"memory://{uuid.uuid4().hex}/{name}"

    @contextmanager
    def opened(self, files: Mapping[str, bytes], folder: Path) -> Iterator[Store]:
        put(self._url, files)
        with open_any(self._url) as store:
            yield store


class TestHub(StoreContract):
    """Through the Hub's cache."""

    @contextmanager
    def opened(self, files: Mapping[str, bytes], folder: Path) -> Iterator[Store]:
        with serving({"user/zoo": dict(files)}) as hub:
            access = Access(endpoint=hub.url, cache_dir=folder / "cache")
            with open_any("hf://user/zoo", access=access) as store:
                yield store


class TestHubByRange(StoreContract):
    """Without a cache."""

    @contextmanager
    def opened(self, files: Mapping[str, bytes], folder: Path) -> Iterator[Store]:
        with serving({"user/zoo": dict(files)}) as hub:
            access = Access(endpoint=hub.url, cache_dir=folder / "cache")
            with open_any("hf://user/zoo", lazy=True, access=access) as store:
                yield store


class TestHubFile(StoreContract):
    """A `.tall` file in a repository, by range."""

    @contextmanager
    def opened(self, files: Mapping[str, bytes], folder: Path) -> Iterator[Store]:
        put(folder / "zoo.tall", files)
        with serving({"user/zoo": {"zoo.tall": (folder / "zoo.tall").read_bytes()}}) as hub:
            access = Access(endpoint=hub.url, cache_dir=folder / "cache")
            with open_any("hf://user/zoo/zoo.tall", access=access) as store:
                yield store


def seen(target: str | Path) -> dict[str, bytes] | None:
    """What is in an archive there; None where there is none."""
    with suppress(ArchiveError):
        with open_any(target) as store:
            return {path: bytes(store.read(path, 0, store.size(path))) for path in store.paths()}
    return None


class TestFolderSink(SinkContract):
    def sink(self, folder: Path, *, overwrite: bool = False) -> Sink:
        return open_sink(folder / "zoo", overwrite=overwrite)

    def seen(self, folder: Path) -> dict[str, bytes] | None:
        return read_all(folder / "zoo") if (folder / "zoo").exists() else None


class TestFileSink(SinkContract):
    def sink(self, folder: Path, *, overwrite: bool = False) -> Sink:
        return open_sink(folder / "zoo.tall", overwrite=overwrite)

    def seen(self, folder: Path) -> dict[str, bytes] | None:
        return read_all(folder / "zoo.tall") if (folder / "zoo.tall").exists() else None


class TestFileSystemFolderSink(SinkContract):
    swaps = False  # objects cannot be exchanged

    @pytest.fixture(autouse=True)
    def _named(self) -> None:
        pytest.importorskip("fsspec")
        self._url = f"memory://{uuid.uuid4().hex}/zoo"

    def sink(self, folder: Path, *, overwrite: bool = False) -> Sink:
        return open_sink(self._url, overwrite=overwrite)

    def seen(self, folder: Path) -> dict[str, bytes] | None:
        found = seen(self._url)
        return found if found is not None and MANIFEST in found else None


class TestFileSystemFileSink(SinkContract):
    @pytest.fixture(autouse=True)
    def _named(self) -> None:
        pytest.importorskip("fsspec")
        self._url = f"memory://{uuid.uuid4().hex}/zoo.tall"

    def sink(self, folder: Path, *, overwrite: bool = False) -> Sink:
        return open_sink(self._url, overwrite=overwrite)

    def seen(self, folder: Path) -> dict[str, bytes] | None:
        return seen(self._url)
