"""Memory and time of packing many synthetic checkpoints of the shape of CLIP's ViT-B/32.

Each checkpoint is fp32, with the names of an open_clip image classifier: an image encoder that is fine-tuned (87.8 M
parameters) and the rest of the text side that is not (25.8 M; the vocabulary is padded to 49,792 rows to make the
count). Twenty tasks and the base take 9.5 GB of FOLDER; checkpoints that are there already are used again.

Packing runs in a process of its own. Its peak memory is the highest resident set during `tallstore.pack`, above that of
the same process when it had imported torch and nothing else. Inputs leave the system's cache before they are read and
before they are packed, so that both begin at the disk (`--warm` leaves them in it). With several `--engine` or
`--workers`, each zoo is packed with every one of them, and a second table says how much quicker more workers are.
Memory and processor seconds are the driver's: all there is with threads; workers that are processes have their own.
Room on the disk is that of the scratch folder beside the target, where results and archive grow.

example:
  python benchmarks/pack_memory.py /tmp/synthetic
  python benchmarks/pack_memory.py /tmp/synthetic --tasks 8 --scale 0.25 --layers 6 12 24
  python benchmarks/pack_memory.py /tmp/synthetic --tasks 1 2 4 8 16 32 64 --scale 0.25 --warm
  python benchmarks/pack_memory.py /tmp/synthetic --engine threads processes --workers 1 2 --repeat 3 --warm
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from common import (
    MIB,
    DiskSampler,
    MemorySampler,
    add_pack_options,
    describe_machine,
    forget,
    memory_of,
    pack_options,
    reset_peak,
    sole_user,
    table,
)
from synthetic import WEIGHTS, make_checkpoints, vit_b32

BLOCK = 8 * MIB
CHILD = "--child"
LOAD = "--load"


def read_all(paths: list[Path]) -> float:
    """Seconds to read files from start to end, one after the other."""
    block = bytearray(BLOCK)
    began = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - began


def load_all(paths: list[str]) -> float:
    """In a child: seconds to load files with safetensors, every tensor cloned, one file after the other."""
    from safetensors.torch import load_file

    began = time.perf_counter()
    for path in paths:
        kept = {name: tensor.clone() for name, tensor in load_file(path).items()}
        del kept
    return time.perf_counter() - began


def pack_here(base: str, tasks: Mapping[str, str], archive: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: pack, and say what it took."""
    import torch  # noqa: F401 - memory is counted above an interpreter that has imported it

    before = memory_of()["VmRSS"]
    import tallstore

    reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    report = tallstore.pack(base, tasks, archive, overwrite=True, **options)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "torch_bytes": before,
        "peak_bytes": memory_of()["VmHWM"] - before,
        "archive_bytes": Path(archive).stat().st_size,
        "bits_per_parameter": report.bits_per_parameter,
    }


def measure(arguments: argparse.Namespace, layers: int, n_tasks: int) -> Iterator[dict[str, Any]]:
    """One size of models and zoo: make what is missing, read it, pack it by each engine with each number of workers."""
    folder = arguments.folder / f"layers{layers}-scale{arguments.scale:g}"
    specs = vit_b32(layers, arguments.scale)
    base, tasks = make_checkpoints(folder, specs, n_tasks)
    files = [path / WEIGHTS for path in (base, *tasks.values())]
    prepare = (lambda: None) if arguments.warm else (lambda: forget(files))
    prepare()
    read_seconds = read_all(files)
    prepare()
    loading = subprocess.run([sys.executable, __file__, LOAD, *map(str, files)], capture_output=True, check=True)
    facts = {
        "layers": layers,
        "tasks": n_tasks,
        "tensors": len(specs),
        "parameters": sum(spec.numel for spec in specs),
        "frozen_parameters": sum(spec.numel for spec in specs if spec.sort == "frozen"),
        "input_bytes": sum(4 * spec.numel for spec in specs) * (n_tasks + 1),
        "read_seconds": read_seconds,
        "load_seconds": json.loads(loading.stdout),
    }
    for engine, workers in product(arguments.engine, arguments.workers):
        how = {"engine": engine, "workers": workers}
        job = {"base": base, "tasks": tasks, "archive": folder / "zoo.tall", "options": pack_options(arguments) | how}
        runs = []
        for _ in range(arguments.repeat):
            prepare()
            runs.append(_run_child(json.dumps(job, default=str), folder / ".zoo.tall.partial"))
        yield facts | how | min(runs, key=lambda run: float(run["seconds"]))
    if arguments.delete:
        shutil.rmtree(folder)


def _run_child(job: str, staging: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, CHILD, job]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child,
        MemorySampler(child.pid) as sampler,
        DiskSampler(staging) as disk,
    ):
        out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"packing failed with exit code {child.returncode}")
    found: dict[str, Any] = json.loads(out)
    peaks = {"peak_anonymous_bytes": sampler.peaks["RssAnon"], "peak_mapped_bytes": sampler.peaks["RssFile"]}
    return found | peaks | {"peak_disk_bytes": disk.peak}


