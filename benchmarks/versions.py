"""Two versions of tallstore pack the same zoo by turns: processor time, wall time, memory, and whether bytes differ.

BASE and TASK… are checkpoints of one family. `--old` and `--new` are checkouts (their kernels built where they have
any); each runs as a fresh process with its own folder of compiled Python. The first round of either is thrown away: it
fills caches. The ratio is new to old, pair by pair. At the defaults two versions may do different work: give them the
options that make them do the same (`--bits` for 0.1.0 and later), which equal bytes then show.

example:
  python benchmarks/versions.py ~/zoo/base ~/zoo/trec ~/zoo/mr --old ~/tallstore-0.1.0 --new . --rounds 5 -- --bits 0.6
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


def pack(tree: Path, place: Path, words: list[str]) -> Run:
    """Pack with the tallstore of a checkout."""
    out = place / "zoo.tall"
    out.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": str(place / f"compiled-{tree.name}")}
    command = (sys.executable, "-m", "tallstore", "pack", *words, "-q", "-o", str(out))
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=place, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
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


def main() -> None:
    own, _, options = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="BASE TASK…")
    parser.add_argument("--old", type=Path, required=True, help="a checkout")
    parser.add_argument("--new", type=Path, required=True, help="another")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(own.split())
    base, *tasks = (path.resolve() for path in arguments.checkpoints)
    words = [str(base), *(f"{task.name}={task}" for task in tasks), *options.split()]
    trees = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    runs: dict[str, list[Run]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(arguments.rounds + 1):
            for name, tree in trees.items():
                runs[name].append(pack(tree, Path(place), words))
    runs = {name: each[1:] for name, each in runs.items()}
    rows = [
        [
            name,
            f"{median(run.processor for run in each):.2f}",
            f"{median(run.wall for run in each):.2f}",
            f"{median(run.peak for run in each) / 2**20:.0f}",
            f"{each[0].size:,}",
        ]
        for name, each in runs.items()
    ]
    print(describe_machine())
    print(f"packing {len(tasks)} tasks, {options or 'defaults'}, {arguments.rounds} rounds by turns")
    print(table(["version", "processor s", "wall s", "peak MiB", "archive bytes"], rows))
    ratios = sorted(new.processor / old.processor for old, new in zip(runs["old"], runs["new"], strict=True))
    print(f"new to old, processor time: median {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"archives equal: {'yes' if runs['old'][-1].sha256 == runs['new'][-1].sha256 else 'no'}")


if __name__ == "__main__":
    main()
