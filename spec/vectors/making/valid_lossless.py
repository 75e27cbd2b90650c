"""Valid vectors of the kind `lossless`: tasks' tensors as they are, given the base's."""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs.lattice import written
from tallstore.codecs.lattice_model import lowest
from tallstore.kernels.lattice import LATTICES, Model, Rows, encode, prepare, segments_of

from .build import CHUNK, lossless
from .numbers import BYTES, Tensor, bits, converted, noise, noise_bytes
from .valid import Case, One, case

TYPES = ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
ODD = [0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 1, 0x8001, 0x3F80, 0xBF80, 0x7F7F, 0x0080]
"""Bits of bfloat16: zeros, infinities, NaN, subnormal numbers, the largest."""


def stepped(base: Tensor, seed: str, size: float) -> Tensor:
    """A tensor some units away from the base's, most of them none, a few very many."""
    word = np.dtype(f"<u{BYTES[base.dtype]}")
    words = np.frombuffer(base.data, word)
    steps = np.rint(noise(seed, len(words), 122, 126).astype(np.float64) * size).astype(np.int64)
    steps[::97] *= 1000
    data = (words.astype(np.int64) + steps).astype(word).tobytes()
    return Tensor(base.dtype, base.shape, data)


@case
def lattice() -> Case:
    """Codec `lattice`: every type and mode, segments, directions, lanes, several chunks."""
    one = One(whole_codec="planes+zstd")
    for dtype in TYPES:
        shape = (30, 50) if dtype in {"BF16", "F32"} else (700,)
        n = int(np.prod(shape))
        raw = noise_bytes(f"lattice {dtype}", n * BYTES[dtype])
        base = Tensor(dtype, shape, raw)
        if dtype in {"F32", "BF16"}:
            base = Tensor(dtype, shape, converted(Tensor("F32", shape, noise(f"lattice {dtype}", n).tobytes()), dtype))
        one.base[dtype] = base
        for name, size in (("small steps", 1.5), ("large steps", 300.0)):
            task = stepped(base, f"{dtype} {name}", size)
            one.put(f"{dtype} {name}", lossless(task, base, dtype, "lattice"), dtype, shape, task.data)
    base = bits("BF16", ODD * 3, (6, 6))
    one.base["odd"] = base
    task = bits("BF16", (ODD[5:] + ODD[:5]) * 3, (6, 6))
    one.put("odd numbers", lossless(task, base, "odd", "lattice"), "BF16", (6, 6), task.data)
    by_mode = {
        "mode 0": (b"\0", base),
        "mode 1": (b"\1" + struct.pack("<II", 36, 36) + bytes([3]) * 36 + bytes(36), _less_two(base)),
        "mode 2": (b"\2" + _planes(task), task),
    }
    for name, (data, wanted) in by_mode.items():
        facts, _ = lossless(task, base, "odd", "lattice")
        one.put(name, (facts, [data]), "BF16", (6, 6), wanted.data)
    wide = Tensor("BF16", (8, 6), base.data + task.data[:24])
    one.privates["rows"] = lossless_rows(one, base, wide)
    other = stepped(Tensor("F16", (30, 50), converted(one.base["BF16"], "F16")), "other", 1.0)
    before = Tensor("F16", (30, 50), converted(one.base["BF16"], "F16"))
    one.put("of another type", lossless(other, before, "BF16", "lattice"), "F16", (30, 50), other.data)
    for dtype, k in (("BF16", 3), ("F32", 8)):
        before = one.base[dtype]
        task = stepped(before, f"{dtype} directions", 2.0)
        facts, _ = lossless(task, before, dtype, "lattice", chunk=2048)
        one.put(f"{dtype} directions", (facts, [directed(task, before, k)]), dtype, (30, 50), task.data)
    found = one.case(
        "kind lossless with codec lattice: every type and mode, directions, other types, odd numbers, rows", file=True
    )
    found.archive.since("1.1", "mask")
    return found


def directed(task: Tensor, base: Tensor, k: int) -> bytes:
    """One chunk whose model has k directions, the first segment being shorter than the others."""
    kind = LATTICES[task.dtype]
    after, before = (np.frombuffer(each.data, kind.word) for each in (task, base))
    low, n = lowest(kind, before), len(before)
    steps, segments = prepare(kind, after, before, low), segments_of(n, 100, 30)
    numbers = np.frombuffer(noise_bytes(f"directions {k}", k * (segments + 100)), np.uint8) % 15
    across, along = np.split(numbers.astype(np.int8) - np.int8(7), [k * segments])
    rows = Rows(
        width=100,
        first=30,
        shifts=np.arange(segments, dtype=np.uint8) % np.uint8(3),
        across=across.reshape(segments, k),
        along=along.reshape(k, 100),
        marks=np.array([10, 40, 41], np.uint16),
    )
    every = 2 * int(np.abs(steps.symbols).max()) + 1
    weights = np.frombuffer(noise_bytes(f"weights {k}", 5 * every), np.uint8).reshape(5, every) % 20 + np.uint8(20)
    table = np.frombuffer(noise_bytes(f"tables {k}", 4 * 18), np.uint8).reshape(4, 18) % 5
    model = Model(bits=12, low=low, rows=rows, table=table.copy(), weights=weights.copy())
    return written(encode(steps, model, 16), model)


def lossless_rows(one: One, base: Tensor, task: Tensor) -> tuple[dict[str, object], list[bytes]]:
    """Put a tensor of two rows more than the base's; returns the private item of those."""
    from .build import whole

    head = Tensor(task.dtype, base.shape, task.data[: len(base.data)])
    facts, coded = lossless(head, base, "odd", "lattice", shape=list(task.shape), rows=base.shape[0])
    one.put("rows", (facts, coded), task.dtype, task.shape, task.data)
    rest = Tensor(task.dtype, (task.shape[0] - base.shape[0], *task.shape[1:]), task.data[len(base.data) :])
    return whole(rest, "raw", CHUNK)


def _less_two(base: Tensor) -> Tensor:
    """z = 3 everywhere: d = −2."""
    words = np.frombuffer(base.data, "<u2") - np.uint16(2)
    return Tensor(base.dtype, base.shape, words.tobytes())


def _planes(tensor: Tensor) -> bytes:
    """`planes+zstd` of bfloat16, every plane as it is."""
    words = np.frombuffer(tensor.data, "<u2")
    words = words << np.uint16(1) | words >> np.uint16(15)
    n = len(words)
    planes = [(words & 255).astype(np.uint8).tobytes(), (words >> np.uint16(8)).astype(np.uint8).tobytes()]
    return struct.pack("<II", n, n) + b"".join(planes)
