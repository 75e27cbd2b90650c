"""Bits against what they keep: tallstore's settings and every peer, on the same checkpoints, in the same run.

ZOO holds `base/` and a folder a task, as Hugging Face checkpoints; DATA holds `<task>/test.tsv`, a line an example:
label, tab, text. Bits are bytes on disk for all but the base (masks, vector, scales, codebooks, tensors stored whole),
over the parameters of all tasks. KL is from the originals' outputs, in nats an example, with its standard error, on
each task's test set and on texts of the other tasks. Writes rate_distortion.csv, .md and .png to OUT. Results are kept
there as they come, so that a second run measures only what is new.

example:
  python benchmarks/rate_distortion.py ~/zoo ~/data --out /tmp/rd
  python benchmarks/rate_distortion.py ~/zoo ~/data --out /tmp/rd4 --tasks 4 --examples 300 --only 'tallstore|BitDelta'
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import rd_own
import rd_peers
import torch
from common import describe_machine, table
from rd_method import Method, Unavailable
from rd_plot import Point, View, draw
from rd_zoo import Judge, Zoo, average, load_zoo, tested

VIEWS = (
    View("mean retention, %", 85.0),
    View("worst task's retention, %", 70.0),
    View("KL divergence from the original's outputs, nats", 1e-6, log=True),
    View("the same, on the other tasks' texts", 1e-6, log=True),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method, measured."""

    method: str
    family: str
    tasks: int
    bits: float
    relative_error: float
    cosine: float
    kl: float
    kl_error: float
    kl_other: float
    kl_other_error: float
    logit_error: float
    flips: float
    retention: float
    worst: float
    encode_seconds: float
    by_task: str


def measure(method: Method, zoo: Zoo, judge: Judge) -> Row:
    """Run a method on a zoo and judge what comes back."""
    began = time.perf_counter()
    packed = method.make(zoo)
    seconds = time.perf_counter() - began
    scores = judge.scores(packed.hats)
    return Row(
        method=method.name,
        family=method.family,
        tasks=len(zoo.tasks),
        bits=8 * packed.bytes / zoo.parameters,
        encode_seconds=seconds,
        by_task=" ".join(f"{task}={s.retention:.4f}" for task, s in zip(zoo.tasks, scores, strict=True)),
        **average(scores),
    )


def read_rows(file: Path) -> list[Row]:
    """What an earlier run measured."""
    if not file.exists():
        return []
    texts = {"method", "family", "by_task"}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [
            {k: v if k in texts else float(v) for k, v in found.items()} | {"tasks": int(found["tasks"])}
            for found in csv.DictReader(lines)
        ]
    return [Row(**row) for row in rows]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """All rows, as CSV."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(f.name for f in fields(Row))
        writer.writerows(astuple(row) for row in rows)


def show(rows: Sequence[Row]) -> str:
    """A Markdown table, ordered by bits."""
    head = (
        *("method", "bits", "error", "cosine", "KL", "±", "KL other texts", "±", "logit error", "changed"),
        *("retention", "worst", "encode s"),
    )
    cells = [
        (
            r.method,
            f"{r.bits:.3f}",
            f"{r.relative_error:.3f}",
            f"{r.cosine:.3f}",
            *(f"{value:.2g}" for value in (r.kl, r.kl_error, r.kl_other, r.kl_other_error)),
            f"{r.logit_error:.3f}",
            f"{r.flips:.2%}",
            f"{r.retention:.2%}",
            f"{r.worst:.2%}",
            f"{r.encode_seconds:.0f}",
        )
        for r in sorted(rows, key=lambda r: r.bits)
    ]
    return table(head, cells)


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure what is asked for and not known yet; write after each method."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rate_distortion.csv"
    rows = read_rows(file)
    known = {row.method for row in rows}
    wanted = [
        m
        for m in (*rd_own.methods(), *rd_peers.methods())
        if m.name not in known and re.search(arguments.only, m.name, re.IGNORECASE)
    ]
    if wanted:
        zoo = load_zoo(arguments.zoo, tested(arguments.zoo, arguments.data)[: arguments.tasks])
        judge = Judge(zoo, arguments.data, arguments.examples, arguments.other)
    for method in wanted:
        try:
            row = measure(method, zoo, judge)
        except Unavailable as reason:
            print(f"{method.name}: skipped: {reason}", flush=True)
            continue
        rows.append(row)
        write_rows(file, rows)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}, flush=True)
    lines = [describe_machine(), "", show(rows), ""]
    (out / "rate_distortion.md").write_text("\n".join(lines), encoding="utf-8")
    points = [Point(r.family, r.bits, (100 * r.retention, 100 * r.worst, r.kl, r.kl_other)) for r in rows]
    draw(points, VIEWS, out / "rate_distortion.png")
    return rows


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("data", type=Path, help="folder with <task>/test.tsv")
    parser.add_argument("--tasks", type=int, help="only the first N tasks by name")
    parser.add_argument("--examples", type=int, help="only the first N test examples a task (default: all)")
    parser.add_argument("--other", type=int, default=64, help="texts of each other task (default: %(default)s)")
    parser.add_argument("--only", default="", help="methods whose name has this regular expression in it")
    parser.add_argument("--out", type=Path, default=Path("rate_distortion"), help="folder for CSV, table and plot")
    parser.add_argument("--threads", type=int, help="threads for torch")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(show(run(arguments)))


if __name__ == "__main__":
    main()
