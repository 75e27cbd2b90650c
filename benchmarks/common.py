"""What the benchmarks share: options of `pack`, the machine in words, tables, peak memory, cold files.

Importing this imports neither tallstore nor torch: what measures memory can begin small.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

MIB = 1 << 20


_OWN = {"engine", "workers", "storage_options", "overwrite"}
_SPELLED = {"lam": "lambda"}


def add_pack_options(parser: argparse.ArgumentParser) -> None:
    """Every option of `tallstore.pack`, called as on its command line. What is not given keeps its default."""
    group = parser.add_argument_group("options of pack (default: tallstore's own)")
    for option in _options():
        flag = "--" + _SPELLED.get(option.name, option.name).replace("_", "-")
        number = "float" in str(option.type)
        group.add_argument(flag, dest=f"pack_{option.name}", metavar="X", type=float if number else str)


def pack_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    given = {option.name: getattr(arguments, f"pack_{option.name}") for option in _options()}
    if (given["groups"] or "").isdecimal():
        given["groups"] = int(given["groups"])
    return {name: value for name, value in given.items() if value is not None}


def _options() -> list[Field[Any]]:
    import tallstore

    return [field for field in fields(tallstore.Options) if field.name not in _OWN and "bool" not in str(field.type)]


def describe_machine() -> str:
    """Processor, cores, memory, versions and the kernels in use, in a line: those of other sources are not."""
    import tallstore
    from tallstore.kernels.native.library import describe

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"torch {version('torch')}, numpy {version('numpy')}, tallstore {tallstore.__version__} "
        f"({describe()})"
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, aligned so that it reads well as plain text too. All columns but the first are numbers."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    lines = [
        " | ".join(
            cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "|".join("-" * (w + 2) if n == 0 else "-" * (w + 1) + ":" for n, w in enumerate(widths))
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep `folder` to this run: two at once would measure each other's models. Ends the script if another has it."""
    with (folder / ".in-use").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{folder}: another run is using this folder; name another one") from None
        yield


def progress_to_stderr(text: str, done: int, total: int) -> None:
    """A line that is written over, on a terminal only."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{text}: {done}/{total}", end=end, file=sys.stderr, flush=True)


def forget(paths: Iterable[Path]) -> None:
    """Ask the system to drop files from its cache, so that reading them next reads the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_of(pid: int | str = "self") -> dict[str, int]:
    """A process's memory now, in bytes: `VmRSS` in all, of which `RssAnon` its own and `RssFile` mapped files;
    `VmHWM` is the highest `VmRSS` so far."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if name in {"VmRSS", "RssAnon", "RssFile", "VmHWM"}:
            found[name] = int(rest.split()[0]) * 1024
    return found


def reset_peak() -> None:
    """Start `VmHWM` of this process anew. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def below(pid: int) -> list[int]:
    """A process's children, theirs, and so on. Linux only."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text(encoding="ascii").split()):
            found += [child, *below(child)]
    return found


class _Sampler:
    """Looks every few milliseconds, on a thread of its own, while this context lasts."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def look(self) -> None:
        """Take what there is now into account. What fails with the system's error is left out."""
        raise NotImplementedError  # each sampler looks at something else

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            with suppress(OSError):  # the process or the folder is gone
                self.look()


class DiskSampler(_Sampler):
    """The most room that the files below a folder take on their disk."""

    def __init__(self, folder: Path, seconds: float = 0.02) -> None:
        super().__init__(seconds)
        self.peak = 0
        self._folder = folder

    def look(self) -> None:
        room = 0
        for path in self._folder.rglob("*"):
            with suppress(OSError):  # it is gone
                room += 512 * path.stat().st_blocks
        self.peak = max(self.peak, room)


class MemorySampler(_Sampler):
    """Peaks of another process's memory by kind."""

    def __init__(self, pid: int, seconds: float = 0.005, *, family: bool = False) -> None:
        """`family`: sample the processes below it too, and what all of them have together: `all`, their own memory
        and the most that one of them has of mapped files, which they share."""
        super().__init__(seconds)
        self.peaks: dict[str, int] = {}
        self._family = family
        self._pid = pid

    def look(self) -> None:
        found = memory_of(self._pid)
        if self._family:
            every = [found, *map(memory_of, below(self._pid))]
            files = max(each.get("RssFile", 0) for each in every)
            found["all"] = files + sum(each.get("RssAnon", 0) for each in every)
        for name, value in found.items():
            self.peaks[name] = max(value, self.peaks.get(name, 0))
