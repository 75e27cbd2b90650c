"""The second reader's codecs, written from `spec/codecs/` alone."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import zstandard

from .second_numbers import BYTES, LEVELS, ROTATED, SYMBOL_BITS, Refused, must, restored


def unframe(frame: bytes, size: int) -> bytes:
    """zstd.md"""
    must(frame[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    declared = zstandard.get_frame_parameters(frame)
    must(declared.content_size == size and not declared.dict_id, "a frame of another size")
    if size == 0:
        return b""
    try:
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused(str(error)) from error
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


def decode_dither(data: bytes, n: int, kind: str) -> np.ndarray:
    """dither.md"""
    must(data and (data[0] == 0 or (data[0] == 1 and kind == "signed")), "an unknown mode, or of another kind")
    if data[0] == 0:
        must(len(data) > 1, "no chunk of adaptive")
        return decode_adaptive(data[1:], n, kind)
    return np.array([0, 1, 2])[_numbers(data[1:], n, 1)].astype(np.uint8)


def _numbers(data: bytes, n: int, most: int) -> np.ndarray:
    """dither.md, "Numbers": n numbers from −most to most."""
    must(len(data) >= 16 and data[3] == 0, "a head")
    shift, classes, block, _, first, flag_bytes, coded_bytes = struct.unpack_from("<BBBBIII", data)
    must(1 <= classes <= 16 and shift <= 24 and classes << shift <= 1 << 24, "classes")
    must(16 + flag_bytes + coded_bytes <= len(data), "sizes")
    flags, coded, others = (
        data[16:][:flag_bytes],
        data[16 + flag_bytes :][:coded_bytes],
        data[16 + flag_bytes + coded_bytes :],
    )
    drawn = _drawn(first, n)
    picked = drawn >> shift < classes
    if block == 0:
        must(not flags, "flags of no blocks")
    else:
        must(6 <= block <= 24, "a block's size")
        blocks = -(-n // (1 << block))
        bits = np.unpackbits(np.frombuffer(unframe(flags, -(-blocks // 8)), np.uint8), bitorder="little")
        must(not bits[blocks:].any(), "bits behind the last block")
        picked &= bits[np.arange(n) // (1 << block)] == 1
    if classes << shift == 1 << 24:
        must(not others, "bytes behind the steps")
        numbers = np.zeros(n, np.int64)
    else:
        must(others, "no chunk of adaptive")
        numbers = np.array([0, 1, -1])[decode_adaptive(others, n, "signed")]
        must(np.abs(numbers).max(initial=0) <= most, "marks, and no level")
    before = 128 * ((drawn[picked] >> shift) + 1)
    must(coded, "no chunk of lattice")
    after = np.frombuffer(decode_lattice(coded, before.astype("<u2").tobytes(), "BF16"), "<u2").astype(np.int64)
    must((np.abs(after - before) <= most).all(), "a number that is too large")
    must(not numbers[picked].any(), "a number twice")
    numbers[picked] = after - before
    return numbers


def _drawn(first: int, n: int) -> np.ndarray:
    """dare.md, "Which elements are kept", as dither.md takes it."""
    x = (first + np.arange(n, dtype=np.uint64)) % (1 << 32)
    x = (x ^ x >> np.uint64(16)) * 0x7FEB352D % (1 << 32)
    x = (x ^ x >> np.uint64(15)) * 0x846CA68B % (1 << 32)
    return ((x ^ x >> np.uint64(16)) >> np.uint64(8)).astype(np.int64)


def decode_dither_levels(data: bytes, n: int) -> np.ndarray:
    """dither.md"""
    must(data and data[0] <= 127 and len(data) > 4 * data[0], "levels")
    count = data[0]
    levels = np.frombuffer(data[1 : 1 + 4 * count], "<f4")
    must(np.isfinite(levels).all(), "a level that is not finite")
    return np.concatenate([[np.float32(0)], levels, -levels[::-1]])[_numbers(data[1 + 4 * count :], n, count)]


def decode_vector(data: bytes, n: int, codec: str) -> np.ndarray:
    if codec == "ones":
        must(not data, "ones have no bytes")
        return np.ones(n, np.float32)
    if codec == "f32":
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif codec == "bf16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif codec == "dither-levels":
        values = decode_dither_levels(data, n)
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


def once(decode: Callable[..., bytes]) -> Callable[..., bytes]:
    """The same, done once for the same arguments: what several tasks build on is asked for by each of them."""
    known: dict[tuple[object, ...], bytes] = {}

    def decoded(*arguments: object) -> bytes:
        if arguments not in known:
            if len(known) == 1024:
                known.clear()
            known[arguments] = decode(*arguments)
        return known[arguments]

    return decoded


@once
def decode_drift(data: bytes, start: bytes, dtype: str, base: bytes) -> bytes:
    """drift.md"""
    if data[0] != 4:
        return decode_lattice(data, start, dtype)
    must(dtype in LATTICE, "an unknown mode")
    s, m, most = LATTICE[dtype]
    size = BYTES[dtype]
    w, words, below = 8 * size, *(np.frombuffer(each, f"<u{size}").tolist() for each in (start, base))
    n = len(words)
    B, lanes, low, width, first, frame, states, stream, opened, rest = _parts(data, m)
    segments = 1 + -(-max(n - first, 0) // width) if width else 1
    size_of_model = zstandard.get_frame_parameters(frame).content_size
    must(size_of_model <= 162 + 64 * (2 * most - 1) + segments, "a model's size")
    model = unframe(frame, size_of_model)
    must(len(model) >= 19, "a model")
    tables, a, z = model[0], model[1], model[2]
    must(1 <= tables <= 64 and 1 <= a <= most and z < w, "a model")
    v, grades, told = 2 * a - 1, model[3:19], model[19:]
    weights, shifts, table_of = told[: tables * v], told[tables * v :][:segments], told[tables * v + segments :]
    must(len(shifts) == segments and max(shifts) <= 15, "a model's shifts")
    x = max(shifts)
    must(len(table_of) == 128 + x, "a model's parts")
    must(max(table_of) < tables and max(weights) < 64 and max(grades) < 8, "a table, a weight or a grade")
    places = [_places(weights[t * v : (t + 1) * v], B, signed=True) for t in range(tables)]
    still = [not any(weights[t * v + 1 : (t + 1) * v]) for t in range(tables)]
    must(len(rest) % 3 == 0, "a chunk's size")
    count = len(rest) // 3
    exceptions = struct.unpack(f"<{count}H{count}b", rest)
    said: dict[int, int] = {}
    at = -1
    for gap, symbol in zip(exceptions[:count], exceptions[count:], strict=True):
        at += 1 + gap
        must(at < n and abs(symbol) < most, "an exception")
        said |= {at: symbol} if symbol else {}
    bits, used, number, out = int.from_bytes(opened, "little"), 0, 0, []
    for i, word in enumerate(words):
        number = 0 if i % 4096 == 0 else number
        level = min(max((word >> s & m) - low, 0), 15)
        drift = (_turn(word, w) - _turn(below[i], w)) % (1 << w)
        drift -= drift >> w - 1 << w
        grade = grades[min(abs(drift) >> z, 15)]
        segment = (i + width - first) // width if width else 0
        table = table_of[16 * grade + x + level if grade else level + shifts[segment]]
        symbol = 0
        if not still[table]:
            lane = number % lanes
            number += 1
            symbol, states[lane] = _symbol(places[table], states[lane], B, stream)
        symbol = said.get(i, symbol)
        d, used = _magnitude(abs(symbol), bits, used)
        d = d if (symbol > 0) == (drift >= 0) else -d
        out.append(_turn((_turn(word, w) + d) % (1 << w), w))
    must(not stream and all(state == 1 << 16 for state in states), "words are left")
    must(len(opened) == -(-used // 8) and bits >> used == 0, "open bits")
    return np.array(out, f"<u{size}").tobytes()


def _parts(data: bytes, m: int) -> tuple[int, int, int, int, int, bytes, list[int], list[int], bytes, bytes]:
    """B, L, low, width, first; the model's frame, states, words from the last one on, open bits, and the rest."""
    must(len(data) >= 24, "a head")
    _, B, log, low, width, first, model_bytes, count, open_bytes = struct.unpack_from("<BBBBIIIII", data)
    must(8 <= B <= 12 and 3 <= log <= 8 and low <= m, "a head")
    must(0 < first <= width or first == width == 0, "segments")
    lanes, at = 1 << log, 24 + model_bytes
    end = at + 4 * lanes + 2 * count + open_bytes
    must(end <= len(data), "a chunk's size")
    states = list(struct.unpack_from(f"<{lanes}I", data, at))
    stream = list(struct.unpack_from(f"<{count}H", data, at + 4 * lanes))[::-1]
    return B, lanes, low, width, first, data[24:at], states, stream, data[end - open_bytes : end], data[end:]


