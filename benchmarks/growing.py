"""Grow a real zoo by its last task: what is written, what stays, and what all tasks keep.

Packs all tasks of ZOO but the last, adds that one, and evaluates it beside its original on its whole test set (see
real_zoo.py for the folders). The others' parts are compared byte for byte; with --all they are evaluated too. Then
how long it takes to open and list a zoo of 200 tasks of 1,000 tensors.

example:
  python benchmarks/growing.py ~/zoo ~/data --out /tmp/growing
  python benchmarks/growing.py ~/zoo ~/data --out /tmp/growing --recipe fit
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import add_pack_options, describe_machine, pack_options, sole_user, table
from real_zoo import Accuracies

import tallstore

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import read_all
from test_large_manifest import large

BOUND = 1.15
"""Bytes written, over those of one vector and one mask part of the zoo."""


def grow(source: Path, data: Path, out: Path, options: dict[str, Any], *, everything: bool) -> dict[str, Any]:
    *first, last = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name != "base")
    archive = out / "zoo"
    shutil.rmtree(archive, ignore_errors=True)
    tallstore.pack(source / "base", {name: source / name for name in first}, archive, **options)
    before = read_all(archive)
    accuracies = Accuracies(out / "accuracies.json")
    report = tallstore.add(archive, {last: source / last})
    after = read_all(archive)
    kept = _kept(archive, source, data, out, accuracies, [*first, last] if everything else [last])
    vector = sum(len(d) for p, d in after.items() if p.startswith("vector/")) / max(1, len(report.groups))
    mask = len(after[f"tasks/{last}/mask.safetensors"])
    changed = sorted(path for path in before if after.get(path) != before[path])
    return {
        "added": last,
        "seconds": report.seconds,
        "bytes_written": report.bytes_new,
        "of_one_vector_and_mask": report.bytes_new / (vector + mask),
        "vector": vector,
        "mask": mask,
        "new_files": {path: len(after[path]) for path in after if path not in before},
        "changed_files": {path: len(after[path]) for path in changed},
        "retention": kept,
        "machine": describe_machine(),
        "options": options,
    }


def _kept(
    archive: Path, source: Path, data: Path, out: Path, accuracies: Accuracies, tasks: list[str]
) -> dict[str, float]:
    found = {}
    with tallstore.open(archive) as zoo:
        for task in tasks:
            test = data / task / "test.tsv"
            folder = zoo.export(task, out / "decoded" / task, overwrite=True)
            found[task] = accuracies.of(folder, test) / accuracies.of(source / task, test)
    return found


def opening(out: Path, runs: int = 9) -> dict[str, float]:
    """Open and list a zoo whose manifest alone is there."""
    folder = out / "large"
    folder.mkdir(parents=True, exist_ok=True)
    data = large().to_bytes()
    (folder / "tall.json").write_bytes(data)
    taken, work = [], []
    for _ in range(runs):
        began, before = time.perf_counter(), time.process_time()
        with tallstore.open(folder) as zoo:
            assert len(zoo.tasks) == 200
            assert zoo.info()["tasks"]
        taken.append(time.perf_counter() - began)
        work.append(time.process_time() - before)
    return {
        "manifest_bytes": len(data),
        "processor_ms": 1000 * statistics.median(work),
        "open_and_list_ms": 1000 * statistics.median(taken),
        "worst_ms": 1000 * max(taken),
    }


def show(found: dict[str, Any]) -> str:
    rows = [[task, f"{100 * kept:.2f} %"] for task, kept in found["retention"].items()]
    share = found["of_one_vector_and_mask"]
    return "\n".join(
        [
            f"{found['machine']}; options {found['options'] or 'default'}",
            f"added {found['added']}: {found['bytes_written']:,} bytes in {found['seconds']:.1f} s, {share:.3f} of one "
            f"vector ({found['vector']:,.0f}) and one mask part ({found['mask']:,}); at most {BOUND} was asked for",
            f"changed: {', '.join(found['changed_files'])}; new: {', '.join(found['new_files'])}",
            table(["task", "accuracy kept"], rows),
            f"200 tasks of 1,000 tensors: {found['large']['manifest_bytes']:,} bytes of manifest, opened and listed in "
            f"{found['large']['open_and_list_ms']:.0f} ms (median; worst {found['large']['worst_ms']:.0f}), "
            f"{found['large']['processor_ms']:.0f} of them the processor's",
        ]
    )


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="evaluate every task, not the added one alone")
    parser.add_argument("--json", action="store_true")
    add_pack_options(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sole_user(arguments.out):
        found = grow(arguments.zoo, arguments.data, arguments.out, pack_options(arguments), everything=arguments.all)
        found["large"] = opening(arguments.out)
    print(json.dumps(found, indent=1) if arguments.json else show(found))


if __name__ == "__main__":
    main()
