"""What compiled kernels do with the bits of words, and with vectors that numba does not find by itself.

Only modules that need numba import this one.
"""
# ruff: noqa: ARG001 - what numba calls takes what numba gives

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # says no types
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = [
    "WIDE_GAPS",
    "WIDE_SUMS",
    "add_64",
    "borrowed",
    "count",
    "gather",
    "highest",
    "lowest",
    "positions",
    "signs_of_16",
    "span_of_64",
    "take_block",
    "word_at",
]

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_PRIME = 0x9E3779B1
"""XXH3's, for its lanes."""


def _has(*features: str) -> bool:
    """Whether kernels are compiled for a processor that has all of these."""
    there = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return all(f"+{feature}" in there for feature in features)


WIDE_GAPS = _has("bmi2", "avx512bw", "avx512vbmi", "avx512vbmi2")
"""Whether `gather` and `positions` can be compiled."""
WIDE_SUMS = _has("avx512f", "avx512bw")
"""Whether `add_64` can be."""


def _lowest(typing: Any, word: Any) -> Any:
    """The place of the lowest bit that is set; 64 if none is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), code


def _highest(typing: Any, word: Any) -> Any:
    """How many bits above the highest one that is set are not; 64 if none is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), code


def _count(typing: Any, word: Any) -> Any:
    """How many bits are set."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), code


def _gather(typing: Any, word: Any, places: Any) -> Any:
    """The bits of a word that lie at the places that are set, next to each other."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_extern(builder, "llvm.x86.bmi.pext.64", _WORD, [_WORD, _WORD]), args)

    return types.uint64(types.uint64, types.uint64), code


def _positions(typing: Any, out: Any, at: Any, word: Any, before: Any) -> Any:
    """Zeros in front of each bit that is set, counted from the one before it, as 64 bytes; those behind the last: any.

    `out`: uint8, room for 64 from `at` on. `before`: the place of the mark before the word, modulo 256.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, start, bits, previous = args
        bytes64, bits64 = ir.VectorType(_BYTE, 64), ir.VectorType(ir.IntType(1), 64)
        each = ir.Constant(bytes64, list(range(64)))
        name = "llvm.x86.avx512.mask.compress.v64i8"
        squeeze = _extern(builder, name, bytes64, [bytes64, bytes64, bits64])
        own = builder.call(squeeze, [each, ir.Constant(bytes64, None), builder.bitcast(bits, bits64)])
        order = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0, *range(63)])
        moved = builder.shuffle_vector(own, own, order)
        moved = builder.insert_element(moved, builder.trunc(previous, _BYTE), ir.Constant(ir.IntType(32), 0))
        zeros = builder.sub(builder.sub(own, moved), ir.Constant(bytes64, [1] * 64))
        data = context.make_array(signature.args[0])(context, builder, array).data
        place = builder.bitcast(builder.gep(data, [start]), bytes64.as_pointer())
        builder.store(zeros, place, align=1)
        return context.get_dummy_value()

    return types.none(out, types.int64, types.uint64, types.int64), code


def _signs_of_16(typing: Any, values: Any, at: Any) -> Any:
    """Of sixteen float32 from `at` on, which are above 0, in the low half, and which are below it, in the high half."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, start = args
        vector, half = ir.VectorType(ir.FloatType(), 16), ir.IntType(16)
        data = context.make_array(signature.args[0])(context, builder, array).data
        own = builder.load(builder.bitcast(builder.gep(data, [start]), vector.as_pointer()), align=4)
        zero = ir.Constant(vector, None)
        above, below = (
            builder.zext(builder.bitcast(builder.fcmp_ordered(sign, own, zero), half), _WORD) for sign in "><"
        )
        return builder.or_(above, builder.shl(below, ir.Constant(_WORD, 32)))

    return types.uint64(values, types.int64), code


def _span(typing: Any, out: Any, gaps: Any, at: Any) -> Any:
    """How many elements 64 gaps from `at` on take, with their marks; −1 where `add_64` cannot take them.

    That is where one of them is 255 (go on), and where `out` is not float32. `gaps`: uint8.
    """
    straight = out.dtype == types.float32

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not straight:
            return ir.Constant(_WORD, -1)
        own = _bytes_at(context, builder, signature.args[1], args[1], args[2])
        more = builder.icmp_unsigned("==", own, ir.Constant(own.type, [255] * 64))
        any_more = builder.icmp_unsigned("!=", builder.bitcast(more, _WORD), ir.Constant(_WORD, 0))
        shorts = ir.VectorType(ir.IntType(16), 64)
        add = _extern(builder, "llvm.vector.reduce.add.v64i16", ir.IntType(16), [shorts])
        total = builder.zext(builder.call(add, [builder.zext(own, shorts)]), _WORD)  # below 64 · 255
        return builder.select(any_more, ir.Constant(_WORD, -1), builder.add(total, ir.Constant(_WORD, 64)))

    return types.int64(out, gaps, types.int64), code