def _symbol(places: list[tuple[int, int, int]], state: int, B: int, stream: list[int]) -> tuple[int, int]:
    """A signed symbol, and the lane's next state."""
    symbol, f, c = places[state % (1 << B)]
    state = f * (state >> B) + state % (1 << B) - c
    if state < 1 << 16:
        must(stream, "words end")
        state = state << 16 | stream.pop()
    return symbol, state


def _magnitude(d: int, bits: int, used: int) -> tuple[int, int]:
    """What a symbol's magnitude stands for, and how many open bits are used then."""
    if d < 16:
        return d, used
    h = (d - 16) // 2 + 3
    return (2 + d % 2 << h) + (bits >> used & (1 << h) - 1), used + h


@once
def decode_lattice(data: bytes, base: bytes, dtype: str) -> bytes:
    """lattice.md"""
    size = BYTES[dtype]
    if data[0] == 0:
        must(len(data) == 1, "bytes behind mode 0")
        return base
    if data[0] in {1, 2}:
        coded = decode_planes(data[1:], len(base) // size, dtype if data[0] == 2 else f"U{8 * size}")
        return coded if data[0] == 2 else restored(base, coded, size)
    must(data[0] == 3 and dtype in LATTICE, "an unknown mode")
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
    v, g = (2 * a - 1, 4) if k else (a, 1)
    weights, rest = model[3 : 3 + tables * v], model[3 + tables * v :]
    shifts, rest = rest[:segments], rest[segments:]
    must(len(shifts) == segments and max(shifts) <= 15, "a model's shifts")
    x = max(shifts)
    table_of, rest = rest[: g * (16 + x)], rest[g * (16 + x) :]
    must(len(table_of) == g * (16 + x) and len(rest) == (6 + k * (segments + width) if k else 0), "a model's parts")
    must(max(table_of) < tables and max(weights) < 64, "a table or a weight")
    marks = struct.unpack_from("<3H", rest) if k else ()
    numbers = [byte - 256 if byte > 127 else byte for byte in rest[6:]]
    must(all(-7 <= number <= 7 for number in numbers), "directions")
    must(not k or 0 < marks[0] <= marks[1] <= marks[2] < 1 << 15, "marks")
    across, along = numbers[: segments * k], numbers[segments * k :]
    places = [_places(weights[t * v : (t + 1) * v], B, signed=k > 0) for t in range(tables)]
    at = 24 + model_bytes
    states = list(struct.unpack_from(f"<{lanes}I", data, at))
    stream = list(struct.unpack_from(f"<{count}H", data, at + 4 * lanes))[::-1]
    bits, used = int.from_bytes(data[len(data) - open_bytes :], "little"), 0
    out = []
    for i, word in enumerate(words):
        level = min(max((word >> s & m) - low, 0), 15)
        segment = (i + width - first) // width if width else 0
        z = (i + width - first) % width if width else 0
        prediction = sum(across[segment * k + j] * along[j * width + z] for j in range(k))
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
