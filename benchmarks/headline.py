"""The paper's headline at its own shapes: 20 ViT-B/32-shaped checkpoints, in the paper's accounting and on disk.

Of each checkpoint P = 87.8 M parameters are fine-tuned and F = 25.8 M frozen, fp32. The paper counts 32 (20 P + F) bits
of checkpoints, frozen weights once, and 32 (P + F) + 32 P + 20 P bits packed: base, vector, a bit a parameter and task.
The same is read off files here, packed with codecs `f32`, `bits` and `raw`; then by this package, at the bits that its
qualities take of real tunes. The task vectors are synthetic, their statistics those of the real zoo (see
`synthetic.py`), so bytes are measured, not accuracy.

example:
  python benchmarks/headline.py /tmp/synthetic
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import describe_machine, sole_user, table
from synthetic import WEIGHTS, make_checkpoints, vit_b32

TASKS = 20
RATES = {"small": 0.18, "balanced": 0.50, "high": 0.75}
"""Bits that the qualities take of the real zoo. Rows of synthetic task vectors have no direction in common: a quality
foretells a divergence of them, and asks for bits, as of no real tune."""
GOALS = {"0.18 bits, as small": ("≤ 4.0", "≤ 1.1")}
PAPER = {"recipe": "tall", "lam": 0.4, "vector": "f32", "mask": "bits", "base_codec": "raw"}
OWN: Mapping[str, dict[str, Any]] = {f"{bits} bits, as {name}": {"bits": bits} for name, bits in RATES.items()}


def packed_bits(folder: Path, base: Path, tasks: Mapping[str, Path], options: dict[str, Any]) -> dict[str, float]:
    """Gigabits of an archive: all of it, and all but the base."""
    import tallstore

    archive = folder / "headline.tall"
    began = time.perf_counter()
    tallstore.pack(base, tasks, archive, overwrite=True, **options)
    seconds = time.perf_counter() - began
    with tallstore.open(archive) as zoo:
        base_bytes = zoo.info()["bytes"]["base"]
    size = archive.stat().st_size
    archive.unlink()
    return {"all": 8e-9 * size, "rest": 8e-9 * (size - base_bytes), "seconds": seconds}


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the checkpoints go: 9.5 GB")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    specs = vit_b32()
    moved = sum(s.numel for s in specs if s.sort != "frozen")
    frozen = sum(s.numel for s in specs if s.sort == "frozen")
    with sole_user(arguments.folder):
        base, tasks = make_checkpoints(arguments.folder, specs, TASKS)
        files = sum((path / WEIGHTS).stat().st_size for path in tasks.values())
        found = {"paper's codecs": packed_bits(arguments.folder, base, tasks, PAPER)}
        for name, options in OWN.items():
            found[name] = packed_bits(arguments.folder, base, tasks, options)
    checkpoints = 8e-9 * (files - (TASKS - 1) * 4 * frozen)
    formulas = {
        "checkpoints": 32e-9 * (TASKS * moved + frozen),
        "packed": 1e-9 * ((64 + TASKS) * moved + 32 * frozen),
    }
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "checkpoints": checkpoints, "formulas": formulas, **found}))
        return
    paper = found["paper's codecs"]
    rows = [
        ("checkpoints, frozen weights once", f"{checkpoints:.2f}", "", f"{formulas['checkpoints']:.2f}", ""),
        (
            "paper's codecs: f32, bits, raw",
            f"{paper['all']:.2f}",
            f"{paper['rest']:.2f}",
            f"{formulas['packed']:.2f}",
            "",
        ),
    ]
    for name in OWN:
        each = found[name]
        goal = " and ".join(GOALS.get(name, ()))
        rows.append((name, f"{each['all']:.2f}", f"{each['rest']:.2f}", "", goal))
    print(describe_machine(), end="\n\n")
    print(f"P = {moved / 1e6:.1f} M, F = {frozen / 1e6:.1f} M, {TASKS} tasks. Gigabits.", end="\n\n")
    print(table(("", "with the base inside", "beside a referenced base", "by the paper's formula", "goal"), rows))


if __name__ == "__main__":
    main()
