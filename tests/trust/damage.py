"""Every byte of an archive flipped and every length cut to: what finds it, and what comes out where nothing does.

An archive is held in memory as its files; what is damaged is opened, verified and decoded in this process. Bytes that a
decode need not notice are worked out here from the files themselves: padding that must be zero, and fields of the zip
that no reader uses.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import raw

import tallstore
from tallstore.errors import ArchiveError, CheckpointError, DamagedError, TallstoreError, WrongBaseError
from tallstore.stores import Store
from tallstore.zoo import Zoo

Files = dict[str, bytes]
Content = dict[str, dict[str, bytes]]
"""Task → tensor or file → bytes."""


class Held(Store):
    """An archive's files in memory; for kernels that read files themselves, in files without a name."""

    open_ended = False

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.url, self._files = "held", files
        self._handles: dict[str, int] = {}

    def paths(self) -> list[str]:
        return list(self._files)

    def size(self, path: str) -> int:
        if path not in self._files:
            raise DamagedError(f"held: {path} is missing")
        return len(self._files[path])

    def read(self, path: str, start: int, length: int) -> memoryview:
        if start < 0 or length < 0 or start + length > self.size(path):
            raise DamagedError(f"held: {path} is cut off")
        return memoryview(self._files[path])[start : start + length]

    def handle(self, path: str, start: int, length: int) -> tuple[int, int] | None:
        self.read(path, start, length)
        if path not in self._handles:
            self._handles[path] = os.memfd_create("held")
            os.write(self._handles[path], self._files[path])
        return self._handles[path], start

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def content(zoo: Zoo) -> Content:
    """All that an archive gives: tensors, exact ones too, and files."""
    found: Content = {}
    for task, facts in zoo.manifest.tasks.items():
        found[task] = {name: raw(t).tobytes() for name, t in zoo.state_dict(task).items()}
        if "exact" in facts.parts:
            found[task] |= {f"exact {n}": raw(t).tobytes() for n, t in zoo.state_dict(task, exact=True).items()}
        for name, path in facts.files.items():
            found[task][f"file {name}"] = zoo._reader.file(path)
    return found


@dataclass
class Counts:
    """What was tried, and what became of it."""

    flipped: int = 0
    cut: int = 0
    mixed: int = 0
    found_by_verify: int = 0
    found_by_decode: int = 0
    irrelevant: int = 0
    """Not to be noticed by a decode (and, of the zip's own fields, by nobody), with the right weights coming out."""
    wrong: list[str] = field(default_factory=list)
    """Wrong weights, foreign errors, or damage that went unnoticed where it must not."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})


@dataclass
class Trial:
    """One archive, and what must come out of it."""

    files: Files
    base: Any = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        with Zoo(Held(self.files), base=self.base, threads=1) as zoo:
            zoo.verify()
            self.wanted = content(zoo)
            self._used = _used(zoo)

    def flip_all(self, bits: Iterable[int] = (), stride: int = 1) -> Counts:
        """Flip bits of every byte (one, in turn another, by default) of every file."""
        for path, data in self.files.items():
            padding = set(padding_of(data)) if path.endswith(".safetensors") else set()
            for at in range(0, len(data), stride):
                for bit in tuple(bits) or (at % 8,):
                    bad = bytearray(data)
                    bad[at] ^= 1 << bit
                    self.counts.flipped += 1
                    what = f"{path}: bit {bit} of byte {at}"
                    self._judge({**self.files, path: bytes(bad)}, what, at in padding or path not in self._used)
        return self.counts

    def cut_all(self, stride: int = 1) -> Counts:
        """Cut every file to every length, lengthen it, and take it away."""
        for path, data in self.files.items():
            unread = path not in self._used
            for length in range(0, len(data), stride):
                self.counts.cut += 1
                self._judge({**self.files, path: data[:length]}, f"{path} cut to {length}", unread)
            self.counts.cut += 2
            self._judge({**self.files, path: data + b"\0"}, f"{path} grown", unread)
            self._judge({n: d for n, d in self.files.items() if n != path}, f"{path} gone", unread)
        return self.counts

    def mix(self, other: Files) -> Counts:
        """Every choice of files from this archive and another one with the same paths: an old manifest with new parts."""
        paths = sorted(p for p in self.files if other.get(p) != self.files[p])
        for choice in range(1, (1 << len(paths)) - 1):
            taken = {p: other[p] for i, p in enumerate(paths) if choice >> i & 1}
            self.counts.mixed += 1
            self._judge({**self.files, **taken}, f"with the other's {', '.join(taken)}", unread=False, any_task=True)
        return self.counts

    def _noticed(self, files: Files, what: str, any_task: bool) -> tuple[bool, bool]:
        """Whether verifying finds something, and whether decoding does."""
        found = []
        try:
            with Zoo(Held(files), base=self.base, threads=1) as zoo:
                for step in (Zoo.verify, content):
                    try:
                        given = step(zoo)
                    except TallstoreError as error:
                        if step is Zoo.verify and not isinstance(error, ArchiveError):
                            raise
                        found.append(True)
                        continue
                    found.append(False)
                    if step is content and given != self.wanted and not any_task:
                        self.counts.wrong.append(f"{what}: wrong weights")
        except ArchiveError:
            return True, True  # it does not open
        except Exception as error:
            self.counts.wrong.append(f"{what}: {error!r}")
            return True, True
        return found[0], found[1]

    def _judge(self, files: Files, what: str, unread: bool, any_task: bool = False) -> None:
        """`unread`: a decode may pass. `any_task`: it may also pass where verifying finds something."""
        verified, decoded = self._noticed(files, what, any_task)
        self.counts.found_by_verify += verified
        self.counts.found_by_decode += decoded
        self.counts.irrelevant += not decoded
        if not verified or not (decoded or unread or any_task):
            self.counts.wrong.append(f"{what}: not noticed by {'a decode' if verified else 'verify'}")


def _used(zoo: Zoo) -> set[str]:
    """Paths that some task needs: a file for the Hub's eyes is not among them."""
    found = {"tall.json", *zoo.manifest.base.parts, *(p for group in zoo.manifest.groups for p in group.parts)}
    for task in zoo.manifest.tasks.values():
        found |= {*task.files.values(), *(p for paths in task.parts.values() for p in paths)}
    return found


