"""Has anything become slower? A handful of everyday jobs on two checkouts by turns, as ratios of processor time.

One worker process a checkout, both warm; each round runs a job once on either side, in changing order. A job's ratio is
that of the sides' fastest runs: what disturbs a machine makes runs slower and never faster. Above `--most` the command
fails. `--plant 0.2` makes the new side do a fifth more, which has to be found: it proves that the rest means something.

  python benchmarks/regress.py --against v0.1.0
  python benchmarks/regress.py --against HEAD --plant 0.2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import describe_machine, table

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("open", "decode", "decode without loss", "slices", "verify", "pack", "merge")
MOST = 1.10
"""The largest ratio that passes: less than half of a fifth is noise here, more than half is not."""

SIDE = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import tallstore
folder, size, plant = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
make = torch.Generator().manual_seed(1)
base = {f"layer{n}.weight": torch.randn(size, 512, generator=make) * 0.05 for n in range(4)}
base["head.weight"] = torch.randn(size // 4, 512, generator=make).bfloat16()
def moved(seed):
    g = torch.Generator().manual_seed(seed)
    return {n: (t.float() + torch.randn(t.shape, generator=g) * 1e-3).to(t.dtype) for n, t in base.items()}
tasks = {"a": moved(2), "b": moved(3)}
for name, options in (("zoo", {}), ("lossless", {"quality": "lossless"})):
    if not (folder / name).exists():
        tallstore.pack(base, tasks, folder / name, workers=1, **options)
zoo, lossless = (tallstore.open(folder / name, threads=1) for name in ("zoo", "lossless"))
def many_openings():
    for _ in range(20):
        with tallstore.open(folder / "zoo", threads=1) as each:
            each.info()
def slices():
    with zoo.weights("a") as weights:
        for at in range(0, size, max(1, size // 64)):
            weights.get_slice("layer1.weight")[at : at + 3]
own = folder / f"own-{id(folder)}"
jobs = {
    "open": many_openings,
    "decode": lambda: zoo.state_dict("a"),
    "decode without loss": lambda: lossless.state_dict("b"),
    "slices": slices,
    "verify": zoo.verify,
    "pack": lambda: tallstore.pack(base, tasks, own, workers=1, overwrite=True),
    "merge": lambda: zoo.merged(),
}
def timed(job):
    began = time.process_time()
    job()
    return time.process_time() - began
print(json.dumps(sorted(jobs)), flush=True)
for line in sys.stdin:
    job = jobs[line.strip()]
    took = timed(job)
    stop = time.process_time() + plant * took
    while time.process_time() < stop:
        took += 0.0  # planted work, in the same process
    print(took * (1 + plant), flush=True)
"""


@contextmanager
def side(checkout: Path, folder: Path, size: int, plant: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """A process that runs jobs of one checkout, each time it is told one's name."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SIDE, str(folder), str(size), str(plant)]
    with subprocess.Popen(words, env=env, cwd=folder, text=True, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if sorted(JOBS) != json.loads(process.stdout.readline() or "[]"):
            raise SystemExit(f"{checkout}: does not start; build its kernels first")
        yield process
        process.stdin.close()


def once(process: subprocess.Popen[str], job: str) -> float:
    """Seconds of processor time that a job took."""
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.write(f"{job}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(
    old: subprocess.Popen[str], new: subprocess.Popen[str], rounds: int, jobs: Sequence[str] = JOBS
) -> dict[str, tuple[float, float]]:
    """The fastest run of each job on either side: old, new."""
    best: dict[str, tuple[float, float]] = {}
    for number in range(rounds):
        for job in jobs:
            pair = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                pair[which] = once((old, new)[which], job)
            before = best.get(job, (pair[0], pair[1]))
            best[job] = min(before[0], pair[0]), min(before[1], pair[1])
    return best


def slower(best: Mapping[str, tuple[float, float]], most: float) -> list[str]:
    """The jobs whose ratio is above what passes."""
    return [job for job, (old, new) in best.items() if new > most * old]


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """A revision in a folder of its own, its kernels built."""
    where = folder / "old"
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", where, revision], check=True)
    try:
        env = os.environ | {"PYTHONPATH": str(where)}
        build = [sys.executable, "-m", "tallstore.kernels.native.build"]
        subprocess.run(build, cwd=where, env=env, check=True, stdout=subprocess.DEVNULL)
        yield where
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", where], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="the checkout to compare with; without it, this one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=2048, help="rows of each matrix")
    parser.add_argument("--most", type=float, default=MOST, help="the largest ratio that passes")
    parser.add_argument("--plant", type=float, default=0.0, help="share of work that the new side does on top")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        there = stack.enter_context(checkout(asked.against, folder)) if asked.against else ROOT
        (zoos := folder / "zoos").mkdir()
        new = stack.enter_context(side(ROOT, zoos, asked.size, asked.plant))
        old = stack.enter_context(side(there, zoos, asked.size))
        best = measure(old, new, asked.rounds)
    failed = slower(best, asked.most)
    if asked.json:
        facts: dict[str, Any] = {job: {"old": a, "new": b, "ratio": b / a} for job, (a, b) in best.items()}
        print(json.dumps({"machine": describe_machine(), "jobs": facts, "slower": failed}, indent=1))
    else:
        rows = [(job, f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{b / a:.3f}") for job, (a, b) in best.items()]
        print(describe_machine(), "", table(("job", "old, ms", "new, ms", "ratio"), rows), sep="\n")
        print(f"\nslower than {asked.most:g}: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
