"""Packing checkpoints that are larger than memory, and than the disk: they are made while they are read.

Shapes are those of a decoder of language models (width 4096, 32,000 words), bf16, with as many layers as make the
size. Base and task vectors are noise drawn once and repeated, so that making them costs what copying memory costs, and
no disk limits what is measured. Each run packs in a process of its own; the driver's peak is its largest resident set,
all of it, and that of all processes is what they have together. Numbers of workers take turns, round by round. With
`--tensor`, one tensor of more than 2^31 elements is packed exactly, and slices of it around 2^31 and at its end are
compared with the original, bit for bit.

example:
  python benchmarks/large.py /tmp/large --gigabytes 8 --tasks 4
  python benchmarks/large.py /tmp/large --gigabytes 0.5 --engine threads processes --workers 1 2 --repeat 5
  python benchmarks/large.py /tmp/large --tensor
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import MIB, MemorySampler, add_pack_options, describe_machine, memory_of, pack_options, table

import tallstore
from tallstore.checkpoints import Checkpoint, TensorInfo

CHILD = "--child"
WORDS = 32000
POOL = (1 << 22) + 7
"""Elements that are drawn: their number divides no tensor's size."""
TENSOR = ((1 << 31) + (1 << 20) + 5, 1)
"""Its shape: rows of one element."""


class Made(Checkpoint):
    """A checkpoint that is made while it is read: the base, or the base and a task vector."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int | None) -> None:
        self.where = "base" if seed is None else f"task {seed}"
        self.tensors = {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}
        self._seed, self._shapes = seed, shapes
        self._base = noise(0) * 0.02
        self._step = None if seed is None else noise(seed) * 0.001

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        found = self._run(self._base, start, stop)
        if self._step is not None:
            found += self._run(self._step, start + 7919 * len(name), stop + 7919 * len(name))
        return found.bfloat16()

    def fingerprint(self) -> str:
        return f"{self._seed} {self._shapes}"

    def __reduce__(self) -> Any:
        return Made, (self._shapes, self._seed)

    @staticmethod
    def _run(pool: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        out = torch.empty(stop - start)
        at = 0
        while at < len(out):
            low = (start + at) % POOL
            n = min(len(out) - at, POOL - low)
            out[at : at + n] = pool[low : low + n]
            at += n
        return out


def noise(seed: int) -> torch.Tensor:
    return torch.randn(POOL, generator=torch.Generator().manual_seed(seed))


def shapes(size: float, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes that take about so many bytes as bf16."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, width)}
    inner, layer = 43 * width // 16, 0
    while layer < 1 or 2 * sum(a * b for a, b in found.values()) < size:
        name = f"model.layers.{layer}"
        found |= {f"{name}.self_attn.{each}_proj.weight": (width, width) for each in "qkvo"}
        found |= {f"{name}.mlp.{each}_proj.weight": (inner, width) for each in ("gate", "up")}
        found[f"{name}.mlp.down_proj.weight"] = (width, inner)
        layer += 1
    return found


def pack_here(job: dict[str, Any]) -> dict[str, Any]:
    """In the child: pack, and say what it took."""
    made = {name: tuple(shape) for name, shape in job["shapes"].items()}
    base = Made(made, None)
    tasks = {f"task{n}": Made(made, n) for n in range(1, job["tasks"] + 1)}
    began, cpu = time.perf_counter(), time.process_time()
    tallstore.pack(base, tasks, job["archive"], overwrite=True, **job["options"])
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "peak": memory_of()["VmHWM"],
    }


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, CHILD, json.dumps(job, default=str)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child,
        MemorySampler(child.pid, 0.05, family=True) as sampler,
    ):
        out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"packing failed with exit code {child.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found | {"all": sampler.peaks["all"]}


def measure(arguments: argparse.Namespace) -> Iterator[list[str]]:
    made = shapes(arguments.gigabytes * 1e9, arguments.width)
    size = 2 * sum(a * b for a, b in made.values())
    read = size * (arguments.tasks + 1)
    archive = arguments.folder / "zoo.tall"
    for engine in arguments.engine:
        runs: dict[int, list[dict[str, Any]]] = {workers: [] for workers in arguments.workers}
        for _ in range(arguments.repeat):
            for workers, found in runs.items():  # by turns: what slows a machine down for a while slows all of them
                options = pack_options(arguments) | {"engine": engine, "workers": workers}
                job = {"shapes": made, "tasks": arguments.tasks, "archive": str(archive), "options": options}
                found.append(in_child(job))
                print(f"{engine}, {workers} workers: {found[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
        first = [run["seconds"] for run in runs[arguments.workers[0]]]
        for workers, found in runs.items():
            seconds = [run["seconds"] for run in found]
            yield [
                engine,
                str(workers),
                f"{size / 1e9:.2f}",
                f"{read / 1e9:.1f}",
                f"{archive.stat().st_size / 1e9:.2f}",
                spread(seconds, 1),
                spread([one / each for one, each in zip(first, seconds, strict=True)], 2),
                f"{read / 1e9 / median(seconds):.3f}",
                f"{max(run['peak'] for run in found) / MIB:.0f}",
                f"{max(run['all'] for run in found) / MIB:.0f}",
            ]
    archive.unlink()


def spread(values: list[float], digits: int) -> str:
    """The median, and the least and the most."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


