"""A whole chunk in one call without the interpreter's lock: fetched, hashed and changed while it is in the cache.

What goes into `out` comes from one of two sources, a run at a time. Out of a file it is read, by position, to where it
belongs (the system does not read what it overwrites), and hashed and changed there. Out of planes of bytes it is put
together and changed in memory that stays in a core's own caches, and written from there past them, so that what `out`
held is not read either. Nothing here raises: every kernel returns how many bytes it finished, and whoever calls it
looks at that and at the hash, and leaves what did not go well to the general way.

The hash is XXH3-64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) without a seed, for more than 240
bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]  # says no types
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tallstore.kernels import compiled as steps
from tallstore.kernels.jit import compiled, wide
from tallstore.kernels.words import take_block

__all__ = ["LEAST", "begin", "check", "delta", "gaps", "gaps_16", "gather", "mask", "read_all", "whole"]

LEAST = 241
"""Bytes that are hashed here at least: fewer have another rule."""

_Array = npt.NDArray[Any]

_pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uintp, types.int64))
_RUN = 1 << 17
"""Bytes at a time; the last run has up to twice as many."""
_LINE = 64
"""Bytes that go past the caches together, and that `out` must begin at a multiple of for that."""

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
"""XXH3's own, 192 bytes."""
_BLOCK, _STRIPE, _LANES = 1024, 64, 8


def _words(first: int, count: int) -> _Array:
    return np.frombuffer(_SECRET, "<u8", count, first).copy()


