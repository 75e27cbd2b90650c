"""What compiled kernels do with the bits of words, and with vectors that numba does not find by itself.

Only modules that need numba import this one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # says no types
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = ["WIDE_GAPS", "borrowed", "count", "gather", "highest", "lowest", "positions", "signs_of_16"]

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)


def _has(*features: str) -> bool:
    """Whether kernels are compiled for a processor that has all of these."""
    there = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return all(f"+{feature}" in there for feature in features)


WIDE_GAPS = _has("bmi2", "avx512bw", "avx512vbmi", "avx512vbmi2")
"""Whether `gather` and `positions` can be compiled."""


def _lowest(typing: Any, word: Any) -> Any:  # noqa: ARG001 - numba's interface
    """The place of the lowest bit that is set; 64 if none is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - likewise
        return builder.cttz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), code


def _highest(typing: Any, word: Any) -> Any:  # noqa: ARG001 - likewise
    """How many bits above the highest one that is set are not; 64 if none is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - likewise
        return builder.ctlz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), code


def _count(typing: Any, word: Any) -> Any:  # noqa: ARG001 - likewise
    """How many bits are set."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - likewise
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), code


def _gather(typing: Any, word: Any, places: Any) -> Any:  # noqa: ARG001 - likewise
    """The bits of a word that lie at the places that are set, next to each other."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - likewise
        return builder.call(_extern(builder, "llvm.x86.bmi.pext.64", _WORD, [_WORD, _WORD]), args)

    return types.uint64(types.uint64, types.uint64), code


def _positions(typing: Any, out: Any, at: Any, word: Any, before: Any) -> Any:  # noqa: ARG001 - likewise
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


def _signs_of_16(typing: Any, values: Any, at: Any) -> Any:  # noqa: ARG001 - likewise
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


def _borrowed(typing: Any, array: Any) -> Any:  # noqa: ARG001 - likewise
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


borrowed: Any = intrinsic(_borrowed)
lowest: Any = intrinsic(_lowest)
highest: Any = intrinsic(_highest)
count: Any = intrinsic(_count)
gather: Any = intrinsic(_gather)
positions: Any = intrinsic(_positions)
signs_of_16: Any = intrinsic(_signs_of_16)
