"""What it takes to pack many fine-tunes of a large model: a model of the cost, its constants measured here.

Constants are processor seconds, of one worker on one core, so that other work on the machine matters little: packing
zoos of 1 and 5 tasks (shapes of a language model, bf16, made while they are read) gives what a parameter of the base
costs and what a parameter of a task costs, once what making and reading them costs is taken away; putting parts
together and reading files are measured by themselves. Zoos of 3 tasks, and of 2 of a larger model, which no constant
comes from, are then predicted and measured. What no run here can tell (network, prices) are arguments.

Packing ends when the slowest of these does, plus putting the parts together, which the driver does alone:

    computing  (a·P + b·P·T) / workers
    reading    bytes of all checkpoints / (network of a worker · workers)

`--plot` draws the plan against the number of workers, and the prediction against every zoo that was measured.

example:
  python benchmarks/plan.py /tmp/plan --save plan.json --plot plan.svg
  python benchmarks/plan.py /tmp/plan --constants benchmarks/results/plan.json --plot benchmarks/results/plan.svg
  python benchmarks/plan.py /tmp/plan --constants benchmarks/results/plan.json --parameters 8e9 --tasks 20
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import MIB, describe_machine, memory_of, table
from large import Made, shapes
from plan_plot import draw

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.encoder import pack

CHILD = "--child"
GIGABYTES = 0.5
"""Of a measured checkpoint."""
FITTED = (1, 5)
"""Tasks of the zoos that the constants come from."""
CHECKED = ((3, 0.5), (2, 1.0))
"""Tasks, and gigabytes of a checkpoint, of the zoos that they are checked on."""
FILE = 256 * MIB


@dataclass(frozen=True, kw_only=True)
class Point:
    """A zoo that was packed here."""

    parameters: int
    tasks: int
    seconds: float
    """Processor seconds of computing."""
    fitted: bool
    """Whether the constants come from it."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """All per parameter or byte, in processor seconds of one core."""

    base_second: float
    """A parameter of the base: coded and hashed."""
    task_second: float
    """A parameter of a task: measured, chosen, coded."""
    read_second: float
    """A byte read from a file that is in the system's cache."""
    assembly_second: float
    """A byte of a part that is put together."""
    base_bytes: float
    """A parameter of the base in the archive."""
    task_bytes: float
    """A parameter of a task in the archive."""
    peak_bytes: int
    """Largest resident set of a worker."""
    machine: str
    points: tuple[Point, ...]
    """What was measured."""

    @classmethod
    def from_json(cls, text: str) -> Constants:
        """As `--save` wrote them."""
        found = json.loads(text)
        return cls(**{**found, "points": tuple(Point(**point) for point in found["points"])})

    def computing(self, parameters: float, tasks: int) -> float:
        """Processor seconds of computing, reading left out."""
        return parameters * (self.base_second + tasks * self.task_second)


def pack_here(job: dict[str, Any]) -> dict[str, Any]:
    """In the child: pack with one worker; processor seconds of everything, of putting together, and of making input."""
    torch.set_num_threads(1)
    made = {name: tuple(shape) for name, shape in job["shapes"].items()}
    base, tasks = Made(made, None), {f"task{n}": Made(made, n) for n in range(1, job["tasks"] + 1)}
    spent = 0.0
    write = pack.write_parts

    def timed(*arguments: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        found = write(*arguments)
        spent += time.process_time() - began
        return found

    pack.write_parts = timed  # type: ignore[assignment]  # there is no other way in
    wall, began = time.perf_counter(), time.process_time()
    report = tallstore.pack(base, tasks, job["archive"], overwrite=True, workers=1)
    cpu = time.process_time() - began
    wall = time.perf_counter() - wall
    began = time.process_time()
    for checkpoint in (base, *tasks.values()):
        for name, info in checkpoint.tensors.items():
            for start in range(0, info.numel, 1 << 20):
                checkpoint.read(name, start, min(start + (1 << 20), info.numel))
    making = time.process_time() - began
    sizes = dict(report.bytes)
    return {"cpu": cpu - spent, "assembly": spent, "making": making, "wall": wall, "bytes": sizes} | {
        "peak": memory_of()["VmHWM"]
    }


def run(folder: Path, tasks: int, gigabytes: float = GIGABYTES) -> dict[str, Any]:
    """Pack a zoo of so many tasks in a process of its own."""
    job = {"shapes": shapes(gigabytes * 1e9), "tasks": tasks, "archive": str(folder / "zoo.tall")}
    done = subprocess.run(
        [sys.executable, __file__, CHILD, json.dumps(job)], stdout=subprocess.PIPE, text=True, check=True
    )
    (folder / "zoo.tall").unlink()
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"parameters": sum(math.prod(shape) for shape in shapes(gigabytes * 1e9).values()), "tasks": tasks}


