"""zstd frames in coded bytes: found, opened, changed and closed again, so that a mutation reaches what is in them."""

from __future__ import annotations

import random

import zstandard

from .base import Plain

MAGIC = b"\x28\xb5\x2f\xfd"
_MOST = 1 << 20


def mutate(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    """Mostly what is in a frame, behind another frame of the right size; now and then the bytes as they lie."""
    starts = [at for at in range(len(data)) if data.startswith(MAGIC, at)]
    if not starts or chance.random() < 0.3:
        return plain(data, most)
    at = chance.choice(starts)
    opened = _open(data[at:])
    if opened is None:
        return plain(data, most)
    inner, end = opened
    inner = _changed(inner, chance, plain)
    frame = zstandard.ZstdCompressor(level=chance.choice((1, 3, 19)), write_content_size=True).compress(inner)
    return _announced(data[:at], at, end, len(frame), chance) + frame + data[at + end :]


def _changed(inner: bytes, chance: random.Random, plain: Plain) -> bytes:
    """Often of the same length: it is known outside the frame."""
    found = plain(inner, max(1, min(_MOST, 2 * len(inner) + 8))) if inner else bytes(chance.randrange(4))
    return found[: len(inner)].ljust(len(inner), b"\0") if chance.random() < 0.7 else found


def _open(data: bytes) -> tuple[bytes, int] | None:
    """What the frame holds that `data` begins with, and how long it is."""
    try:
        if not 0 <= zstandard.frame_content_size(data) <= _MOST:
            return None
        one = zstandard.ZstdDecompressor().decompressobj()
        inner = one.decompress(data)
        return inner, len(data) - len(one.unused_data)
    except zstandard.ZstdError:
        return None


def _announced(before: bytes, at: int, old: int, new: int, chance: random.Random) -> bytes:
    """What lies before a frame, a u32 there that says how long it is put right."""
    places = [p for p in range(max(0, at - 64), at - 3) if int.from_bytes(before[p : p + 4], "little") == old]
    if not places or chance.random() < 0.1:
        return before
    place = places[-1]
    return before[:place] + new.to_bytes(4, "little") + before[place + 4 :]
