"""Two versions of tallstore pack the same zoo by turns: processor time, wall time, memory, and whether bytes differ.

BASE and TASK… are checkpoints of one family. `--old` and `--new` are checkouts (their kernels built where they have
any); each runs as a fresh process with its own folder of compiled Python. The first round of either is thrown away: it
fills caches. The ratio is new to old, pair by pair. At the defaults two versions may do different work: give them the
options that make them do the same (`--bits` for 0.1.0 and later), which equal bytes then show. Several sets of options,
each behind a `--`, are measured one after the other; what the older version does not know, of the newer alone.

examples:
  python benchmarks/versions.py ~/zoo/base ~/zoo/trec ~/zoo/mr --old ~/tallstore-0.1.0 --new . --rounds 5 -- --bits 0.6
  python benchmarks/versions.py ~/bf16/base ~/bf16/trec --old ~/tallstore-0.1.0 --new . -- -- --quality small
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import describe_machine, table


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command."""

    processor: float
    """Seconds of user and system time, of its workers too."""
    wall: float
    peak: int
    """Bytes."""
    size: int
    """Bytes of the archive."""
    sha256: str
    """Of the archive. Not the archive: the largest memory of a process begins with that of the one that starts it."""


def pack(tree: Path, place: Path, words: list[str]) -> Run | None:
    """Pack with the tallstore of a checkout; None if it refuses."""
    out = place / "zoo.tall"
    out.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": str(place / f"compiled-{tree.name}")}
    command = (sys.executable, "-m", "tallstore", "pack", *words, "-q", "-o", str(out))
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=place, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode in _REFUSED:
        return None
    if process.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)}: exit code {process.returncode}")
    wall = time.perf_counter() - began
    scale = 1 if sys.platform == "darwin" else 1024
    with out.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = out.stat().st_size
    return Run(processor=_seconds(used), wall=wall, peak=used.ru_maxrss * scale, size=size, sha256=sha256)


def _seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


_REFUSED = (1, 2)
"""Exit codes of what a version does not know, or cannot do: it says why."""


def main() -> None:
    own, *sets = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="BASE TASK…")
    parser.add_argument("--old", type=Path, required=True, help="a checkout")
    parser.add_argument("--new", type=Path, required=True, help="another")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(own)
    paths = [path.resolve() for path in arguments.checkpoints]
    trees = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    print(describe_machine())
    for options in sets or [[]]:
        compare(paths, options, trees, arguments.rounds)


def _split(words: list[str]) -> list[list[str]]:
    """Words between one `--` and the next."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def compare(paths: list[Path], options: list[str], trees: dict[str, Path], rounds: int) -> None:
    """Measure one set of options, and print a table.

    Args:
        paths: of the base and of the tasks.
        options: of `pack`, as on its command line.
        trees: the checkouts, "old" and "new".
        rounds: that count.
    """
    base, *tasks = paths
    words = [str(base), *(f"{task.name}={task}" for task in tasks), *options]
    runs: dict[str, list[Run]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(rounds + 1):
            for name, tree in trees.items():
                run = pack(tree, Path(place), words)
                if turn and run is not None:
                    runs[name].append(run)
    read = sum(file.stat().st_size for path in paths for file in _weights(path))
    rows = [
        [
            name,
            f"{median(run.processor for run in each):.2f}",
            f"{median(run.processor for run in each) / read * 1e9:.2f}",
            f"{median(run.wall for run in each):.2f}",
            f"{median(run.peak for run in each) / 2**20:.0f}",
            f"{each[0].size:,}",
        ]
        for name, each in runs.items()
        if each
    ]
    given = " ".join(options) or "defaults"
    print(f"\npacking {len(tasks)} tasks ({read / 1e9:.2f} GB), {given}, {rounds} rounds by turns\n")
    print(table(["version", "processor s", "a GB", "wall s", "peak MiB", "archive bytes"], rows))
    if all(runs.values()):
        ratios = sorted(new.processor / old.processor for old, new in zip(runs["old"], runs["new"], strict=True))
        same = "yes" if runs["old"][-1].sha256 == runs["new"][-1].sha256 else "no"
        print(f"\nnew to old, processor time: median {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"archives equal: {same}")


def _weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else [*path.rglob("*.safetensors")]


if __name__ == "__main__":
    main()
