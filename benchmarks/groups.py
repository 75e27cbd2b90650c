"""How many vectors, and who shares one: error, bits, time and memory against the number of tasks.

ZOO holds `base/` and a folder a task. More tasks than it has are made from it, and are called what they are:

- `near-…`: a real task's τ turned towards that of another real task, shuffled: cosine 0.7 with the first.
- `made-…`: a real task's τ shuffled within each tensor: its sizes and its tails, no relation to anything.

A zoo of T tasks has the real ones first, then by turns two of the near and one of the made. Each is packed with one
vector, with the chosen groups, and with random groups of the same sizes; then errors, bits a parameter and task (all
but the base), seconds and the memory of packing are measured, by processes of their own. What was measured is kept in
OUT, so that a run that was cut off goes on.

example:
  python benchmarks/groups.py ~/zoo --out /tmp/groups --counts 8 20
  python benchmarks/groups.py ~/zoo --out /tmp/groups --counts 8 16 20 32 64 128 --tensors 'encoder.layer.[01]'
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from common import MIB, describe_machine, memory_of, progress_to_stderr, sole_user, table

WEIGHTS = "model.safetensors"
COSINE = 0.7
WAYS = ("one", "auto", "random")


def make_zoo(source: Path, out: Path, count: int, pattern: str) -> dict[str, Path]:
    """Checkpoints of `count` tasks, of the tensors whose names match; those that are there are used again."""
    from safetensors.torch import load_file, save_file

    names = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name != "base")
    chosen = re.compile(pattern)
    folder = out / f"zoo-{zlib.crc32(pattern.encode()):08x}"
    base = {n: t for n, t in load_file(source / "base" / WEIGHTS).items() if chosen.search(n)}
    if not base:
        raise SystemExit(f"{source / 'base'}: no tensor matches {pattern!r}")

    def write(name: str, state: dict[str, Any]) -> Path:
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(state, folder / name / WEIGHTS)
        return folder / name

    def tau(task: str) -> dict[str, Any]:
        state = load_file(source / task / WEIGHTS)
        ends = {n: next((b for b in base if n == b or n.endswith(f".{b}")), None) for n in state}
        return {b: state[n] - base[b] for n, b in ends.items() if b is not None and state[n].shape == base[b].shape}

    if not (folder / "base").exists():
        write("base", base)
    found = {}
    for number in range(count):
        real = names[number % len(names)]
        kind = "real" if number < len(names) else ("near", "near", "made")[(number - len(names)) % 3]
        task = real if kind == "real" else f"{kind}-{number:03}-{real}"
        found[task] = folder / task
        if not (folder / task / WEIGHTS).exists():
            own = tau(real)
            if kind != "real":
                other = own if kind == "made" else tau(names[(number + 3) % len(names)])
                own = _related(own, other, COSINE if kind == "near" else 0.0, number)
            write(task, {n: base[n] + step for n, step in own.items()})
        progress_to_stderr("making checkpoints", number + 1, count)
    return found


def _related(own: dict[str, Any], other: dict[str, Any], cosine: float, seed: int) -> dict[str, Any]:
    """c·τ + √(1 − c²)·(another, shuffled within each tensor, as long as τ)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tau in own.items():
        flat = other.get(name, tau).reshape(-1)
        noise = flat[torch.randperm(flat.numel(), generator=generator)].reshape(tau.shape)
        noise = noise * (tau.norm() / noise.norm().clamp_min(1e-30))
        made[name] = cosine * tau + (1 - cosine**2) ** 0.5 * noise
    return made


