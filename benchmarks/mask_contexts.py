"""What better models of the masks would save: code lengths of the marks of a real archive under several contexts.

A mask costs what its marks' places are worth, and a bit for each sign. Beside what `adaptive` takes for the places here
is the length of an ideal arithmetic code that knows the density of the tensor, and one thing more: the density of each
row, column or both (sent in eight bits), the mark before, the mark of the task before at the same place, the base's
magnitude (in sixteen classes). Lengths are entropies of counts, so a real coder would need a little more.

example:
  python benchmarks/mask_contexts.py zoo.tall
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import describe_machine, table

Marks = npt.NDArray[np.bool_]
SIDE = 8.0
"""Bits that a row's or a column's density takes."""


def length(on: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> float:
    """Bits of marks, `on` of `of` in each context."""
    share = np.clip(on / np.maximum(of, 1), 1e-12, 1 - 1e-12)
    return float((of * -(share * np.log2(share) + (1 - share) * np.log2(1 - share)))[of > 0].sum())


def by_class(marks: Marks, classes: npt.NDArray[np.intp], count: int) -> float:
    """Bits of marks whose class is known."""
    of = np.bincount(classes, minlength=count).astype(float)
    on = np.bincount(classes, weights=marks.astype(float), minlength=count)
    return length(on, of)


def product(rows: Marks) -> float:
    """Bits of marks where the density at a place is that of its row times its column's, of the tensor's."""
    across, down = rows.mean(axis=1, dtype=np.float64), rows.mean(axis=0, dtype=np.float64)
    mean = float(across.mean()) or 1.0
    total = SIDE * (len(across) + len(down))
    for share, marks in zip(across, rows, strict=True):
        if share > 0:
            at = np.clip(share * down / mean, 1e-6, 1 - 1e-6).astype(np.float32)
            total -= float(np.log2(np.where(marks, at, 1 - at)).sum(dtype=np.float64))
    return total


def lengths(
    marks: Marks, shape: tuple[int, ...], before: Marks | None, base: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Bits by what is known, for one tensor of one task."""
    n = len(marks)
    found = {"the density of the tensor": length(np.array([float(marks.sum())]), np.array([float(n)]))}
    rows = marks.reshape(shape[0], -1)
    for name, axis in (("of each row", 1), ("of each column", 0)):
        on = rows.sum(axis=axis).astype(float)
        found[f"the density {name}"] = length(on, np.full(len(on), float(rows.shape[axis]))) + SIDE * len(on)
    found["the densities of row and column, together"] = product(rows)
    found["the mark before"] = by_class(marks[1:], marks[:-1].astype(np.intp), 2)
    other = np.zeros(n, np.intp) if before is None else before.astype(np.intp)
    found["the mark of the task before"] = by_class(marks, other, 2)
    edges = np.quantile(np.abs(base[:: max(1, n // 65536)]), np.linspace(0, 1, 17)[1:-1])
    found["|θ0|"] = by_class(marks, np.searchsorted(edges, np.abs(base)), 16)
    return found


def main() -> None:
    import tallstore

    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="packed with its base")
    arguments = parser.parse_args()
    totals: dict[str, float] = {}
    parameters = marks_in_all = coded = 0
    with tallstore.open(arguments.archive) as zoo:
        before: dict[str, Marks] = {}
        for task in zoo.tasks:
            for name, facts in zoo.tensors(task).items():
                if facts.kind not in {"binary", "signed"} or len(facts.shape) < 2 or facts.base is None:
                    continue
                marks = zoo.mask(task, name).numpy().reshape(-1) != 0
                base = zoo.base(facts.base).float().numpy().reshape(-1)[: len(marks)]
                for key, value in lengths(marks, facts.shape, before.get(name), base).items():
                    totals[key] = totals.get(key, 0.0) + value
                before[name] = marks
                parameters += len(marks)
                marks_in_all += int(marks.sum())
                coded += 8 * facts.bytes
    plain = next(iter(totals.values()))
    rows = [
        (
            "`adaptive`, as it is, without signs",
            f"{(coded - marks_in_all) / parameters:.4f}",
            f"{(coded - marks_in_all) / plain - 1:+.1%}",
        )
    ]
    rows += [
        (f"ideal, knowing {key}", f"{value / parameters:.4f}", f"{value / plain - 1:+.1%}")
        for key, value in totals.items()
    ]
    print(f"{describe_machine()}\n\n{table(('code', 'bits a masked parameter', 'against the first ideal'), rows)}")


if __name__ == "__main__":
    main()
