"""How fast codecs decode and encode: one core, chunks of 2^20, parameters a second (masks) or bytes a second (base).

Masks are marks of the default recipe's kind at several densities; the base is a file's own weights. Bits are measured
on the same chunks, beside the entropy of marks that are independent of each other.

example:
  python benchmarks/codec_speed.py ~/zoo/base/model.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import describe_machine, table

N = 1 << 20
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.4)


def fastest(work: Callable[[], object], rounds: int = 15) -> float:
    """Seconds of processor time, the least of several."""
    work()
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def masks() -> str:
    from tallstore import codecs
    from tallstore.kernels import reference

    rng = np.random.default_rng(0)
    rows = []
    for name, codec in codecs.MASK.items():
        for density in DENSITIES:
            symbols = (rng.random(N) < density).astype(np.uint8) * rng.integers(1, 3, N).astype(np.uint8)
            packed = reference.pack(symbols, "signed")
            coded = codec.encode_packed(packed, "signed", N)
            entropy = density - sum(p * math.log2(p) for p in (density, 1 - density))
            rows.append(
                (
                    f"{name}, {density:.0%} on", f"{8 * len(coded) / N:.3f}", f"{entropy:.3f}",
                    f"{1e-9 * N / fastest(lambda d=coded, c=codec: c.decode_packed(d, 'signed', N)):.2f}",
                    f"{1e-9 * N / fastest(lambda p=packed, c=codec: c.encode_packed(p, 'signed', N)):.2f}",
                )
            )  # fmt: skip
    values = rng.standard_normal(N).astype(np.float32)
    for name in ("q4", "q5", "q8"):
        vector = codecs.VECTOR[name]
        data = vector.encode(values)
        rows.append(
            (
                f"{name}, all moved", f"{8 * len(data) / N:.3f}", "",
                f"{1e-9 * N / fastest(lambda d=data, c=vector: c.decode_levels(d, N)):.2f}",
                f"{1e-9 * N / fastest(lambda c=vector: c.encode(values), 3):.2f}",
            )
        )  # fmt: skip
    return table(("codec", "bits", "entropy", "decode, G/s", "encode, G/s"), rows)


def bases(weights: Path) -> str:
    import torch
    from safetensors.torch import load_file

    from tallstore import codecs
    from tallstore.tensors import as_bytes

    whole = torch.cat([t.reshape(-1).float() for t in load_file(weights).values() if t.is_floating_point()])
    rows = []
    codec = codecs.WHOLE["planes+zstd"]
    for dtype, name, goal in (
        (torch.float32, "F32", 0.825),
        (torch.bfloat16, "BF16", 0.67),
        (torch.float16, "F16", 0.85),
    ):
        chunks = [as_bytes(part.to(dtype).contiguous()) for part in whole.split(N)]
        coded = [codec.encode(chunk, name) for chunk in chunks]
        out = [np.empty_like(chunk) for chunk in chunks]

        def decode(coded: list[bytes] = coded, out: list[np.ndarray] = out, name: str = name) -> None:
            for data, into in zip(coded, out, strict=True):
                codec.decode(data, into, name)

        size = sum(len(chunk) for chunk in chunks)
        share = sum(map(len, coded)) / size
        rows.append((name, f"{share:.4f}", f"≤ {goal}", f"{1e-9 * size / fastest(decode, 3):.2f}"))
    return table(("base as", "of raw", "goal", "decode, GB/s and core"), rows)


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a safetensors file: the base")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n\n{masks()}\n\n{bases(arguments.weights)}")


if __name__ == "__main__":
    main()
