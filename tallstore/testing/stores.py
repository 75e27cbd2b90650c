"""`StoreContract`: what the decoder relies on in every store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from tallstore.concurrency import ordered
from tallstore.errors import DamagedError
from tallstore.format.manifest import MANIFEST
from tallstore.stores import Range, Store
from tallstore.testing.raised import refused

__all__ = ["StoreContract"]

FILES: Mapping[str, bytes] = {
    MANIFEST: b'{"not": "read by stores"}',
    "base/base.safetensors": bytes(range(256)) * 37,
    "tasks/ä b/mask.safetensors": b"\0\1\2" * 1000,
    "common/empty.txt": b"",
}
"""Files of an archive, as far as a store can tell: it moves bytes and never interprets them."""
RANGES = ((0, 0), (0, 1), (0, 100), (255, 2), (1000, 1999), (2999, 1), (3000, 0))
"""Start and length, within files of at least 3,000 bytes."""


class StoreContract(ABC):
    """Inherit as `class TestX(StoreContract)`."""

    @abstractmethod
    def opened(self, files: Mapping[str, bytes], folder: Path) -> AbstractContextManager[Store]:
        """A store of exactly these files, open. `folder` is empty and the test's own."""

    def test_it_lists_every_file_and_its_size(self, tmp_path: Path) -> None:
        """In any order, each once."""
        with self.opened(FILES, tmp_path) as store:
            assert sorted(store.paths()) == sorted(FILES)
            assert {path: store.size(path) for path in FILES} == {path: len(data) for path, data in FILES.items()}
            assert isinstance(store.url, str)
            assert store.url

    def test_it_gives_exactly_the_bytes_that_are_asked_for(self, tmp_path: Path) -> None:
        """By `read` and by `read_into`, from the first byte to the last."""
        with self.opened(FILES, tmp_path) as store:
            for path, data in FILES.items():
                for start, length in (*RANGES, (0, len(data))):
                    if start + length <= len(data):
                        given = store.read(path, start, length)
                        assert isinstance(given, memoryview)
                        assert bytes(given) == data[start : start + length], (path, start, length)
                        out = bytearray(length)
                        store.read_into(path, start, memoryview(out))
                        assert out == data[start : start + length], (path, start, length)

    def test_what_ends_before_is_damage(self, tmp_path: Path) -> None:
        """Nothing short is ever given back."""
        with self.opened(FILES, tmp_path) as store:
            for path, data in FILES.items():
                for start, length in ((0, len(data) + 1), (len(data), 1), (len(data) + 7, 1)):
                    error = refused(DamagedError, lambda p=path, s=start, n=length: store.read(p, s, n))  # type: ignore[misc]
                    assert path in str(error)
                    room = memoryview(bytearray(length))
                    refused(DamagedError, lambda p=path, s=start, r=room: store.read_into(p, s, r))  # type: ignore[misc]

    def test_what_is_not_there_is_damage_that_names_it(self, tmp_path: Path) -> None:
        """The manifest lists it, so the archive lacks it."""
        with self.opened(FILES, tmp_path) as store:
            for name in ("tasks/none/mask.safetensors", "base"):
                assert name in str(refused(DamagedError, lambda n=name: store.size(n)))  # type: ignore[misc]
                assert name in str(refused(DamagedError, lambda n=name: store.read(n, 0, 1)))  # type: ignore[misc]

    def test_threads_read_side_by_side(self, tmp_path: Path) -> None:
        """Each gets its own bytes."""
        with self.opened(FILES, tmp_path) as store:
            jobs = [(path, at) for path, data in FILES.items() for at in range(0, len(data), 97)] * 2
            given = ordered((partial(store.read, path, at, 1) for path, at in jobs), 8, ahead=99)
            assert [bytes(each) for each in given] == [FILES[path][at : at + 1] for path, at in jobs]

    def test_saying_what_comes_changes_nothing(self, tmp_path: Path) -> None:
        """What was announced is read as ever; so is the rest."""
        with self.opened(FILES, tmp_path) as store:
            store.prefetch([Range("base/base.safetensors", 10, 500), Range("base/base.safetensors", 400, 5000)])
            store.prefetch([])
            for start, length in RANGES:
                data = FILES["base/base.safetensors"]
                assert bytes(store.read("base/base.safetensors", start, length)) == data[start : start + length]
            assert bytes(store.read(MANIFEST, 0, 5)) == FILES[MANIFEST][:5]

    def test_handles_and_places_are_the_file(self, tmp_path: Path) -> None:
        """Where a store has them: native readers and links take them for the store's own bytes."""
        with self.opened(FILES, tmp_path) as store:
            for path, data in FILES.items():
                handle = store.handle(path, 0, len(data))
                if handle is not None:
                    assert os.pread(handle[0], len(data), handle[1]) == data
                place = store.local(path)
                assert place is None or place.read_bytes() == data
                assert hash(store.state(path)) == hash(store.state(path))

    def test_a_file_is_right_after_it_was_fetched_again(self, tmp_path: Path) -> None:
        """Whatever `refetch` says of it."""
        with self.opened(FILES, tmp_path) as store:
            assert store.refetch("base/base.safetensors") in {True, False}
            assert bytes(store.read("base/base.safetensors", 5, 50)) == FILES["base/base.safetensors"][5:55]

    def test_memory_that_was_given_outlives_the_store(self, tmp_path: Path) -> None:
        """Tensors are views of it. And a store may be closed twice."""
        with self.opened(FILES, tmp_path) as store:
            given = store.read("base/base.safetensors", 3, 3000)
            store.close()
            assert bytes(given) == FILES["base/base.safetensors"][3:3003]
