"""Hostile archives in a bounded process, and hostile things that no archive file can hold: pipes, devices, links, loops."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Forks
from support import bytes_of, tiny_zoo, write_folder

import tallstore
from spec.vectors import INVALID, VECTORS
from tallstore.errors import ArchiveError, TallstoreError

from .attacks import MEMORY, prison


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Any]:
    with prison() as ask:
        yield ask


@pytest.mark.parametrize("name", INVALID)
def test_it_is_refused_within_memory_and_time(name: str, outcomes: Any) -> None:
    for outcome in outcomes(name):
        assert outcome.fits, outcome
        assert outcome.memory < MEMORY, outcome


def test_vectors_are_small() -> None:
    """A few kilobytes each: what they claim is not what they hold."""
    sizes = {p: p.stat().st_size for p in (VECTORS / "invalid").rglob("*") if p.is_file()}
    assert max(sizes.values()) < 1 << 17, max(sizes, key=lambda p: sizes[p])


# What git cannot hold. A process of its own, which an alarm ends if it waits for what never comes.

PARTS = ("tall.json", "base/base.safetensors", "tasks/a/mask.safetensors", "tasks/a/files/config.json")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            listening.bind(path.name)
        finally:
            os.chdir(before)


STRANGE: dict[str, Callable[[Path], object]] = {
    "a pipe": pipe,
    "a socket": bound,
    "a folder": lambda p: p.mkdir(),
    "a link to a device that never ends": lambda p: p.symlink_to("/dev/zero"),
    "a link to an empty device": lambda p: p.symlink_to("/dev/null"),
    "a link to a terminal": lambda p: p.symlink_to("/dev/tty"),
    "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to a folder above": lambda p: p.symlink_to(".."),
    "a link to what the system says of itself": lambda p: p.symlink_to("/proc/self/maps"),
    "a link to this process's memory": lambda p: p.symlink_to("/proc/self/mem"),
    "a link to a file of the user's": lambda p: (
        p.with_name("secret").write_text("secret"),
        p.symlink_to(p.with_name("secret")),
    ),
    "a hard link to another file": lambda p: (
        p.with_name("other").write_text("other"),
        os.link(p.with_name("other"), p),
    ),
    "a file of 2^60 bytes with nothing in it": lambda p: sparse(p, 1 << 60),
    "a file of 2^40 bytes with nothing in it": lambda p: sparse(p, 1 << 40),
}

USE = """
import signal, sys
signal.alarm(60)
import tallstore
from tallstore.errors import TallstoreError
def used(path, mapped, step):
    try:
        with tallstore.open(path, mapped=mapped, threads=1) as zoo:
            step(zoo)
    except TallstoreError as error:
        assert chr(10) not in str(error)
        assert "secret" not in str(error).replace(path, "")
        return type(error).__name__
    return "fine"
import tempfile, pathlib
for path in args:
    with tempfile.TemporaryDirectory() as out:
        for mapped in (True, False):
            print(used(path, mapped, lambda zoo: zoo.verify()))
        print(used(path, False, lambda zoo: zoo.export("a", pathlib.Path(out) / "a")))
        assert not (pathlib.Path(out) / "a").exists()
