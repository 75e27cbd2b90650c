"""What it costs to give every task back bit for bit: tallstore's exact parts beside other lossless codings.

ZOO holds `base/` and a folder a task, as Hugging Face checkpoints. Bits are bytes on disk over the parameters of all
tasks, the base apart. "xor" is the task's bits against the base's; zipnn is measured where it is installed.

With `--once`, tasks of any type, one by one: what `--exact` reads for a plain extraction and for an exact one, and what
`--quality lossless` reads for both.

examples:
  python benchmarks/exactness.py ~/zoo
  python benchmarks/exactness.py ~/zoo --once trec agnews
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from common import describe_machine, table
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tallstore
from tallstore import codecs

CHUNK = 1 << 20
WEIGHTS = "model.safetensors"
Words = NDArray[np.uint32]


def pairs(zoo: Path, task: str) -> Iterator[tuple[Words, Words | None]]:
    """Each float32 tensor of a task as words, and the base's that it comes from, if any; `bert.` is a prefix."""
    base = load_file(zoo / "base" / WEIGHTS)
    for name, tensor in load_file(zoo / task / WEIGHTS).items():
        start = base.get(name.removeprefix("bert."))
        words = tensor.reshape(-1).view(np.uint32)
        yield words, None if start is None else start.reshape(-1).view(np.uint32)


def planes(words: Words, dtype: str) -> int:
    codec = codecs.WHOLE["planes+zstd"]
    return sum(len(codec.encode(words[a : a + CHUNK].view(np.uint8), dtype)) for a in range(0, len(words), CHUNK))


def others(zoo: Path, tasks: list[str]) -> dict[str, int]:
    """Bytes of every other coding, all tasks together."""
    found = {"planes+zstd of each tensor": 0, "xor, then zstd (level 3)": 0, "xor, then planes+zstd": 0}
    plain = zstandard.ZstdCompressor(level=3)
    zip_nn = _zipnn()
    for task in tasks:
        for words, start in pairs(zoo, task):
            against = words if start is None else words ^ start
            found["planes+zstd of each tensor"] += planes(words, "F32")
            found["xor, then zstd (level 3)"] += len(plain.compress(against.tobytes()))
            found["xor, then planes+zstd"] += planes(against, "U32")
            if zip_nn is not None:
                found["zipnn"] = found.get("zipnn", 0) + len(zip_nn.compress(bytearray(words.tobytes())))
    return found


def _zipnn() -> Any:
    try:
        from zipnn import ZipNN
    except ImportError:
        return None
    return ZipNN(input_format="byte", bytearray_dtype="float32")


def compare_once(zoo: Path, tasks: list[str]) -> None:
    """Print, of each task, what `exact` and `quality="lossless"` store, without the files beside the weights."""
    rows = []
    for task in tasks:
        for name, options in (("--exact", {"exact": True}), ("--quality lossless", {"quality": "lossless"})):
            with tempfile.TemporaryDirectory() as scratch:
                began = time.process_time()
                report = tallstore.pack(
                    zoo / "base", {task: zoo / task}, Path(scratch) / "zoo.tall", base_storage="reference", **options
                )
                seconds = time.process_time() - began
            sizes, parameters = report.bytes, report.tasks[task].parameters
            plain = sizes["masks"] + sizes["vector"] + sizes["private"]
            bits = [f"{8 * size / parameters:.3f}" for size in (plain, plain + sizes["exact"])]
            rows.append((task, name, *bits, f"{seconds:.1f}"))
    print(describe_machine(), "\n")
    print(table(("task", "packed with", "bits, plain", "bits, exact", "processor seconds"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("--once", metavar="TASK", nargs="+", help="these tasks, in two layers and without loss")
    arguments = parser.parse_args()
    zoo: Path = arguments.zoo
    if arguments.once:
        compare_once(zoo, arguments.once)
        return
    tasks = sorted(p.name for p in zoo.iterdir() if p.name != "base" and (p / WEIGHTS).exists())
    with tempfile.TemporaryDirectory() as scratch:
        report = tallstore.pack(zoo / "base", {t: zoo / t for t in tasks}, Path(scratch) / "zoo.tall", exact="all")
        with tallstore.open(report.path) as opened:
            for task in tasks:
                state, original = opened.state_dict(task, exact=True), load_file(zoo / task / WEIGHTS)
                assert all(
                    np.array_equal(state[n].numpy().view(np.uint32), t.view(np.uint32)) for n, t in original.items()
                )
    sizes = report.bytes
    parameters = sum(task.parameters for task in report.tasks.values())
    lossy = sizes["masks"] + sizes["vector"] + sizes["private"]
    rows = [("tallstore, defaults (lossy)", lossy), ("tallstore, defaults and exact parts", lossy + sizes["exact"])]
    rows += sorted(others(zoo, tasks).items(), key=lambda item: item[1])
    print(describe_machine(), "\n")
    print(table(("coding", "bits a parameter and task", "of the checkpoints"), [
        (name, f"{8 * size / parameters:.2f}", f"{size / (4 * parameters):.1%}") for name, size in rows
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
