"""The second reader's codecs, written from `spec/codecs/` alone."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from .second_numbers import BYTES, LEVELS, ROTATED, SYMBOL_BITS, must, restored


def unframe(frame: bytes, size: int) -> bytes:
    """zstd.md"""
    must(frame[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    declared = zstandard.get_frame_parameters(frame)
    must(declared.content_size == size and not declared.dict_id, "a frame of another size")
    if size == 0:
        return b""
    data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    must(len(data) == size, "a frame holds less")
    return data


def decode_bits(data: bytes, n: int, kind: str) -> np.ndarray:
    b = SYMBOL_BITS[kind]
    must(len(data) == -(-b * n // 8), "bytes of a mask")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    must(not bits[b * n :].any(), "bits behind the last symbol")
    symbols = (bits[: b * n].reshape(n, b) << np.arange(b, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    must(not (symbols == 3).any(), "symbol 3")
    return symbols


def decode_bits_zstd(data: bytes, n: int, kind: str) -> np.ndarray:
    return decode_bits(unframe(data, -(-SYMBOL_BITS[kind] * n // 8)), n, kind)


def decode_adaptive(data: bytes, n: int, kind: str) -> np.ndarray:
    if data[0] == 0:
        return decode_bits_zstd(data[1:], n, kind)
    form, marks, gap_bytes, frame_bytes = struct.unpack_from("<IIII", data)
    must(form == 1 and marks <= n and gap_bytes <= marks + n // 255, "marks and gap bytes")
    gaps = unframe(data[16 : 16 + frame_bytes], gap_bytes)
    signs = data[16 + frame_bytes :]
    must(len(signs) == (-(-marks // 8) if kind == "signed" else 0), "sign bytes")
    negative = np.unpackbits(np.frombuffer(signs, np.uint8), bitorder="little")
    must(not negative[marks:].any(), "bits behind the last sign")
    symbols = np.zeros(n, np.uint8)
    at = seen = 0
    for byte in gaps:
        at += byte
        if byte < 255:
            must(at < n, "a mark behind the end")
            symbols[at] = 1 + (int(negative[seen]) if kind == "signed" else 0)
            at, seen = at + 1, seen + 1
    must(seen == marks and not gaps.endswith(b"\xff"), "number of marks")
    return symbols


def decode_vector(data: bytes, n: int, codec: str) -> np.ndarray:
    if codec == "ones":
        must(not data, "ones have no bytes")
        return np.ones(n, np.float32)
    if codec == "f32":
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif codec == "bf16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = decode_codebook(data, n, LEVELS[codec])
    must(len(values) == n and np.isfinite(values).all(), "not so many finite values")
    return values


def decode_codebook(data: bytes, n: int, most: int) -> np.ndarray:
    levels, bits, layout = struct.unpack_from("<HBB", data)
    must(1 <= levels <= most and bits in {4, 8} and (bits == 8 or levels <= 16), "a codebook's head")
    table, rest = np.frombuffer(data[4 : 4 + 4 * levels], "<f4"), data[4 + 4 * levels :]
    must(data[4:8] == bytes(4), "level 0 is not +0")
    if layout == 0:
        return table[unpack_indices(rest, n, bits, levels)]
    must(layout == 1, "a codebook's layout")
    mask_bytes = struct.unpack_from("<I", rest)[0]
    marks = decode_adaptive(rest[4 : 4 + mask_bytes], n, "binary") == 1
    values = np.zeros(n, np.float32)
    values[marks] = table[1:][unpack_indices(rest[4 + mask_bytes :], int(marks.sum()), bits, levels - 1)]
    return values


def unpack_indices(frame: bytes, m: int, bits: int, below: int) -> np.ndarray:
    packed = np.frombuffer(unframe(frame, -(-bits * m // 8)), np.uint8)
    indices = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    must(not indices[m:].any() and (indices[:m] < below).all(), "an index")
    return indices[:m]


def decode_raw(data: bytes, n: int, dtype: str) -> bytes:
    must(len(data) == n * BYTES[dtype], "raw bytes")
    return data


def decode_planes(data: bytes, n: int, dtype: str) -> bytes:
    w = BYTES[dtype]
    at, planes = 4 * w, []
    for length in struct.unpack_from(f"<{w}I", data):
        piece = data[at : at + length]
        planes.append(np.frombuffer(piece if length == n else unframe(piece, n), np.uint8))
        must(length <= n, "a plane's length")
        at += length
    must(at == len(data), "bytes behind the planes")
    words = np.stack(planes, axis=1).reshape(-1).view(f"<u{w}")
    if dtype in ROTATED:
        words = words >> 1 | words << (8 * w - 1)
    return words.tobytes()


LATTICE = {"F32": (23, 255, 71), "BF16": (7, 255, 39), "F16": (10, 31, 39), "F8_E4M3": (3, 15, 23),
           "F8_E5M2": (2, 31, 23), "F8_E4M3FNUZ": (3, 15, 23), "F8_E5M2FNUZ": (2, 31, 23)}  # fmt: skip


def decode_drift(data: bytes, start: bytes, dtype: str, base: bytes) -> bytes:
    """drift.md"""
    return decode_lattice(data, start, dtype, base)


def decode_lattice(data: bytes, base: bytes, dtype: str, origin: bytes | None = None) -> bytes:
    """lattice.md; with an origin, and `base` what it has drifted to, drift.md"""
    size = BYTES[dtype]
    if data[0] == 0:
        must(len(data) == 1, "bytes behind mode 0")
        return base
    if data[0] in {1, 2}:
        coded = decode_planes(data[1:], len(base) // size, dtype if data[0] == 2 else f"U{8 * size}")
        return coded if data[0] == 2 else restored(base, coded, size)
    drifts = data[0] == 4 and origin is not None
    must((data[0] == 3 or drifts) and dtype in LATTICE, "an unknown mode")
    s, m, most = LATTICE[dtype]
    w, words = 8 * size, np.frombuffer(base, f"<u{size}").tolist()
    _, B, log, low, width, first, model_bytes, count, open_bytes = struct.unpack_from("<BBBBIIIII", data)
    must(8 <= B <= 12 and 3 <= log <= 8 and low <= m, "a head")
    must(0 < first <= width or first == width == 0, "segments")
    lanes, n = 1 << log, len(words)
    must(24 + model_bytes + 4 * lanes + 2 * count + open_bytes == len(data), "a chunk's size")
    segments = 1 + -(-max(n - first, 0) // width) if width else 1
    frame = data[24 : 24 + model_bytes]
    size_of_model = zstandard.get_frame_parameters(frame).content_size
    directions = 8 * (segments + width) if width <= n else 0
    must(size_of_model <= 133 + 64 * (2 * most - 1) + segments + directions, "a model's size")
    model = unframe(frame, size_of_model)
    tables, a, k = model[0], model[1], model[2]
    must(1 <= tables <= 64 and 1 <= a <= most and k <= 8 and (k == 0 or 0 < width <= n), "a model")
    must(not (k and drifts), "directions beside drift")
    graded = k > 0 or drifts
    v, g = (2 * a - 1, 4) if graded else (a, 1)
    weights, rest = model[3 : 3 + tables * v], model[3 + tables * v :]
    shifts, rest = rest[:segments], rest[segments:]
    must(len(shifts) == segments and max(shifts) <= 15, "a model's shifts")
    x = max(shifts)
    table_of, rest = rest[: g * (16 + x)], rest[g * (16 + x) :]
    must(
        len(table_of) == g * (16 + x) and len(rest) == (6 + k * (segments + width) if graded else 0), "a model's parts"
    )
    must(max(table_of) < tables and max(weights) < 64, "a table or a weight")
    marks = struct.unpack_from("<3H", rest) if graded else ()
    numbers = [byte - 256 if byte > 127 else byte for byte in rest[6:]]
    must(all(-7 <= number <= 7 for number in numbers), "directions")
    must(not graded or 0 < marks[0] <= marks[1] <= marks[2] < 1 << 15, "marks")
    across, along = numbers[: segments * k], numbers[segments * k :]
    places = [_places(weights[t * v : (t + 1) * v], B, signed=graded) for t in range(tables)]
    at = 24 + model_bytes
    states = list(struct.unpack_from(f"<{lanes}I", data, at))
    stream = list(struct.unpack_from(f"<{count}H", data, at + 4 * lanes))[::-1]
    bits, used = int.from_bytes(data[len(data) - open_bytes :], "little"), 0
    out = []
    from_words = np.frombuffer(origin, f"<u{size}").tolist() if drifts and origin is not None else words
    for i, word in enumerate(words):
        level = min(max((word >> s & m) - low, 0), 15)
        segment = (i + width - first) // width if width else 0
        z = (i + width - first) % width if width else 0
        prediction = sum(across[segment * k + j] * along[j * width + z] for j in range(k))
        if drifts:
            drift = (_turn(word, w) - _turn(from_words[i], w)) % (1 << w)
            prediction = drift - (drift >> w - 1 << w)
        grade = sum(mark <= abs(prediction) for mark in marks)
        state = states[i % lanes]
        symbol, f, c = places[table_of[grade * (16 + x) + level + shifts[segment]]][state % (1 << B)]
        state = f * (state >> B) + state % (1 << B) - c
        if state < 1 << 16:
            must(stream, "words end")
            state = state << 16 | stream.pop()
        states[i % lanes] = state
        d = abs(symbol)
        if d >= 16:
            h = (d - 16) // 2 + 3
            d = (2 + d % 2 << h) + (bits >> used & (1 << h) - 1)
            used += h
        d = d if (symbol > 0) == (prediction >= 0) else -d
        out.append(_turn((_turn(word, w) + d) % (1 << w), w))
    must(not stream and all(state == 1 << 16 for state in states), "words are left")
    must(open_bytes == -(-used // 8) and bits >> used == 0, "open bits")
    return np.array(out, f"<u{size}").tobytes()


def _places(weights: bytes, B: int, *, signed: bool) -> list[tuple[int, int, int]]:
    """Of each place of a table its signed symbol, f and c."""
    if not signed:
        weights = weights[:1] + bytes(q for q in weights[1:] for _ in "+-")
    scaled = [(4 + p % 4) << p // 4 if p else 0 for p in weights]
    must(sum(scaled), "a table without symbols")
    f = [(each << B) // sum(scaled) for each in scaled]
    f[0] = (1 << B) - sum(f[1:])
    found: list[tuple[int, int, int]] = []
    for j, each in enumerate(f):
        found += [((j + 1) // 2 if j % 2 else -(j // 2), each, len(found))] * each
    return found


def _turn(bits: int, w: int) -> int:
    return bits ^ ((1 << w - 1) - 1) if bits >> w - 1 else bits


def decode_lanes(data: bytes, base: bytes, dtype: str) -> bytes:
    """codecs/lanes.md"""
    must(data, "an empty chunk")
    bits, at, n = data[0], 1, len(base)
    if bits == 0:
        must(len(data) == 1, "bytes behind the base's")
        return base
    if bits == 1:
        return decode_planes(data[1:], n // BYTES[dtype], dtype)
    must(bits in {4, 8, 16, 32, 64} and bits <= 8 * BYTES[dtype], "lanes")
    item = max(1, bits // 8)
    planes = []
    for _ in range(item):
        a, b = struct.unpack_from("<II", data, at)
        mask, frame, at = data[at + 8 : at + 8 + a], data[at + 8 + a : at + 8 + a + b], at + 8 + a + b
        marks = decode_adaptive(mask, n // item, "binary") if a else np.ones(n // item, np.uint8)
        plane = np.zeros(n // item, np.uint8)
        plane[marks == 1] = np.frombuffer(unframe(frame, int(marks.sum())), np.uint8)
        must(not a or plane[marks == 1].all(), "a marked difference of 0")
        planes.append(plane)
    must(at == len(data), "bytes behind the planes")
    coded = np.stack(planes, axis=1).tobytes()
    if bits >= 8:
        return restored(base, coded, item)
    return bytes((((b >> 4) + (z >> 4)) % 16) << 4 | (b + z) % 16 for b, z in zip(base, coded, strict=True))


LOSSLESS = {"lanes": decode_lanes, "lattice": decode_lattice}