_KEYS = np.concatenate([_words(8 * stripe, _LANES) for stripe in range(_BLOCK // _STRIPE)])
"""What the words of a block are mixed with."""
_SCRAMBLE, _LAST, _MERGE = _words(128, _LANES), _words(121, _LANES), _words(11, _LANES)
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_INITIAL = np.array([_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1, 0], np.uint64)

_LOW, _32, _37 = (np.uint64(n) for n in (0xFFFFFFFF, 32, 37))
_LENGTH, _AVALANCHE = np.uint64(_P64_1), np.uint64(0x165667919E3779F9)


def begin() -> _Array:
    """What a hash is made in, and in its last place the hash: uint64, shape (9,)."""
    return _INITIAL.copy()


@compiled
def _mixed(word: Any) -> Any:
    """The product of a word's halves."""
    return (word & _LOW) * (word >> _32)


@compiled
def _blocks(state: _Array, words: _Array) -> None:
    """Take blocks of 128 words."""
    wide()
    for at in range(0, words.shape[0], 128):
        take_block(state, words, at, _KEYS, _SCRAMBLE)


@compiled
def _stripe(state: _Array, words: _Array, keys: _Array) -> None:
    for lane in range(8):
        state[lane] += _mixed(words[lane] ^ keys[lane]) + words[lane ^ 1]


@compiled
def _folded(a: Any, b: Any) -> Any:
    """The halves of a product of 128 bits, one xor the other."""
    low_a, high_a, low_b, high_b = a & _LOW, a >> _32, b & _LOW, b >> _32
    cross = high_a * low_b + ((low_a * low_b) >> _32)
    middle = low_a * high_b + (cross & _LOW)
    return (high_a * high_b + (cross >> _32) + (middle >> _32)) ^ (a * b)


@compiled
def _finish(state: _Array, run: _Array, size: int) -> None:
    """Take what is left behind the whole blocks of `size` bytes, and put the hash into the last place.

    `run` has the last of them, and more than a stripe.
    """
    done = (size - 1) // _BLOCK * _BLOCK
    for stripe in range((size - 1 - done) // _STRIPE):
        at = run.shape[0] - size + done + stripe * _STRIPE
        _stripe(state, run[at : at + _STRIPE].view(np.uint64), _KEYS[stripe * _LANES : (stripe + 1) * _LANES])
    _stripe(state, run[run.shape[0] - _STRIPE :].view(np.uint64), _LAST)
    value = np.uint64(size) * _LENGTH
    for pair in range(0, 8, 2):
        value += _folded(state[pair] ^ _MERGE[pair], state[pair + 1] ^ _MERGE[pair + 1])
    value = (value ^ (value >> _37)) * _AVALANCHE
    state[8] = value ^ (value >> _32)


def _copy_lines(typing: Any, target: Any, source: Any, lines: Any) -> Any:  # noqa: ARG001 - numba's way
    """Copy so many lines between two addresses, past the caches; `_settle` when all are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001 - numba's way
        target, source, lines = arguments
        words = ir.VectorType(ir.IntType(64), _LINE // 8)
        past = builder.module.add_metadata([ir.IntType(32)(1)])
        with cgutils.for_range(builder, lines) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, _LINE))
            line = builder.load(builder.inttoptr(builder.add(source, at), words.as_pointer()), align=8)
            put = builder.store(line, builder.inttoptr(builder.add(target, at), words.as_pointer()), align=_LINE)
            put.set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _fence(typing: Any) -> Any:  # noqa: ARG001 - numba's way
    """Let nothing that is written after this be seen before what went past the caches."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001 - numba's way
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


_stream: Any = intrinsic(_copy_lines)
_settle: Any = intrinsic(_fence)


@compiled
def _write(out: _Array, run: _Array) -> None:
    """out = run, both uint8."""
    lines = 0 if out.ctypes.data % _LINE else run.shape[0] // _LINE
    if lines:
        _stream(out.ctypes.data, run.ctypes.data, lines)
    rest, left = out[lines * _LINE :], run[lines * _LINE :]
    for k in range(left.shape[0]):  # assigning a slice to a slice does the same, and takes three seconds to compile
        rest[k] = left[k]


@compiled
def read_all(out: _Array, handle: int, at: int) -> bool:
    """A file's bytes from byte `at` on. Whether there were so many."""
    length, here = out.shape[0], 0
    while here < length:
        to, left = np.uint64(out.ctypes.data + here), np.uint64(length - here)
        got = _pread(np.int32(handle), to, left, np.int64(at + here))
        if got <= 0:
            return False
        here += got
    return True


@compiled
def _read(run: _Array, a: int, size: int, handle: int, at: int, state: _Array) -> bool:
    """A run of a chunk of `size` bytes, from byte a on, and into the hash. Whether it was there."""
    length = run.shape[0]
    if not read_all(run, handle, at + a):
        return False
    _blocks(state, run[: min(a + length, (size - 1) // _BLOCK * _BLOCK) - a].view(np.uint64))
    if a + length == size:
        _finish(state, run, size)
    return True


@compiled
def _fetch(run: _Array, a: int, size: int, source: Any) -> bool:
    """A run of a chunk, from byte a on.

    Args:
        run: uint8: what it goes into.
        a: a multiple of `_RUN`.
        size: bytes of the chunk.
        source: a `fill.Source`.

    Returns:
        whether it was there.
    """
    b = a + run.shape[0]
    if source.item == 0:
        there: bool = _read(run, a, size, source.handle, source.at, source.state)
        return there
    if source.item == 2:
        i, j = a >> 1, b >> 1
        steps.join_two(run.view(np.uint16), source.low[i:j], source.high[i:j])
    else:
        i, j = a >> 2, b >> 2
        planes = source.low[i:j], source.second[i:j], source.third[i:j], source.high[i:j]
        steps.join_four(run.view(np.uint32), planes[0], planes[1], planes[2], planes[3])
    return True


@compiled
def _end(a: int, size: int) -> int:
    """Where a run ends that begins at byte `a`: the last one is the longer one, and has more than a stripe."""
    return size if size - a < 2 * _RUN else a + _RUN


@compiled
def gather(out: _Array, handle: int, first: int, item: int, runs: _Array) -> int:
    """Read runs of a file's elements, one behind the other. Returns the bytes that were there.

    Args:
        out: uint8, as many bytes as the runs have.
        handle: the file's descriptor.
        first: the file's byte that is element 0's first.
        item: bytes of an element.
        runs: int64, shape (R, 2): of each run its first element and the one behind its last.
    """
    done = 0
    for i in range(runs.shape[0]):
        start, length = first + runs[i, 0] * item, (runs[i, 1] - runs[i, 0]) * item
        if not read_all(out[done : done + length], handle, start):
            break
        done += length
    return done


@compiled
def check(size: int, handle: int, at: int, state: _Array) -> int:
    """Only read and hash so many bytes of a file. Returns those that were there."""
    a, room = 0, np.empty(2 * _RUN, np.uint8)
    while a < size:
        b = _end(a, size)
        if not _read(room[: b - a], a, size, handle, at, state):
            break
        a = b
    return a


@compiled
def whole(raw: _Array, source: Any) -> int:
    """Fill `raw` and add nothing. Returns the bytes that were."""
    a, size, room = 0, raw.shape[0], np.empty(2 * _RUN, np.uint8)
    while a < size:
        b = _end(a, size)
        run = raw[a:b] if source.item == 0 else room[: b - a]
        if not _fetch(run, a, size, source):
            break
        if source.item != 0:
            _write(raw[a:b], run)
        a = b
    _settle()
    return a


@compiled
def gaps(
    raw: _Array,
    source: Any,
    out: _Array,
    places: _Array,
    codes: _Array,
    signs: _Array,
    plus: Any,
    minus: Any,
) -> int:
    """Fill `raw`, which is `out` as bytes, with sums at marks: see `compiled.add_gaps`."""
    a, size, room = 0, raw.shape[0], np.empty(2 * _RUN, np.uint8)
    while a < size:
        b = _end(a, size)
        run = raw[a:b] if source.item == 0 else room[: b - a]
        if not _fetch(run, a, size, source):
            break
        steps.add_gaps(run.view(out.dtype), places, codes, signs, plus, minus)
        if source.item != 0:
            _write(raw[a:b], run)
        a = b
    _settle()
    return a


@compiled
def gaps_16(
    raw: _Array,
    source: Any,
    out: _Array,  # noqa: ARG001 - as `gaps` has it
    places: _Array,
    codes: _Array,
    signs: _Array,
    plus: Any,
    minus: Any,
    brain: bool,
) -> int:
    """The same of bfloat16 (`brain`) or float16, held in uint16. Of float16 it stops at a mark on a NaN."""
    a, size, room = 0, raw.shape[0], np.empty(2 * _RUN, np.uint8)
    while a < size:
        b = _end(a, size)
        run = raw[a:b] if source.item == 0 else room[: b - a]
        if not _fetch(run, a, size, source):
            break
        if not steps.add_gaps_16(run.view(np.uint16), places, codes, signs, plus, minus, brain):
            break
        if source.item != 0:
            _write(raw[a:b], run)
        a = b
    _settle()
    return a


@compiled
def _look_up(out: _Array, packed: _Array, pairs: _Array) -> None:
    """Two values for every byte. Both of shape (n,): uint64, each two float32, and uint8; `pairs`: uint64, (256,)."""
    for k in range(packed.shape[0]):
        out[k] = pairs[packed[k]]


@compiled
def mask(
    raw: _Array,
    source: Any,
    out: _Array,
    packed: _Array,
    bits: int,
    one: Any,
    scale: Any,
    vector: _Array,
    levels: _Array,
    pairs: _Array,
) -> int:
    """Fill `raw`, which is `out` as bytes, with sums by packed symbols of so many bits.

    `vector`: float32, shape (n,); or (0,): 1 everywhere, or what `levels`, uint8, two indices a byte, stand for by
    `pairs`: uint64, shape (256,), two float32 each; or (0,). It stops where the base has a NaN.
    """
    a, size, room = 0, raw.shape[0], np.empty(2 * _RUN, np.uint8)
    looked = np.empty(_RUN if pairs.shape[0] else 0, np.uint64)
    values = looked.view(np.float32)
    while a < size:
        b = _end(a, size)
        run = raw[a:b] if source.item == 0 else room[: b - a]
        if not _fetch(run, a, size, source):
            break
        base, i, j = run.view(out.dtype), a // out.itemsize, b // out.itemsize
        own = packed[i * bits >> 3 : (j * bits + 7) >> 3]
        if pairs.shape[0]:
            two = levels[i >> 1 : (j + 1) >> 1]
            _look_up(looked[: two.shape[0]], two, pairs)
            done = steps.mask_vector(base, base, own, bits, one, scale, values[: j - i], False)
        elif vector.shape[0]:
            done = steps.mask_vector(base, base, own, bits, one, scale, vector[i:j], False)
        else:
            done = steps.mask_ones(base, base, own, bits, scale, False)
        if done < j - i:
            break
        if source.item != 0:
            _write(raw[a:b], run)
        a = b
    _settle()
    return a


@compiled
def delta(
    raw: _Array,
    source: Any,
    out: _Array,
    packed: _Array,
    bits: int,
    table: _Array,
) -> int:
    """Fill `raw`, which is `out` as bytes, with sums of levels, by indices of so many bits."""
    a, size, room = 0, raw.shape[0], np.empty(2 * _RUN, np.uint8)
    while a < size:
        b = _end(a, size)
        run = raw[a:b] if source.item == 0 else room[: b - a]
        if not _fetch(run, a, size, source):
            break
        base, i, j = run.view(out.dtype), a // out.itemsize, b // out.itemsize
        own = packed[i * bits >> 3 : (j * bits + 7) >> 3]
        if bits == 8:
            steps.delta8(base, base, own, table)
        else:
            steps.delta4(base, base, own, table)
        if source.item != 0:
            _write(raw[a:b], run)
        a = b
    _settle()
    return a