import resource
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 21
"""


PLAIN = {"TALLSTORE_KERNELS": "reference"}


def sparse(path: Path, size: int) -> None:
    """As large as the file system lets it be."""
    path.touch()
    while True:
        try:
            return os.truncate(path, size)
        except OSError:
            size //= 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("strange")
    base, tasks = tiny_zoo(2)
    folders = {name: write_folder(home / name, state, task=name) for name, state in tasks.items()}
    tallstore.pack(base, folders, home / "zoo")
    return home / "zoo"


@pytest.mark.parametrize("what", STRANGE)
def test_strange_files_in_a_folder(what: str, archive: Path, tmp_path: Path, forks: Forks) -> None:
    """In the place of the manifest, a part or a small file: an error of ours, and no waiting."""
    for number, part in enumerate(PARTS):
        folder = tmp_path / str(number)
        shutil.copytree(archive, folder)
        (folder / part).unlink()
        STRANGE[what](folder / part)
    code, text = forks.run(USE, *(str(tmp_path / str(number)) for number in range(len(PARTS))), env=PLAIN)
    assert code == 0, text
    words = text.split()[1:]
    assert len(words) == 3 * len(PARTS)
    assert set(words) <= {"NotAnArchiveError", "DamagedError", "FormatError"}, text


@pytest.mark.parametrize("what", ["a pipe", "a socket", "a link to itself", "a file of 2^60 bytes with nothing in it"])
def test_a_strange_single_file(what: str, tmp_path: Path, forks: Forks) -> None:
    STRANGE[what](tmp_path / "zoo.tall")
    code, text = forks.run(USE, str(tmp_path / "zoo.tall"), env=PLAIN)
    assert (code, text.split()[1:]) == (0, ["NotAnArchiveError"] * 3), text


def test_links_within_the_users_own_folder_are_written_through_by_nobody(archive: Path, tmp_path: Path) -> None:
    """An export that replaces a model replaces the link, not what it points at."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    with tallstore.open(archive) as zoo:
        zoo.export("a", out)
        precious.write_text("mine")
        for name in ("model.safetensors", "config.json"):
            (out / name).unlink()
            (out / name).symlink_to(precious)
        zoo.export("a", out, overwrite=True)
    assert precious.read_text() == "mine"
    assert not [p for p in out.rglob("*") if p.is_symlink()]


# Code that an archive would like to run.


def test_nothing_that_an_archive_says_is_imported_or_run(archive: Path, tmp_path: Path, forks: Forks) -> None:
    """Its recorded evaluator, options, recipes and sources are words: no module of that name is looked for."""
    from test_bad_input import forge_manifest

    (tmp_path / "evil.py").write_text("open('/dev/full') and print('ran')\nraise SystemExit('ran')\n")
    shutil.copytree(archive, tmp_path / "zoo")
    word = "evil:run"

    def spoil(facts: dict[str, Any]) -> None:
        facts["options"] = {"evaluate": word, "recipe": word, "device": word, "vector": "evil"}
        facts["writer"] = word
        for group in facts["groups"]:
            group["recipe"] = {"id": "evil", "evaluate": word, "module": "evil"}
        for task in facts["tasks"].values():
            task["measured"] = {"scores": {"evaluate": word}, "evaluate": word}
            task["source"] = {"repo": "evil", "path": "evil.py"}

    forge_manifest(tmp_path / "zoo", spoil)
    code = """
import sys
sys.path.insert(0, args[1])
import pathlib, tallstore
with tallstore.open(args[0]) as zoo:
    zoo.verify(), zoo.info(), zoo.state_dict("a"), zoo.mask_statistics(), zoo.merged("arithmetic")
    zoo.export("a", pathlib.Path(args[1]) / "out")
    zoo.write_subset(["a"], pathlib.Path(args[1]) / "one.tall")
from tallstore.cli import main
for words in (["info", args[0]], ["verify", args[0]]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code
assert "evil" not in sys.modules
"""
    done, text = forks.run(code, str(tmp_path / "zoo"), str(tmp_path), env=PLAIN)
    assert done == 0, text
    assert "ran" not in text.split()


def test_a_file_that_is_a_pickle_stays_bytes(archive: Path, tmp_path: Path) -> None:
    """An archive's small files are written to their places and never loaded; none may pass for weights."""
    with tallstore.open(archive) as zoo:
        out = zoo.export("a", tmp_path / "out")
    assert {p.suffix for p in out.rglob("*") if p.is_file()} <= {".safetensors", ".json", ".txt"}
    with pytest.raises(ArchiveError):
        tallstore.open(VECTORS / "invalid" / "file-as-pickle" / "archive")


def test_an_archive_is_no_checkpoint(archive: Path, tmp_path: Path) -> None:
    """A part given as a task's weights, or a base, is refused: it would load as noise."""
    base, tasks = tiny_zoo(1)
    for part in ("base/base.safetensors", "tasks/a/mask.safetensors"):
        with pytest.raises(TallstoreError):
            tallstore.pack(base, {"x": archive / part}, tmp_path / "out.tall")
    assert "out.tall" not in bytes_of(tmp_path)
    assert tasks