def padding_of(part: bytes) -> Iterator[int]:
    """Places of a part's padding: zeros behind the coded bytes of each tensor."""
    begin = 8 + int.from_bytes(part[:8], "little")
    header = json.loads(part[8:begin])
    entries = json.loads(header["__metadata__"]["tallstore"])["entries"]
    for name, entry in entries.items():
        if "chunks" in entry:
            first, stop = header[name]["data_offsets"]
            yield from range(begin + first + sum(length for length, _ in entry["chunks"]), begin + stop)


# The single file.


def flip_file(
    data: bytes, wanted: Content, scratch: Path, base: Any = None, places: Iterable[int] | None = None
) -> Counts:
    """Flip a bit of every byte of a `.tall` file (or of those in `places`): found by verify, or in an unread field."""
    counts, unused = Counts(), set(unread_fields(data))
    path = scratch / "bad.tall"
    padding = _padding_in(data)
    for at in range(len(data)) if places is None else places:
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        counts.flipped += 1
        found = []
        for step in (Zoo.verify, content):
            try:
                with tallstore.open(path, base=base, threads=1) as zoo:
                    given = step(zoo)
                if step is content and given != wanted:
                    counts.wrong.append(f"byte {at}: wrong weights")
                found.append(False)
            except ArchiveError:
                found.append(True)
            except Exception as error:
                counts.wrong.append(f"byte {at}: {error!r}")
                found.append(True)
        counts.found_by_verify += found[0]
        counts.found_by_decode += found[1]
        counts.irrelevant += not found[1]
        if not found[0] and at not in unused:
            counts.wrong.append(f"byte {at}: not noticed by verify")
        if found[0] and not found[1] and at not in padding | unused:
            counts.wrong.append(f"byte {at}: not noticed by a decode")
    return counts


def cut_file(data: bytes, scratch: Path, stride: int = 1) -> Counts:
    """Cut a `.tall` file to every length: it does not open."""
    counts, path = Counts(), scratch / "cut.tall"
    for length in range(0, len(data), stride):
        path.write_bytes(data[:length])
        counts.cut += 1
        try:
            tallstore.open(path).close()
            counts.wrong.append(f"cut to {length}: opens")
        except ArchiveError:
            counts.found_by_verify += 1
            counts.found_by_decode += 1
        except Exception as error:
            counts.wrong.append(f"cut to {length}: {error!r}")
    return counts


def _entries(data: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    """Of each file in a zip: name, where its record in the directory begins, its header, its data, its size."""
    at, count = struct.unpack_from("<I", data, len(data) - 6)[0], struct.unpack_from("<H", data, len(data) - 12)[0]
    for _ in range(count):
        size, name_bytes, extra, comment = struct.unpack_from("<I3H", data, at + 24)
        header = struct.unpack_from("<I", data, at + 42)[0]
        name = data[at + 46 : at + 46 + name_bytes].decode()
        local = struct.unpack_from("<2H", data, header + 26)
        yield name, at, header, header + 30 + sum(local), size
        at += 46 + name_bytes + extra + comment


def unread_fields(data: bytes) -> Iterator[int]:
    """Places of a zip file that say nothing of what is stored: versions, times, attributes, what aligns the data."""
    for name, record, header, begin, _ in _entries(data):
        yield from range(header + 4, header + 6)  # version needed
        yield from range(header + 10, header + 14)  # time and date
        yield from range(header + 30 + len(name.encode()), begin)  # the extra field that aligns
        yield from range(record + 4, record + 8)  # versions, and the system whose attributes these are
        yield from range(record + 12, record + 16)  # time and date
        yield from range(record + 34, record + 42)  # the disk, where there is but one, and attributes
        extra = record + 46 + len(name.encode())
        yield from range(extra, extra + struct.unpack_from("<H", data, record + 30)[0])
    yield from range(record + 28, record + 34)  # the last record is read up to where the directory ends


def own_places(data: bytes) -> Iterator[int]:
    """Places of a zip file that are the zip's own: no byte of a file that it holds."""
    held = {at for _, _, _, begin, size in _entries(data) for at in range(begin, begin + size)}
    yield from (at for at in range(len(data)) if at not in held)


def _padding_in(data: bytes) -> set[int]:
    found = set()
    for name, _, _, begin, size in _entries(data):
        if name.endswith(".safetensors"):
            found |= {begin + at for at in padding_of(data[begin : begin + size])}
    return found


# A base from outside.


def flip_base(archive: Path, base: Path, wanted: Content, scratch: Path, stride: int = 1) -> Counts:
    """Flip a bit of every byte of the base that a referenced one is given as."""
    counts, path, data = Counts(), scratch / "base.safetensors", base.read_bytes()
    for at in range(0, len(data), stride):
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        counts.flipped += 1
        try:
            with tallstore.open(archive, base=path, threads=1) as zoo:
                given = content(zoo)
            counts.irrelevant += 1
            if given != wanted:
                counts.wrong.append(f"base, byte {at}: wrong weights")
        except (WrongBaseError, CheckpointError, ArchiveError):
            counts.found_by_decode += 1
            counts.found_by_verify += 1
        except Exception as error:
            counts.wrong.append(f"base, byte {at}: {error!r}")
    return counts
