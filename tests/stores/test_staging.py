"""Full disks and missing rights: one clear error, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Forks
from support import State, bytes_of, leftovers, tiny_base, tiny_zoo, write_folder

import tallstore
from tallstore.errors import OutputError


@pytest.fixture
def zoo() -> tuple[State, dict[str, State]]:
    return tiny_zoo(2)


@pytest.fixture
def other() -> tuple[State, dict[str, State]]:
    base, tasks = tiny_zoo(3)
    return base, {"new": tasks["c"]}


# Full disks.


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 96 KiB."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system takes root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, free: int) -> Path:
    """Leave only so many bytes free."""
    left = os.statvfs(folder)
    (folder / "fill").write_bytes(bytes(left.f_bavail * left.f_bsize - free))
    return folder / "fill"


@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
def test_a_full_disk(
    name: str, small_disk: Path, zoo: tuple[State, dict[str, State]], other: tuple[State, dict[str, State]]
) -> None:
    """At every fill there is one clear error, what was there stays, and nothing else is left."""
    tallstore.pack(*other, small_disk / name)
    before = bytes_of(small_disk)
    failures = 0
    for free in range(0, 80 * 1024, 8 * 1024):
        filling = fill(small_disk, free)
        held = bytes_of(small_disk)
        try:
            tallstore.pack(*zoo, small_disk / name, overwrite=True)
        except OutputError as error:
            failures += 1
            assert (
                str(error)
                == f"{small_disk / name}: cannot be written: the disk is full: free space or choose another place"
            )
            assert bytes_of(small_disk) == held
            assert [p.name for p in small_disk.iterdir() if "partial" in p.name] == []
        else:
            tallstore.pack(*other, small_disk / name, overwrite=True)
            break
        finally:
            filling.unlink()
    assert failures >= 2
    with tallstore.open(small_disk / name) as opened:
        opened.verify()
    assert bytes_of(small_disk) == before


def test_a_full_disk_while_exporting(small_disk: Path, tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        for free in (0, 4096):
            filling = fill(small_disk, free)
            with pytest.raises(OutputError, match="out: cannot be written: the disk is full"):
                opened.export("a", small_disk / "out")
            assert leftovers(small_disk) == ["fill"]
            filling.unlink()
        opened.export("a", small_disk / "out")


LIMITED = """
import resource, signal
import tallstore, support
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (args[1], args[1]))
tallstore.pack(*support.tiny_zoo(2), args[0], overwrite=True)
"""


@pytest.mark.parametrize("limit", [0, 700, 3000])
def test_a_file_that_may_not_grow(
    limit: int, target: Path, forks: Forks, other: tuple[State, dict[str, State]]
) -> None:
    tallstore.pack(*other, target)
    before = bytes_of(target.parent)
    code, text = forks.run(LIMITED, str(target), limit)
    assert code in {0, 1}, text  # with a limit of 0 the job's own output cannot grow either
    assert bytes_of(target.parent) == before
    assert not list(target.parent.glob(".*"))
    if limit:
        assert f"OutputError: {target}: cannot be written: " in text


# Missing rights.

AS_NOBODY = """
import os, encodings.cp437
import tallstore, support
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
base, tasks = support.tiny_zoo(1)
base, tasks["a"] = args[2] or base, args[3] or tasks["a"]
if args[1] == "pack":
    tallstore.pack(base, tasks, args[0], overwrite=True)
elif args[1] == "open":
    with tallstore.open(args[0]) as zoo:
        zoo.state_dict("a")
