"""Valid vectors of what version 1.1 added to entries and codecs, with what they decode to."""

from __future__ import annotations

import struct

import zstandard

from .build import CHUNK, kept, lossless
from .numbers import BYTES, NEWER, Tensor, noise_bytes
from .valid import Case, One, case


def _newer(one: One, about: str) -> Case:
    """A vector of version 1.1."""
    archive = one.archive(version="1.1")
    for part in archive.parts().values():
        part.version = "1.1"
    return Case(about, archive, {one.task: one.decoded}, file=True)


@case
def types_of_1_1() -> Case:
    """Types that version 1.1 added: whole, the base's, and against the base's."""
    one = One()
    for dtype in NEWER:
        for shape in ((4, 2), (3, 2, 6), (0, 3), (64, 64)):
            n = Tensor(dtype, shape, b"").numel
            name, here = f"{dtype} {'x'.join(map(str, shape))}", Tensor(dtype, shape, noise_bytes(f"{dtype}{shape}", n))
            one.private(f"{name} private", here)
            one.start(name, here)
            one.put(f"{name} kept", kept(dtype, shape, name), dtype, shape, here.data)
            moved = bytes(byte ^ (at % 7 == 0) for at, byte in enumerate(here.data))
            own = Tensor(dtype, shape, moved)
            one.put(name, lossless(own, here, name), dtype, shape, moved)
    return _newer(one, "packed types, whose elements share bytes, and others of 1.1: private, the base's, by `lanes`")


@case
def lanes() -> Case:
    """Every form of a chunk of `lanes`, in every width."""
    one = One()
    for dtype in (each for each in BYTES if each not in NEWER):
        size, n = BYTES[dtype], 2500
        here = Tensor(dtype, (n,), noise_bytes(f"lanes {dtype}", n * size))
        one.start(dtype, here)
        draw = noise_bytes(f"lanes moves {dtype}", n * size)
        steps = bytearray(here.data)
        for at in range(1024 * size, n * size, size):  # the first chunk is the base's
            steps[at] = (steps[at] + (draw[at] % 3 == 0)) % 256 if at < 2048 * size else draw[at]
        own = Tensor(dtype, (n,), bytes(steps))
        one.put(dtype, lossless(own, here, dtype), dtype, (n,), own.data)
    base = Tensor("I64", (4,), bytes(range(32)))
    one.start("by hand", base)
    plane = zstandard.ZstdCompressor().compress
    for bits in (4, 8, 16, 32, 64):
        width = max(1, bits // 8)
        m = 32 // width
        marked = plane(bytes([3])), b"\0" + plane(bytes([1, *bytes(-(-m // 8) - 1)]))
        first = struct.pack("<II", len(marked[1]), len(marked[0])) + marked[1] + marked[0]
        zeros = plane(bytes(m))
        data = bytes([bits]) + first + (struct.pack("<II", 0, len(zeros)) + zeros) * (width - 1)
        item = {"kind": "lossless", "dtype": "I64", "shape": [4], "base": "by hand", "codec": "lanes", "chunk": CHUNK}
        # A 3 in the first lane: 3 more in a lane of four bits, 2 less in others, where it is zigzag.
        lane = int.from_bytes(base.data[:width], "little")
        moved = (3 if bits == 4 else (lane - 2) % 2**bits).to_bytes(width, "little")
        one.put(f"lanes of {bits}", (item, [data]), "I64", (4,), moved + base.data[width:])
    return _newer(one, "codec `lanes`: lanes of every width, the base's elements, the tensor's own, masked planes")
