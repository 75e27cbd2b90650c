"""How long mask statistics take on a large zoo: an archive of random masks is made, and counted.

The archive is synthetic: transformer layers of width 768 until there are PARAMETERS, random symbols of one density,
and a base that is only referenced. So that it is made quickly, every task draws its chunks from a few coded ones; what
is read, checked, decoded and counted is as much as if they were all different.

example:
  python benchmarks/mask_statistics.py
  python benchmarks/mask_statistics.py --tasks 20 --parameters 88e6 --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
from common import MIB, describe_machine, table

import tallstore
from tallstore import codecs
from tallstore.encoder.part_writer import PartWriter
from tallstore.format.manifest import MANIFEST, Base, BaseTensor, Group, Manifest, PartRecord, Task
from tallstore.format.part import Entry
from tallstore.stores import open_sink

CHUNK = 1 << 20
WIDTH = 768
DIFFERENT = 7
"""Coded chunks that a task draws from."""


@dataclass(frozen=True)
class Case:
    """A kind of archive."""

    name: str
    kind: str
    density: float
    mask: str
    vector: str


CASES = (
    Case("signed, 20 % on, adaptive (recipe solo)", "signed", 0.20, "adaptive", "ones"),
    Case("signed, 8 % on, adaptive: gaps", "signed", 0.08, "adaptive", "ones"),
    Case("binary, 45 % on, adaptive, v q4 (fit, tall)", "binary", 0.45, "adaptive", "q4"),
    Case("binary, 45 % on, bits, v bf16", "binary", 0.45, "bits", "bf16"),
)


def shapes(parameters: float) -> dict[str, tuple[int, int]]:
    """Layers of four matrices, until there are enough parameters."""
    found: dict[str, tuple[int, int]] = {}
    layer = 0
    while sum(a * b for a, b in found.values()) < parameters:
        for name, times in (("attn.qkv", 3), ("attn.out", 1), ("mlp.up", 4), ("mlp.down", 4)):
            found[f"layers.{layer}.{name}.weight"] = (times * WIDTH, WIDTH)
        layer += 1
    return found


def make(path: Path, case: Case, tasks: int, tensors: dict[str, tuple[int, int]], chunk: int = CHUNK) -> None:
    """Write the archive, in chunks of so many elements."""
    random = np.random.default_rng(0)
    names = [f"task{n:02}" for n in range(tasks)]
    parts: dict[str, PartRecord] = {}
    with open_sink(path, overwrite=True) as sink:
        # Of one magnitude, so that no codec rounds a value to 0 and the expected profile is known.
        values = (random.choice([-1e-3, 1e-3], CHUNK)).astype(np.float32)
        entries = {name: Entry(kind="vector", shape=shape) for name, shape in tensors.items()}
        vector = PartWriter(sink, "vector/0.safetensors", "vector", "0")
        fill(vector, entries, case.vector, lambda n: codecs.VECTOR[case.vector].encode(values[:n]), chunk)
        vectors = vector.finish()
        parts |= vectors
        entries = {n: Entry(kind=case.kind, dtype="F32", shape=shape, base=n) for n, shape in tensors.items()}
        for name in names:
            mask = PartWriter(sink, f"tasks/{name}/mask.safetensors", "mask", name)
            fill(mask, entries, case.mask, Chunks(case, random).draw, chunk)
            parts |= mask.finish()
        identity = {n: BaseTensor(dtype="F32", shape=shape, sha256="0" * 64) for n, shape in tensors.items()}
        manifest = Manifest(
            base=Base(storage="reference", tensors=identity),
            groups=(Group(id="0", tasks=tuple(names), parts=tuple(vectors), recipe={"id": "synthetic"}),),
            tasks={n: Task(group="0", parts={"mask": (f"tasks/{n}/mask.safetensors",)}) for n in names},
            parts=parts,
        )
        data = manifest.to_bytes()
        sink.put(MANIFEST, [data], len(data))
        sink.commit()


class Chunks:
    """A task's coded chunks: a few different ones, drawn at random."""

    def __init__(self, case: Case, random: np.random.Generator) -> None:
        self._case, self._random = case, random
        self._known: dict[tuple[int, int], bytes] = {}
        top = 2 if case.kind == "signed" else 1
        on = [random.random(CHUNK) < case.density for _ in range(DIFFERENT)]
        self._symbols = [each * random.integers(1, top + 1, CHUNK, dtype=np.uint8) for each in on]

    def draw(self, n: int) -> bytes:
        """Code of n symbols."""
        key = int(self._random.integers(DIFFERENT)), n
        if key not in self._known:
            self._known[key] = codecs.MASK[self._case.mask].encode(self._symbols[key[0]][:n], self._case.kind)
        return self._known[key]


def fill(
    writer: PartWriter, entries: dict[str, Entry], codec: str, code: Callable[[int], bytes], chunk: int = CHUNK
) -> None:
    """Write every tensor of a part."""
    for name, entry in entries.items():
        writer.begin()
        for start in range(0, entry.numel, chunk):
            writer.add(code(min(chunk, entry.numel - start)))
        writer.end(name, codec, chunk, entry)


def measure(case: Case, tasks: int, tensors: dict[str, tuple[int, int]], threads: int | None) -> list[str]:
    """Make, count twice, and take the quicker."""
    with tempfile.TemporaryDirectory(prefix="mask_statistics-") as folder:
        path = Path(folder) / "zoo.tall"
        make(path, case, tasks, tensors)
        seconds, used = [], []
        for _ in range(2):
            with tallstore.open(path, threads=threads) as zoo:
                began, cpu = time.perf_counter(), time.process_time()
                found = zoo.mask_statistics()
                seconds.append(time.perf_counter() - began)
                used.append(time.process_time() - cpu)
        size = path.stat().st_size / MIB
    expected = {n: comb(tasks, n) * case.density**n * (1 - case.density) ** (tasks - n) for n in range(tasks + 1)}
    worst = max(abs(found.profile[n] - share) for n, share in expected.items())
    marks = f"{worst:.4f}"
    return [case.name, f"{size:.0f}", f"{min(seconds):.1f}", f"{min(used):.1f}", marks]


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--parameters", type=float, default=88e6)
    parser.add_argument("--threads", type=int, help="default: as many as there are cores")
    arguments = parser.parse_args()
    tensors = shapes(arguments.parameters)
    count = sum(a * b for a, b in tensors.values())
    rows = [measure(case, arguments.tasks, tensors, arguments.threads) for case in CASES]
    print(describe_machine())
    print(f"{arguments.tasks} tasks × {count / 1e6:.1f} M parameters, threads: {arguments.threads or 'all'}\n")
    head = ("masks", "archive, MiB", "seconds", "processor seconds", "largest error of the profile")
    print(table(head, rows))


if __name__ == "__main__":
    main()