def pack_once(base: Path, tasks: dict[str, Path], way: str, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """In this process: pack one way, say what it cost."""
    import tallstore
    from tallstore.encoder import groups as grouping
    from tallstore.packing import groups as grouped

    if way == "random":

        def shuffled(*given: Any, **how: Any) -> Any:
            chosen = grouping.choose_groups(*given, **how)
            names = [name for group in chosen.groups for name in group]
            random.Random(0).shuffle(names)
            cut = [len(group) for group in chosen.groups]
            sets = tuple(tuple(names[sum(cut[:n]) : sum(cut[: n + 1])]) for n in range(len(cut)))
            return grouping.Grouping(sets, chosen.cost)

        grouped.choose_groups = shuffled  # type: ignore[attr-defined]  # there is no other way in
    began = time.perf_counter()
    report = tallstore.pack(
        base, tasks, out, overwrite=True, **{**options, "groups": 1 if way == "one" else options.get("groups", "auto")}
    )
    seconds = time.perf_counter() - began
    peak = memory_of()["VmHWM"]
    with tallstore.open(out) as zoo:
        groups = [list(group.tasks) for group in zoo.manifest.groups]
    errors = {name: task.relative_error for name, task in report.tasks.items()}
    real = [error for name, error in errors.items() if "-" not in name]
    count = len(tasks)
    parameters = sum(task.parameters for task in report.tasks.values())
    own = report.bytes["total"] - report.bytes["base"]
    return {
        "groups": groups,
        "error": statistics.mean(errors.values()),
        "error_real": statistics.mean(real),
        "bits": 8 * own / parameters,
        "bytes_a_task": own / count,
        "seconds": seconds,
        "peak_mib": peak / MIB,
    }


def measure(source: Path, out: Path, counts: list[int], pattern: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    known = out / "results.json"
    results = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    for count in counts:
        tasks = make_zoo(source, out, count, pattern)
        base = next(iter(tasks.values())).parent / "base"
        for way in WAYS:
            job = {
                "base": str(base),
                "tasks": {name: str(path) for name, path in tasks.items()},
                "way": way,
                "out": str(out / "packed"),
                "options": options,
            }
            key = json.dumps([count, way, pattern, options])
            if key not in results:
                results[key] = _in_a_process(job)
                known.write_text(json.dumps(results, indent=1), encoding="utf-8")
            result = results[key]
            found.append({"tasks": count, "way": way, **result})
            sizes = [len(group) for group in result["groups"]]
            print(f"T = {count} {way}: {sizes}", file=sys.stderr, flush=True)
            if way == "auto" and len(sizes) == 1:
                break
    return found


def _in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def show(found: list[dict[str, Any]], options: dict[str, Any], pattern: str) -> str:
    rows = [
        [
            f"{each['tasks']} {each['way']}",
            len(each["groups"]),
            f"{each['error']:.3f}",
            f"{each['error_real']:.3f}",
            f"{each['bits']:.3f}",
            f"{each['bytes_a_task'] / MIB:.2f}",
            f"{each['seconds']:.1f}",
            f"{each['peak_mib']:.0f}",
        ]
        for each in found
    ]
    head = ["tasks, way", "groups", "error", "error, real", "bits", "MiB a task", "seconds", "peak MiB"]
    lines = [f"{describe_machine()}; options {options}; tensors {pattern!r}", table(head, rows)]
    by = {(each["tasks"], each["way"]): each for each in found}
    usual = by.get((8, "one"))
    for count in sorted({each["tasks"] for each in found} - {8}):
        auto, one = by.get((count, "auto")), by[count, "one"]
        if usual and auto:
            lines.append(
                f"T = {count}, auto: error {auto['error'] / usual['error']:.3f} and bytes a task "
                f"{auto['bytes_a_task'] / usual['bytes_a_task']:.3f} of T = 8 with one vector; bytes a task "
                f"{auto['bytes_a_task'] / one['bytes_a_task']:.3f} of T = {count} with one"
            )
    return "\n".join(lines)


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--tensors", default="", metavar="REGEX", help="of the base's names; all by default")
    parser.add_argument("--recipe", default="fit")
    parser.add_argument("--groups", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job)
        tasks = {name: Path(path) for name, path in job["tasks"].items()}
        print(json.dumps(pack_once(Path(job["base"]), tasks, job["way"], Path(job["out"]), job["options"])))
        return
    if arguments.zoo is None or arguments.out is None:
        parser.error("ZOO and --out are needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    groups = int(arguments.groups) if arguments.groups.isdecimal() else arguments.groups
    options = {"recipe": arguments.recipe, "groups": groups}
    with sole_user(arguments.out):
        found = measure(arguments.zoo, arguments.out, arguments.counts, arguments.tensors, options)
    print(json.dumps(found, indent=1) if arguments.json else show(found, options, arguments.tensors))


if __name__ == "__main__":
    main()