def _add_64(
    typing: Any,
    out: Any,
    place: Any,
    gaps: Any,
    at: Any,
    negative: Any,
    plus: Any,
    minus: Any,
) -> Any:
    """out += `plus` or `minus` at each of the 64 marks behind gaps from `at` on, the first of which begins at `place`.

    All of them lie in `out`, and `span_of_64` is not −1. `negative`: a bit a mark, 1 where `minus` is added.
    """
    straight = out.dtype == types.float32

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not straight:
            return context.get_dummy_value()
        array, place, gaps, at, negative, *steps = args
        number, bit = ir.IntType(32), ir.IntType(1)
        places, values, bits = (ir.VectorType(kind, 16) for kind in (number, ir.FloatType(), bit))
        text = ir.IntType(8).as_pointer()
        gather = _extern(builder, "llvm.x86.avx512.mask.gather.dps.512", values, [values, text, places, bits, number])
        scatter = _extern(
            builder, "llvm.x86.avx512.mask.scatter.dps.512", ir.VoidType(), [text, bits, places, values, number]
        )
        data = builder.bitcast(context.make_array(signature.args[0])(context, builder, array).data, text)
        own = _bytes_at(context, builder, signature.args[2], gaps, at)
        each, all_of_them = ir.Constant(number, 4), ir.Constant(bits, [1] * 16)
        plus, minus = (_splat(builder, step, values) for step in steps)
        zero, last = ir.Constant(places, None), builder.sub(builder.trunc(place, number), ir.Constant(number, 1))
        for group in range(4):
            order = ir.Constant(places, [16 * group + k for k in range(16)])
            ends = builder.zext(builder.shuffle_vector(own, own, order), places)
            ends = builder.add(ends, ir.Constant(places, [1] * 16))
            for step in (1, 2, 4, 8):  # sums of all before, by doubling
                order = ir.Constant(places, [k if k < step else 16 + k - step for k in range(16)])
                ends = builder.add(ends, builder.shuffle_vector(zero, ends, order))
            ends = builder.add(ends, _splat(builder, last, places))
            last = builder.extract_element(ends, ir.Constant(number, 15))
            sixteen = builder.trunc(builder.lshr(negative, ir.Constant(_WORD, 16 * group)), ir.IntType(16))
            found = builder.call(gather, [ir.Constant(values, None), data, ends, all_of_them, each])
            found = builder.fadd(found, builder.select(builder.bitcast(sixteen, bits), minus, plus))
            builder.call(scatter, [data, all_of_them, ends, found, each])
        return context.get_dummy_value()

    kinds = (out, types.int64, gaps, types.int64, types.uint64, out.dtype, out.dtype)
    return types.none(*kinds), code


def _take_block(typing: Any, state: Any, words: Any, at: Any, keys: Any, scramble: Any) -> Any:
    """Take a block of sixteen stripes of eight words from `at` on into XXH3's eight lanes. All are uint64.

    To a lane comes the product of the halves of each word xor its key, and the word of the lane beside it; then lanes
    are scrambled.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(_WORD, 8)
        arrays = [context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 3, 4)]
        state, words, keys, scramble = arrays

        def load(data: Any, at: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(data, [at]), lanes.as_pointer()), align=8)

        low, half = ir.Constant(lanes, [0xFFFFFFFF] * 8), ir.Constant(lanes, [32] * 8)
        beside = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
        found = [load(state, ir.Constant(_WORD, 0)), ir.Constant(lanes, None)]
        for stripe in range(16):  # two sums by turns, so that additions need not wait for each other
            step = ir.Constant(_WORD, 8 * stripe)
            own = load(words, builder.add(args[2], step))
            mixed = builder.xor(own, load(keys, step))
            product = builder.mul(builder.and_(mixed, low), builder.lshr(mixed, half))
            own = builder.add(product, builder.shuffle_vector(own, own, beside))
            found[stripe & 1] = builder.add(found[stripe & 1], own)
        value = builder.add(*found)
        value = builder.xor(value, builder.lshr(value, ir.Constant(lanes, [47] * 8)))
        value = builder.xor(value, load(scramble, ir.Constant(_WORD, 0)))
        value = builder.mul(value, ir.Constant(lanes, [_PRIME] * 8))
        builder.store(value, builder.bitcast(state, lanes.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(state, words, types.int64, keys, scramble), code


def _word_at(typing: Any, data: Any, at: Any) -> Any:
    """Eight bytes from `at` on as a word, the first one lowest. `data`: uint8."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), _WORD.as_pointer()), align=1)

    return types.uint64(data, types.int64), code


def _bytes_at(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """64 bytes of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.load(builder.bitcast(builder.gep(data, [at]), ir.VectorType(_BYTE, 64).as_pointer()), align=1)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of equal elements."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def _borrowed(typing: Any, array: Any) -> Any:
    """The same array, without an owner: slices of it are not counted.

    Only for what a kernel was given, never for what it allocates: numba gives up an array of its own behind the last
    line that names it, whatever was borrowed. Every slice that has an owner is counted, and again when it is given up,
    by an instruction that no other memory access may pass: a fifth of the time of a kernel that cuts blocks of 1024.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = context.make_array(signature.return_type)(context, builder, args[0])
        found.meminfo = ir.Constant(found.meminfo.type, None)
        return found._getvalue()

    return array(array), code


def _extern(builder: Any, name: str, result: Any, args: Any) -> Any:
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, args), name)


add_64: Any = intrinsic(_add_64)
borrowed: Any = intrinsic(_borrowed)
lowest: Any = intrinsic(_lowest)
highest: Any = intrinsic(_highest)
count: Any = intrinsic(_count)
gather: Any = intrinsic(_gather)
positions: Any = intrinsic(_positions)
signs_of_16: Any = intrinsic(_signs_of_16)
span_of_64: Any = intrinsic(_span)
take_block: Any = intrinsic(_take_block)
word_at: Any = intrinsic(_word_at)