HEAD = (
    "engine", "workers", "GB a checkpoint", "GB read", "GB archive", "seconds", "× the first, by rounds",
    "GB read a second", "driver's peak, MiB", "all processes' peak, MiB",
)  # fmt: skip


def large_tensor(folder: Path) -> str:
    """Pack a tensor of more than 2^31 elements, and compare slices of what comes back."""
    made = {"w": TENSOR}
    base, task = Made(made, None), Made(made, 1)
    began = time.perf_counter()
    tallstore.pack(base, {"t": task}, folder / "tensor.tall", exact="all", overwrite=True)
    packed = time.perf_counter() - began
    places = (0, (1 << 31) - 1000, TENSOR[0] - 1000)
    with tallstore.open(folder / "tensor.tall") as zoo:
        for exact in (True, False):
            rows = zoo.weights("t", exact=exact).get_slice("w")
            for start in places:
                ours, theirs = rows[start : start + 2000].reshape(-1), task.read("w", start, start + 2000)
                theirs = theirs[: TENSOR[0] - start]
                if exact and not torch.equal(ours.view(torch.int16), theirs.view(torch.int16)):
                    raise SystemExit(f"elements from {start} on differ")
                before = base.read("w", start, start + len(ours)).float()
                moved = (ours.float() - before).norm() / (theirs.float() - before).norm()
                print(f"{'exact' if exact else 'masks'}, from {start}: {len(ours)} elements, ‖τ̂‖/‖τ‖ {moved:.3f}")
    size = (folder / "tensor.tall").stat().st_size
    (folder / "tensor.tall").unlink()
    return f"{TENSOR[0]} elements packed in {packed:.0f} s to {size / 1e9:.2f} GB; every exact slice is the original's"


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the archive goes")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of a checkpoint (default: 8)")
    parser.add_argument("--width", type=int, default=4096, help="of the decoder (default: 4096)")
    parser.add_argument("--tasks", type=int, default=4, help="(default: 4)")
    parser.add_argument("--engine", nargs="+", default=["threads"], help="one or more (default: threads)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="one or more numbers (default: 2)")
    parser.add_argument("--repeat", type=int, default=1, help="so many rounds, and their median (default: 1)")
    parser.add_argument("--tensor", action="store_true", help="one tensor of more than 2^31 elements instead")
    add_pack_options(parser)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(pack_here(json.loads(sys.argv[2]))))
        return
    arguments = parse()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"{describe_machine()}; {arguments.tasks} tasks, options {pack_options(arguments) or 'as they are'}\n")
    if arguments.tensor:
        print(large_tensor(arguments.folder))
    else:
        print(table(HEAD, measure(arguments)))


if __name__ == "__main__":
    main()
