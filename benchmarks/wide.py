"""What rows have in common of wide matrices: bits, error and processor time by the size of chunks and of the sample.

BASE and TASK are folders of a bf16 model and its fine-tune. In chunks of fewer elements a chunk has as few rows for its
columns as usual chunks, of 2^20, have of wider matrices. `--samples` looks at fewer elements of each to find columns;
`--without` tells nothing first. Without folders, a layer of a decoder of width 4096 is made up, 155 M parameters:
noise, and 200 directions that fall off slowly, with 64 % of the energy. Each row is packed and decoded in one thread.

example:
  python benchmarks/wide.py ~/lm/base ~/lm/long --chunks 20 18 16 15
  python benchmarks/wide.py ~/lm/base ~/lm/long --samples 19 18 17
  python benchmarks/wide.py --bits 0.5 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import describe_machine, table
from safetensors.torch import save_file

import tallstore
from tallstore.recipes.low_rank import SHARES_OF_RMS

LAYER = {"q": (4096, 4096), "k": (1024, 4096), "o": (4096, 4096), "up": (14336, 4096), "down": (4096, 14336)}
DIRECTIONS, WEAKEST, SHARE, SIZE = 200, -1.3, 0.64, 2e-4
"""Of a made-up tune: how many, what power of ten the last is of the first, their share of the energy, and its size."""


def make_layer(folder: Path) -> tuple[Path, Path]:
    """A base and its fine-tune."""
    generator = torch.Generator().manual_seed(0)
    base, task = {}, {}
    for name, (rows, columns) in LAYER.items():
        weights = torch.randn(rows, columns, generator=generator) * 0.02
        left = torch.randn(rows, DIRECTIONS, generator=generator) * torch.logspace(0, WEAKEST, DIRECTIONS)
        common = left @ torch.randn(DIRECTIONS, columns, generator=generator)
        noise = torch.randn(rows, columns, generator=generator)
        base[name] = weights.bfloat16()
        moved = common / common.std() * SHARE**0.5 + noise * (1 - SHARE) ** 0.5
        task[name] = (base[name].float() + SIZE * moved).bfloat16()
    for name, state in (("base", base), ("task", task)):
        (folder / name).mkdir()
        save_file(state, folder / name / "model.safetensors")
    return folder / "base", folder / "task"


def measured(base: Path, task: Path, options: dict[str, Any], scratch: Path) -> list[str]:
    """Bits and the relative error, packing and decoding in nanoseconds of one processor a parameter."""
    target, began = scratch / "zoo.tall", time.process_time()
    tallstore.pack(base, {"task": task}, target, base_storage="reference", overwrite=True, workers=1, **options)
    packed = time.process_time()
    with tallstore.open(target, base=base, threads=1) as zoo:
        zoo.state_dict("task")
        again = time.process_time()
        zoo.state_dict("task")
        decoded = time.process_time()
        facts = zoo.manifest.tasks["task"]
        size = sum(zoo.manifest.parts[path].size for paths in facts.parts.values() for path in paths)
    count = facts.measured["parameters"]
    times = ((packed - began) / count, (decoded - again) / count)
    return [
        f"{8 * size / count:.3f}",
        f"{facts.measured['relative_error']:.3f}",
        *(f"{1e9 * each:.1f}" for each in times),
    ]


def rows(arguments: argparse.Namespace, base: Path, task: Path, scratch: Path) -> Iterator[list[str]]:
    """One a setting."""
    settings = [("default", {}), *((f"{bits:g} bits", {"bits": bits}) for bits in arguments.bits)]
    ways = [False, True] if arguments.without else [False]
    for chunk, sample, without, (name, options) in product(arguments.chunks, arguments.samples, ways, settings):
        with (
            patch("tallstore.encoder.driver.CHUNK_ELEMENTS", 1 << chunk),
            patch("tallstore.encoder.tensor_columns.SAMPLE", 1 << sample),
            patch("tallstore.encoder.sampled_rows.SHARES_OF_RMS", () if without else SHARES_OF_RMS),
        ):
            first = "nothing" if without else "columns once"
            yield [name, f"2^{chunk}", f"2^{sample}", first, *measured(base, task, options, scratch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("task", type=Path, nargs="?")
    parser.add_argument("--chunks", type=int, nargs="+", default=[20], help="powers of two")
    parser.add_argument("--samples", type=int, nargs="+", default=[24], help="powers of two")
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    parser.add_argument("--without", action="store_true", help="beside it, what packing takes that tells nothing first")
    arguments = parser.parse_args()
    if (arguments.base is None) != (arguments.task is None):
        parser.error("give a base and a task, or neither")
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base, task = (arguments.base, arguments.task) if arguments.base else make_layer(scratch)
        head = ["setting", "chunk", "sample", "told first", "bits", "relative error", "pack ns", "decode ns"]
        print(table(head, rows(arguments, base, task, scratch)))


if __name__ == "__main__":
    main()