def _rows(found: list[dict[str, Any]]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    yield "tensors", lambda r: str(r["tensors"])
    yield "parameters, M", lambda r: f"{r['parameters'] / 1e6:.1f}"
    yield "of these frozen, M", lambda r: f"{r['frozen_parameters'] / 1e6:.1f}"
    yield "input, GB", lambda r: f"{r['input_bytes'] / 1e9:.2f}"
    yield "archive, GB", lambda r: f"{r['archive_bytes'] / 1e9:.3f}"
    yield "input / archive", lambda r: f"{r['input_bytes'] / r['archive_bytes']:.2f}"
    yield "bits a parameter and task", lambda r: f"{r['bits_per_parameter']:.3f}"
    yield "seconds to read the input", lambda r: f"{r['read_seconds']:.1f}"
    yield "seconds to load it with safetensors, cloned", lambda r: f"{r['load_seconds']:.1f}"
    yield "seconds to pack it", lambda r: f"{r['seconds']:.1f}"
    yield "pack / read", lambda r: f"{r['seconds'] / r['read_seconds']:.2f}"
    yield "pack / load", lambda r: f"{r['seconds'] / r['load_seconds']:.2f}"
    yield "processor seconds to pack it", lambda r: f"{r['cpu_seconds']:.1f}"
    yield "ns a parameter and task", lambda r: f"{1e9 * r['seconds'] / r['parameters'] / r['tasks']:.2f}"
    yield (
        "processor ns a parameter and task",
        lambda r: f"{1e9 * r['cpu_seconds'] / r['parameters'] / r['tasks']:.2f}",
    )
    yield "GB of input a second", lambda r: f"{r['input_bytes'] / 1e9 / r['seconds']:.2f}"
    yield "**peak memory above torch, MiB** (goal at 12 layers: ≤ 1536)", lambda r: f"{r['peak_bytes'] / MIB:.0f}"
    yield "peak of the process's own memory, MiB", lambda r: f"{r['peak_anonymous_bytes'] / MIB:.0f}"
    yield "peak of mapped files, MiB", lambda r: f"{r['peak_mapped_bytes'] / MIB:.0f}"
    yield (
        "peak room on the disk, results and archive, of the archive",
        lambda r: f"{r['peak_disk_bytes'] / r['archive_bytes']:.2f}",
    )
    yield "torch imported, MiB", lambda r: f"{r['torch_bytes'] / MIB:.0f}"
    if len(found) > 1:
        yield "peak against the first column", lambda r: f"{r['peak_bytes'] / found[0]['peak_bytes']:.2f}"


def _speed(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Each run against the same with one worker, or with the fewest."""
    fewest = min(run["workers"] for run in found)
    for run in found:
        one = next(
            r["seconds"]
            for r in found
            if r["workers"] == fewest and all(r[key] == run[key] for key in ("engine", "layers", "tasks"))
        )
        yield (
            f"{run['layers']} layers, {run['tasks']} tasks, {run['engine']}",
            str(run["workers"]),
            f"{run['seconds']:.1f}",
            f"{run['cpu_seconds']:.1f}",
            f"{one / run['seconds']:.2f}",
            f"{run['peak_bytes'] / MIB:.0f}",
        )


def _head(run: dict[str, Any]) -> str:
    workers = f", {run['engine']} × {run['workers']}" if run["workers"] is not None else ""
    return f"{run['layers']} layers, {run['tasks']} tasks{workers}"


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the checkpoints and the archive go")
    parser.add_argument("--tasks", type=int, nargs="+", default=[20], help="fine-tuned checkpoints (default: 20)")
    parser.add_argument("--layers", type=int, nargs="+", default=[12], help="one or more depths (default: 12)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink widths and vocabulary (default: 1)")
    parser.add_argument("--engine", nargs="+", default=["threads"], help="one or more (default: threads)")
    parser.add_argument("--workers", type=int, nargs="+", default=[None], help="one or more numbers (default: pack's)")
    parser.add_argument("--repeat", type=int, default=1, help="take the quickest of so many runs (default: 1)")
    parser.add_argument("--warm", action="store_true", help="leave the inputs in the system's cache")
    parser.add_argument("--delete", action="store_true", help="delete checkpoints and archive when measured")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_pack_options(parser)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(pack_here(**json.loads(sys.argv[2]))))
        return
    if sys.argv[1:2] == [LOAD]:
        print(json.dumps(load_all(sys.argv[2:])))
        return
    arguments = parse()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sole_user(arguments.folder):
        sizes = product(arguments.layers, arguments.tasks)
        found = [run for layers, tasks in sizes for run in measure(arguments, layers, tasks)]
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "runs": found}, indent=1))
        return
    cache = "inputs in the system's cache" if arguments.warm else "inputs not in the system's cache"
    head = ["", *map(_head, found)]
    print(f"{describe_machine()}; {cache}\n")
    print(table(head, [(label, *map(cell, found)) for label, cell in _rows(found)]))
    if len(arguments.workers) > 1:
        head = ["zoo, engine", "workers", "seconds", "driver's processor seconds", "× the fewest", "driver's peak, MiB"]
        print("\nGoal of two workers: 1.7 × one, or more.\n")
        print(table(head, _speed(found)))


if __name__ == "__main__":
    main()