def point(found: dict[str, Any], *, fitted: bool) -> Point:
    """What a run says of computing: what making its input takes is not packing's."""
    seconds = found["cpu"] - found["making"]
    return Point(parameters=found["parameters"], tasks=found["tasks"], seconds=seconds, fitted=fitted)


def reading(folder: Path) -> float:
    """Processor seconds that reading a byte takes."""
    from safetensors.torch import save_file

    path = folder / "read.safetensors"
    save_file({"w": torch.zeros(FILE // 4)}, path)
    checkpoint = open_checkpoint(path)
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for start in range(0, FILE // 4, 1 << 20):
            checkpoint.read("w", start, start + (1 << 20))
        best = min(best, time.process_time() - began)
    checkpoint.close()
    path.unlink()
    return best / FILE


def measure(folder: Path) -> Constants:
    """The constants, and the zoos that they do and do not come from."""
    few, many = (run(folder, tasks) for tasks in FITTED)
    checked = [run(folder, tasks, gigabytes) for tasks, gigabytes in CHECKED]
    one, other = (point(found, fitted=True) for found in (few, many))
    parameters = one.parameters
    task = (other.seconds - one.seconds) / (other.tasks - one.tasks) / parameters
    archive = sum(many["bytes"][kind] for kind in ("base", "vector", "masks", "private"))
    return Constants(
        base_second=one.seconds / parameters - one.tasks * task,
        task_second=task,
        read_second=reading(folder),
        assembly_second=many["assembly"] / archive,
        base_bytes=many["bytes"]["base"] / parameters,
        task_bytes=(archive - many["bytes"]["base"]) / parameters / FITTED[1],
        peak_bytes=many["peak"],
        machine=describe_machine(),
        points=(one, other, *(point(found, fitted=False) for found in checked)),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is to be packed, and where."""

    parameters: float
    tasks: int
    network: float
    """Bytes a second that a worker reads."""
    core_hour: float
    """Price of a worker's hour."""
    month: float
    """Price of a gigabyte stored for a month."""


def plan(c: Constants, case: Case, workers: int) -> dict[str, float]:
    """Seconds, bytes and money."""
    read = 2 * case.parameters * (case.tasks + 1)
    archive = case.parameters * (c.base_bytes + case.tasks * c.task_bytes)
    computing = c.computing(case.parameters, case.tasks) + read * c.read_second
    assembly = archive * c.assembly_second
    seconds = max(computing / workers, read / (case.network * workers)) + assembly
    return {
        "read": read,
        "archive": archive,
        "computing": computing / workers,
        "reading": read / (case.network * workers),
        "assembly": assembly,
        "seconds": seconds,
        "price": workers * seconds / 3600 * case.core_hour,
    }


def rows(c: Constants, case: Case, workers: list[int]) -> list[list[str]]:
    found = [plan(c, case, n) for n in workers]
    one = plan(c, case, 1)

    def row(label: str, cell: Any) -> list[str]:
        return [label, *(cell(n, each) for n, each in zip(workers, found, strict=True))]

    return [
        row("read, TB", lambda _, r: f"{r['read'] / 1e12:.2f}"),
        row("archive, TB", lambda _, r: f"{r['archive'] / 1e12:.3f}"),
        row("computing, hours", lambda _, r: f"{r['computing'] / 3600:.2f}"),
        row("reading over the network, hours", lambda _, r: f"{r['reading'] / 3600:.2f}"),
        row("putting parts together, hours", lambda _, r: f"{r['assembly'] / 3600:.2f}"),
        row("**in all, hours**", lambda _, r: f"**{r['seconds'] / 3600:.2f}**"),
        row("times as fast as one", lambda _, r: f"{one['seconds'] / r['seconds']:.1f}"),
        row("network used, Gbit/s", lambda _, r: f"{8e-9 * r['read'] / max(r['seconds'] - r['assembly'], 1e-9):.1f}"),
        row("memory, GiB", lambda n, _: f"{n * c.peak_bytes / 2**30:.0f}"),
        row("workers' hours, $", lambda _, r: f"{r['price']:.0f}"),
        row("checkpoints kept, $ a month", lambda _, r: f"{r['read'] / 1e9 * case.month:.0f}"),
        row("archive kept, $ a month", lambda _, r: f"{r['archive'] / 1e9 * case.month:.0f}"),
    ]


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where measured archives go")
    parser.add_argument("--constants", type=Path, help="a file of constants: nothing is measured then")
    parser.add_argument("--save", type=Path, help="where measured constants go")
    parser.add_argument("--plot", type=Path, help="where the plan is drawn, as SVG or PNG")
    parser.add_argument("--parameters", type=float, default=70e9, help="of the model (default: 70e9)")
    parser.add_argument("--tasks", type=int, default=100, help="(default: 100)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)")
    parser.add_argument("--network", type=float, default=250e6, help="bytes a second and worker (default: 250e6)")
    parser.add_argument("--core-hour", type=float, default=0.05, help="$ (default: 0.05)")
    parser.add_argument("--month", type=float, default=0.023, help="$ a gigabyte (default: 0.023)")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(pack_here(json.loads(sys.argv[2]))))
        return
    arguments = parse()
    if arguments.constants is not None:
        constants = Constants.from_json(arguments.constants.read_text())
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        constants = measure(arguments.folder)
    if arguments.save is not None:
        arguments.save.write_text(json.dumps(asdict(constants), indent=1) + "\n")
    print(f"{constants.machine}\n")
    print(
        f"nanoseconds: {1e9 * constants.base_second:.2f} a parameter of the base, {1e9 * constants.task_second:.2f} a "
        f"parameter and task, {1e9 * constants.read_second:.2f} a byte read, "
        f"{1e9 * constants.assembly_second:.2f} a byte put together"
    )
    print(f"bytes: {constants.base_bytes:.3f} a parameter of the base, {constants.task_bytes:.4f} of a task")
    print(f"peak of a worker: {constants.peak_bytes / MIB:.0f} MiB\n")
    for found in constants.points:
        print(
            f"{found.tasks} × {found.parameters / 1e9:.2f} B: "
            f"{constants.computing(found.parameters, found.tasks):.1f} processor seconds "
            f"{'fitted' if found.fitted else 'predicted'}, {found.seconds:.1f} measured"
        )
    print()
    case = Case(
        parameters=arguments.parameters,
        tasks=arguments.tasks,
        network=arguments.network,
        core_hour=arguments.core_hour,
        month=arguments.month,
    )
    head = [f"{case.tasks} × {case.parameters / 1e9:g} B", *(f"{n} worker{'s' * (n > 1)}" for n in arguments.workers)]
    print(table(head, rows(constants, case, arguments.workers)))
    if arguments.plot is not None:
        draw(
            lambda workers: plan(constants, case, workers),
            lambda tasks: constants.computing(1.0, tasks),
            [(point.tasks, point.seconds / point.parameters, point.fitted) for point in constants.points],
            arguments.workers,
            f"{case.tasks} × {case.parameters / 1e9:g} B",
            arguments.plot,
        )


if __name__ == "__main__":
    main()