else:
    with tallstore.open(args[1]) as zoo:
        zoo.export("a", args[0], overwrite=True)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody reaches."""
    if os.geteuid():
        pytest.skip("dropping rights takes root")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody(
    forks: Forks, target: Path, what: str = "pack", base: Path | None = None, task: Path | None = None
) -> str:
    code, text = forks.run(AS_NOBODY, str(target), what, base and str(base), task and str(task))
    assert code == 1, text
    return text.removeprefix("started\n").strip()


def test_no_right_to_write(public: Path, forks: Forks, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, public / "there.tall")
    tallstore.pack(*zoo, public / "there")
    before = leftovers(public)
    for name in ("zoo.tall", "zoo", "x/zoo.tall", "there.tall", "there"):
        assert (
            as_nobody(forks, public / name)
            == f"OutputError: {public / name}: cannot be written: no permission to write there"
        )
    assert as_nobody(forks, public / "out", str(public / "there.tall")).startswith(f"OutputError: {public / 'out'}: ")
    assert leftovers(public) == before


def test_what_lies_beside_the_target_is_not_touched(
    public: Path, forks: Forks, zoo: tuple[State, dict[str, State]]
) -> None:
    """Not even opened: it may be unreadable, or a disk full of data that nobody asked to flush."""
    (public / "shared").mkdir()
    (public / "shared").chmod(0o777)
    (public / "shared" / "secret").write_text("x")
    (public / "shared" / "secret").chmod(0o600)
    (public / "shared" / "closed").mkdir(mode=0o700)
    code, text = forks.run(AS_NOBODY, str(public / "shared" / "zoo.tall"), "pack", None, None)
    assert code == 0, text
    assert leftovers(public / "shared") == ["closed", "secret", "zoo.tall"]


def test_no_right_to_read(public: Path, forks: Forks, zoo: tuple[State, dict[str, State]]) -> None:
    base, tasks = zoo
    (public / "free").mkdir()
    (public / "free").chmod(0o777)
    file = write_folder(public / "file", base)
    (file / "model.safetensors").chmod(0o600)
    config = write_folder(public / "config", tasks["a"])
    (config / "model.safetensors").chmod(0o644)
    (config / "config.json").chmod(0o600)
    pickled = public / "x.pt"
    torch.save(base, pickled)
    pickled.chmod(0o600)
    closed = write_folder(public / "closed", base)
    for role in ("base", "task"):
        for source in (file, pickled):
            text = as_nobody(forks, public / "free" / "zoo.tall", **{role: source})
            assert text.startswith(f"CheckpointError: {source}"), text
            assert "ermission denied" in text
        closed.chmod(0o000)
        text = as_nobody(forks, public / "free" / "zoo.tall", **{role: closed})
        assert text.startswith(f"CheckpointError: {closed}"), text
        closed.chmod(0o711)
        text = as_nobody(forks, public / "free" / "zoo.tall", **{role: closed / "sub" / "x.safetensors"})
        assert "no such folder or file" in text
    text = as_nobody(forks, public / "free" / "zoo.tall", task=config)
    assert text == f"CheckpointError: {config / 'config.json'}: cannot be read (Permission denied)"
    assert leftovers(public / "free") == []


def test_no_right_to_open(public: Path, forks: Forks, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, public / "zoo.tall")
    tallstore.pack(*zoo, public / "zoo")
    (public / "zoo.tall").chmod(0o600)
    assert as_nobody(forks, public / "zoo.tall", "open").startswith(
        f"NotAnArchiveError: {public / 'zoo.tall'}: cannot be read"
    )
    (public / "zoo" / "tasks" / "a" / "mask.safetensors").chmod(0o600)
    text = as_nobody(forks, public / "zoo", "open")
    assert text.startswith(
        f"DamagedError: {public / 'zoo'}: tasks/a/mask.safetensors cannot be read (Permission denied)"
    )
    (public / "zoo" / "tall.json").chmod(0o600)
    assert "Permission denied" in as_nobody(forks, public / "zoo", "open")
    (public / "zoo").chmod(0o700)
    text = as_nobody(forks, public / "zoo", "open")
    assert text.startswith(f"NotAnArchiveError: {public / 'zoo'}: ")


READING_AS_NOBODY = """
import os
from contextlib import suppress
from tallstore.cli import main
os.chdir(args[0])
for words in ("pack base mr=base -o warm.tall", "info warm.tall", "info nothing"):
    with suppress(SystemExit):
        main(words.split())  # all is imported, while it may be
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("as nobody:", flush=True)
main(args[1].split())
"""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pack base locked -o zoo.tall", "locked"),
        ("pack base locked/mr -o zoo.tall", "locked/mr"),
        ("pack base mr=locked/mr -o zoo.tall", "locked/mr"),
        ("pack locked mr=base -o zoo.tall", "locked"),
        ("pack zoo.yaml", "locked/mr"),
        ("info locked/zoo.tall", "locked/zoo.tall"),
    ],
)
def test_a_folder_that_may_not_be_read_is_named(words: str, named: str, public: Path, forks: Forks) -> None:
    write_folder(public / "base", tiny_base())
    write_folder(public / "locked" / "mr", tiny_base())
    (public / "zoo.yaml").write_text("base: base\ntasks: {mr: locked/mr}\noutput: new.tall\n")
    (public / "locked").chmod(0)
    public.chmod(0o777)
    (public / "base" / "model.safetensors").chmod(0o644)
    _, said = forks.run(READING_AS_NOBODY, str(public), words)
    told = said.split("as nobody:\n")[1].replace("\n", " ")
    assert told.startswith(f"tallstore: error: {named}: cannot be read (Permission denied)"), told
