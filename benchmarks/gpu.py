"""Kernels on a GPU beside a plain copy on the same card: decoding and switching a 7B model, encoding 8 and 20 tasks.

Mixed batches of 8 tasks, too: the linear layers of the same model for some tokens of each, base and differences, beside
the same by decoding each task's layer and multiplying by it.

The floor is measured in the same run: bytes that must move, over the bandwidth that `Tensor.copy_` reaches. A share of
100 % means: as fast as that copy would move as many bytes. The model has the tensors of Llama 2 7B, in bfloat16
(`--layers` makes it smaller); encoding works on tensors of `--elements` parameters. Each row is the median of
`--repeat` runs with its quartiles, timed by the card's own events; "wall" is what a caller waits for.

Without a GPU it says so, and exits with status 2.

example:
  python benchmarks/gpu.py
  python benchmarks/gpu.py --layers 8 --elements 16 --repeat 10
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from common import MIB, describe_machine, table
from torch import Tensor

from tallstore.kernels.reference import packed_size
from tallstore.kernels.rules import Rule
from tallstore.recipes import make_recipe

DEVICE = "cuda"
CHUNK = 1 << 20
WIDTH, INNER, VOCABULARY = 4096, 11008, 32000
TASKS = (8, 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="layers of the model (default: 32)")
    parser.add_argument("--elements", type=int, default=64, help="millions of parameters to encode (default: 64)")
    parser.add_argument("--repeat", type=int, default=30, help="runs of each row (default: 30)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing to measure", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, {card.total_memory / (1 << 30):.0f} GiB; {describe_machine()}, CUDA {torch.version.cuda}\n")
    floor = copy_floor(arguments.repeat)
    print(f"copy: {floor.rate / 1e12:.3f} TB/s read and written (quartiles {floor.spread('rate')})\n")
    print(decoding(arguments.layers, arguments.repeat, floor.rate), "\n")
    print(encoding(arguments.elements * 1_000_000, arguments.repeat, floor.rate), "\n")
    print(mixing(min(arguments.layers, 4), arguments.repeat, floor.rate))
    return 0


@dataclass(frozen=True)
class Timed:
    """Runs of one thing, in seconds, and the bytes that each must move."""

    bytes: int
    card: list[float]
    wall: list[float]

    @property
    def rate(self) -> float:
        return self.bytes / statistics.median(self.card)

    def spread(self, what: str) -> str:
        low, _, high = statistics.quantiles(self.card, n=4)
        if what == "rate":
            return f"{self.bytes / high / 1e12:.3f}-{self.bytes / low / 1e12:.3f}"
        return f"{1e3 * low:.3f}-{1e3 * high:.3f}"

    def row(self, name: str, floor: float) -> tuple[str, ...]:
        median = statistics.median(self.card)
        share, wall = 100 * self.rate / floor, 1e3 * statistics.median(self.wall)
        return (
            name,
            f"{self.bytes / 1e9:.2f}",
            f"{1e3 * median:.3f}",
            self.spread("time"),
            f"{share:.0f} %",
            f"{wall:.3f}",
        )


HEAD = ("", "GB moved", "ms", "quartiles", "share of copy", "wall ms")


def timed(run: Callable[[], object], moved: int, repeat: int) -> Timed:
    """Run three times unmeasured (kernels are compiled then), and `repeat` times measured."""
    card, wall = [], []
    for number in range(repeat + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            wall.append(time.perf_counter() - start)
            card.append(begin.elapsed_time(end) / 1e3)
    return Timed(moved, card, wall)


def copy_floor(repeat: int) -> Timed:
    source = torch.empty(2048 * MIB, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), 2 * source.numel(), repeat)


def shapes(layers: int) -> Iterator[int]:
    """Elements of every tensor of the model."""
    yield VOCABULARY * WIDTH
    for _ in range(layers):
        yield from (WIDTH * WIDTH,) * 4
        yield from (WIDTH * INNER,) * 3
        yield from (WIDTH,) * 2
    yield WIDTH
    yield VOCABULARY * WIDTH


def size(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def decoding(layers: int, repeat: int, floor: float) -> str:
    from tallstore.kernels.gpu.decode import apply_packed_delta, apply_packed_mask

    bases = [torch.randn(n, dtype=torch.bfloat16, device=DEVICE) for n in shapes(layers)]
    outs = [torch.empty_like(base) for base in bases]
    count = sum(map(len, bases))
    chunks = [-(-len(base) // CHUNK) for base in bases]
    scales = [torch.rand(k, device=DEVICE) for k in chunks]
    tables = [torch.randn(k, 16, device=DEVICE) * 0.01 for k in chunks]
    indices = [torch.randint(256, (-(-len(base) // 2),), dtype=torch.uint8, device=DEVICE) for base in bases]
    ones: list[Tensor | None] = [None] * len(bases)
    weights = 2 * sum(map(size, bases))
    rows = []

    def measure(name: str, run: Callable[..., object], moved: int, *tensors: Sequence[Tensor | None]) -> None:
        """`run` for every tensor of the model."""

        def run_all() -> None:
            for each in zip(outs, bases, *tensors, strict=True):
                run(*each)

        rows.append(timed(run_all, weights + moved, repeat).row(name, floor))

    measure("copy, tensor by tensor", torch.Tensor.copy_, 0)
    levels = partial(apply_packed_delta, bits=4, chunk=CHUNK)
    measure("4-bit levels", lambda o, b, p, t: levels(o, b, p, tables=t), sum(map(size, indices)), indices, tables)
    for kind, v in (("signed", "1"), ("binary", "4 bits"), ("signed", "4 bits"), ("binary", "float32")):
        codes = [torch.randint(256, (packed_size(kind, len(b)),), dtype=torch.uint8, device=DEVICE) for b in bases]
        if kind == "signed":
            # Symbols 0, 1 and 2 alone: 3 is none.
            codes = [code & ~((code & 0x55) << 1) for code in codes]
        vectors = ones
        if v != "1":
            vectors = list(indices) if v == "4 bits" else [torch.randn(len(base), device=DEVICE) for base in bases]
        masks = partial(apply_packed_mask, kind=kind, chunk=CHUNK)
        measure(
            f"{kind} mask, v: {v}",
            lambda o, b, p, s, v, t, masks=masks: masks(o, b, p, scales=s, vector=v, vector_tables=t),
            sum(map(size, codes)) + sum(map(size, vectors)),
            codes,
            scales,
            vectors,
            tables if v == "4 bits" else ones,
        )
        del codes, vectors
    return f"Decoding {count / 1e9:.2f} G parameters, bfloat16, {len(bases)} tensors\n\n" + table(HEAD, rows)


def rules(count: int) -> Iterator[tuple[str, Rule | None]]:
    every = range(count)
    yield "tall", make_recipe("tall", lam=0.4).rule(every, "")
    yield "emr", make_recipe("emr").rule(every, "")
    yield "fit", make_recipe("fit").rule(every, "")
    # Its statistics would choose these numbers.
    hard = Rule(vector="ones", mask="above", signed=True, limits=(0.01,) * count)
    yield "solo, hard", hard
    yield "solo, drawn", replace(hard, limits=(0.005,) * count, widths=(0.02,) * count, seeds=tuple(every))


def encoding(n: int, repeat: int, floor: float) -> str:
    from tallstore.kernels.gpu.encode import encode, packed_stride

    rows = []
    vector = torch.empty(n, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float32):
        base = torch.randn(n, device=DEVICE).to(dtype)
        tasks = [(base + 0.01 * torch.randn(n, device=DEVICE)).to(dtype) for _ in range(max(TASKS))]
        for count in TASKS:
            for name, rule in rules(count):
                assert rule is not None
                kind = "signed" if rule.signed else "binary"
                packed = torch.empty(count, packed_stride(kind, n), dtype=torch.uint8, device=DEVICE)
                v = None if rule.vector == "ones" else vector
                run = partial(encode, base, tasks[:count], rule, packed=packed, vector=v)
                moved = (1 + count) * size(base) + size(v) + count * packed_size(kind, n)
                label = f"{name}, T = {count}, {str(dtype).removeprefix('torch.')}"
                rows.append(timed(run, moved, repeat).row(label, floor))
    return f"Encoding {n / 1e6:.0f} M parameters\n\n" + table(HEAD, rows)


def mixing(layers: int, repeat: int, floor: float) -> str:
    """Mixed batches: what must move is the base once, and the codes of every task."""
    from tallstore.kernels.gpu.decode import apply_packed_mask
    from tallstore.kernels.gpu.products import TritonProducts

    sizes = [*[(WIDTH, WIDTH)] * 4, (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)] * layers
    bases = [torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE) for shape in sizes]
    outs = [torch.empty_like(base) for base in bases]
    count, products, rows = TASKS[0], TritonProducts(), []
    tasks = [[signed_rows(base) for _ in range(count)] for base in bases]
    codes = sum(each.nbytes for layer in tasks for each in layer)

    for tokens in (1, 8, 32):
        inputs = {n: torch.randn(count * tokens, n, dtype=torch.bfloat16, device=DEVICE) for n in (WIDTH, INNER)}

        def mixed(tokens: int = tokens, inputs: dict[int, Tensor] = inputs) -> None:
            for base, own in zip(bases, tasks, strict=True):
                x = inputs[base.shape[1]]
                out = torch.nn.functional.linear(x, base).float()
                runs = [(each, None, n * tokens, (n + 1) * tokens) for n, each in enumerate(own)]
                products.add(out, x.float(), base, None, runs)

        def apart(tokens: int = tokens, inputs: dict[int, Tensor] = inputs) -> None:
            for base, out, own in zip(bases, outs, tasks, strict=True):
                x = inputs[base.shape[1]]
                for n, each in enumerate(own):
                    scales = each.tables[:, 1].contiguous()
                    apply_packed_mask(out.view(-1), base.view(-1), each.codes, "signed", scales, CHUNK)
                    torch.nn.functional.linear(x[n * tokens : (n + 1) * tokens], out)

        moved = sum(map(size, bases)) + codes
        rows.append(timed(mixed, moved, repeat).row(f"mixed, {tokens} tokens a task", floor))
        rows.append(timed(apart, moved, repeat).row(f"task after task, {tokens} tokens", floor))
    return f"Linear layers of {layers} blocks, {count} tasks, bfloat16, signed codes\n\n" + table(HEAD, rows)


def signed_rows(base: Tensor) -> Any:
    """A task's difference: symbols 0, 1 and 2 with a scale a chunk."""
    from tallstore.kernels.device_rows import DeviceRows

    code = torch.randint(256, (packed_size("signed", base.numel()) + 8,), dtype=torch.uint8, device=base.device)
    scale = torch.rand(-(-base.numel() // CHUNK), 1, device=base.device) * 0.01
    tables = torch.cat([torch.zeros_like(scale), scale, -scale, torch.zeros_like(scale)], 1)
    return DeviceRows(
        codes=code & ~((code & 0x55) << 1), tables=tables, bits=2, chunk=CHUNK, rows=base.shape[0],
        width=base.shape[1], dtype=base.dtype, marks=base.numel() * 2 // 3,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
