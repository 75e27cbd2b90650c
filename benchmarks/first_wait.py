"""What a user waits for: whole commands in fresh processes, nothing warmed up, beside doing the plain thing.

BASE and TASK… are checkpoints of one family (folders that transformers opens). Every row is a new process, by turns,
and the median of the rounds; files are in the system's cache. Ratios are to the plain thing of the same round: loading
a checkpoint with safetensors and saving it again for `extract`, transformers' own loading for `from_pretrained`,
importing torch for the rest. `--python` names the interpreter of another environment (another version, another way of
installing), whose rows stand beside this one's.

example:
  python benchmarks/first_wait.py ~/zoo/base ~/zoo/trec ~/zoo/mr --rounds 7
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import describe_machine, table

LOAD_AND_SAVE = "from safetensors.torch import load_file, save_file; save_file(load_file({weights!r}), {out!r})"
MODEL = "from transformers import AutoModel; AutoModel.from_pretrained({folder!r})"
OUR_MODEL = "import tallstore; tallstore.from_pretrained({archive!r}, task={task!r})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A command, and the one it is measured against."""

    name: str
    words: tuple[str, ...]
    against: str


def rows_of(python: str, base: Path, tasks: Mapping[str, Path], place: Path) -> list[Row]:
    """Every command; outputs go to `place`."""
    archive, name, folder = str(place / "zoo.tall"), *next(iter(tasks.items()))
    given = [f"{task}={path}" for task, path in tasks.items()]
    ours = (python, "-m", "tallstore")
    plain = LOAD_AND_SAVE.format(weights=str(folder / "model.safetensors"), out=str(place / "plain.safetensors"))
    found = [
        ("import torch", (python, "-c", "import torch"), "import torch"),
        ("load and save with safetensors", (python, "-c", plain), "import torch"),
        ("transformers' from_pretrained", (python, "-c", MODEL.format(folder=str(folder))), "import torch"),
        ("tallstore --version", (*ours, "--version"), "import torch"),
        ("tallstore info", (*ours, "info", archive), "import torch"),
        ("tallstore verify", (*ours, "verify", archive, "-q"), "import torch"),
        (
            "tallstore extract",
            (*ours, "extract", archive, name, "-o", str(place / "out"), "--overwrite", "-q"),
            "load and save with safetensors",
        ),
        (
            "tallstore.from_pretrained",
            (python, "-c", OUR_MODEL.format(archive=archive, task=name)),
            "transformers' from_pretrained",
        ),
        (
            f"tallstore pack, {len(tasks)} tasks",
            (*ours, "pack", str(base), *given, "-o", str(place / "again.tall"), "--overwrite", "-q"),
            "load and save with safetensors",
        ),
    ]
    return [Row(name=title, words=tuple(words), against=against) for title, words, against in found]


def seconds(words: tuple[str, ...]) -> float:
    """Of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(
    pythons: list[str], base: Path, tasks: Mapping[str, Path], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by interpreter and command."""
    found: dict[str, dict[str, list[float]]] = {python: {} for python in pythons}
    places = {python: Path(tempfile.mkdtemp(prefix="first-wait-")) for python in pythons}
    try:
        for python, place in places.items():
            given = [f"{task}={path}" for task, path in tasks.items()]
            words = ("-m", "tallstore", "pack", str(base), *given, "-o", str(place / "zoo.tall"), "-q")
            found[python]["first pack after the installation"] = [seconds((python, *words))]
        for _ in range(rounds):
            for python, place in places.items():
                for row in rows_of(python, base, tasks, place):
                    found[python].setdefault(row.name, []).append(seconds(row.words))
    finally:
        for place in places.values():
            shutil.rmtree(place)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("task", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", action="append", default=[], help="another interpreter; may be given several times")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    pythons = [sys.executable, *given.python]
    tasks = {path.name: path for path in given.task}
    found = measure(pythons, given.base, tasks, given.rounds)
    if given.json:
        print(json.dumps({"machine": describe_machine(), "seconds": found}))
        return
    print(describe_machine())
    for python, by_row in found.items():
        against = {row.name: row.against for row in rows_of(python, given.base, tasks, Path())}
        rows = []
        for name, each in by_row.items():
            ratio = f"{median(each) / median(by_row[against[name]]):.2f}" if name in against else ""
            rows.append([name, f"{median(each):.2f}", ratio, against.get(name, "")])
        print(f"\n{python}\n\n{table(['command', 'seconds', 'ratio', 'to'], rows)}")


if __name__ == "__main__":
    main()
