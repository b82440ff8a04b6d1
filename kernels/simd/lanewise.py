"""Arithmetic lane by lane, of vectors and of tiles.

One definition serves both, see `lanewise`. A number stands for a vector that has it in every lane,
and beside a tile a vector for a tile that consists of it.
"""

import inspect
import operator
from functools import wraps

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from tapegpt.kernels.simd.types import (
    Lanewise,
    Tile,
    Vector,
    broadcast,
    call_intrinsic,
    constant,
    lanes_below,
    llvm_float,
    multiply_add,
    opaque,
    pack_vectors,
    vectors_of,
)


def lanewise_signature(kinds, integers=()):
    """Types for arguments of these types: the first tile's as the result, or the first vector's.

    integers: the places of arguments that are one integer for all lanes.
    """
    result = next((kind for kind in kinds if isinstance(kind, Tile)), None)
    result = result or next(kind for kind in kinds if isinstance(kind, Vector))
    arguments = [kind if isinstance(kind, Lanewise) else result.dtype for kind in kinds]
    for i in integers:
        arguments[i] = types.intp
    return signature(result, *arguments)


def apply_lanewise(builder, function, sig, args):
    """function(builder, vector type, LLVM vectors and integers) for every vector of the result."""
    tile = sig.return_type
    vector, count = tile.vector, tile.rows * tile.columns
    columns = []
    for kind, arg in zip(sig.args, args, strict=True):
        if kind == vector.dtype:
            arg = broadcast(builder, vector, arg)
        columns.append(vectors_of(builder, kind, arg) if kind == tile else [arg] * count)
    results = [function(builder, vector, *values) for values in zip(*columns, strict=True)]
    return pack_vectors(builder, tile, results)


def lanewise(function):
    """The intrinsic that does function(builder, vector type, LLVM values) for every vector.

    Where a parameter is annotated `types.intp` it is one integer for all lanes.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    integers = [i for i, p in enumerate(parameters[1:]) if p.annotation is types.intp]

    @wraps(function)
    def define(typing_context, *kinds):
        def codegen(context, builder, sig, args):
            return apply_lanewise(builder, function, sig, args)

        return lanewise_signature(kinds, integers), codegen

    # Numba looks there for the number of arguments, beside the typing context.
    define.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(define)


@intrinsic
def lanes(typing_context, array):
    """Lanes of a vector of the array's element type, a literal."""
    count = Vector(array.dtype).lanes

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.literal(count)(array), codegen


@intrinsic
def four(typing_context, array):
    """4, or the lanes of a vector of the array's element type if they are fewer, a literal."""
    count = min(4, Vector(array.dtype).lanes)

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.literal(count)(array), codegen


@intrinsic
def one_lane(typing_context, array, scalar):
    """A vector of the array's element type whose only lane holds `scalar`."""
    vector = Vector(array.dtype, 1)

    def codegen(context, builder, sig, args):
        return broadcast(builder, vector, args[1])

    return vector(array, vector.dtype), codegen


@intrinsic
def first_lane(typing_context, a):
    """The first lane, a scalar."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), codegen


@intrinsic
def splat(typing_context, array, scalar):
    """A vector of the array's element type whose lanes all hold `scalar`."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return broadcast(builder, vector, args[1])

    return vector(array, vector.dtype), codegen


@intrinsic
def zeros(typing_context, array):
    """A vector of zeros, hidden from the optimizer.

    It would turn a loop that stores three of them into a call of memset.
    """
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        zero = opaque(builder, ir.Constant(ir.IntType(vector.dtype.bitwidth), 0))
        return broadcast(builder, vector, builder.bitcast(zero, llvm_float(vector.dtype)))

    return vector(array), codegen


@lanewise
def fma(builder, vector, a, b, c):
    """a * b + c"""
    return multiply_add(builder, vector, a, b, c)


def define_operator(function, instruction):
    """`function` on vectors, tiles and numbers is the LLVM `instruction`."""

    def apply(builder, vector, *values):
        return getattr(builder, instruction)(*values)

    @infer_global(function)
    class LanewiseOperator(AbstractTemplate):
        def generic(self, args, kws):
            if any(isinstance(arg, Lanewise) for arg in args) and all(
                isinstance(arg, (Lanewise, types.Number)) for arg in args
            ):
                return lanewise_signature(args)
            return None

    def lower(context, builder, sig, args):
        return apply_lanewise(builder, apply, sig, args)

    both, number = Lanewise, types.Float
    for pattern in [(both, both), (both, number), (number, both), (both,)]:
        lower_builtin(function, *pattern)(lower)


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")
define_operator(operator.truediv, "fdiv")
define_operator(operator.neg, "fneg")


@lanewise
def maximum(builder, vector, a, b):
    """The larger of two vectors, lane by lane; a where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), b, a)


@lanewise
def relu(builder, vector, a):
    """max(0, a), lane by lane; NaN stays NaN."""
    zero = constant(vector, 0.0)
    return builder.select(builder.fcmp_ordered("<", a, zero), zero, a)


@lanewise
def swap_pairs(builder, vector, a):
    """Every lane's neighbour: the first and the second lane change places, and so on."""
    mask = ir.VectorType(ir.IntType(32), vector.lanes)
    return builder.shuffle_vector(a, a, ir.Constant(mask, [i ^ 1 for i in range(vector.lanes)]))


@lanewise
def absolute(builder, vector, a):
    """|a|, lane by lane."""
    return call_intrinsic(builder, "fabs", vector, [a])


@lanewise
def replace_nan(builder, vector, a, other):
    """a, and in the lanes where it is NaN the number `other`."""
    return builder.select(builder.fcmp_unordered("uno", a, a), other, a)


@lanewise
def clamp(builder, vector, x, low, high):
    """x between low and high, lane by lane; NaN stays NaN."""
    raised = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    return builder.select(builder.fcmp_ordered(">", raised, high), high, raised)


@lanewise
def where_positive(builder, vector, condition, value):
    """`value` in the lanes where `condition` > 0, else 0."""
    zero = constant(vector, 0.0)
    return builder.select(builder.fcmp_ordered(">", condition, zero), value, zero)


@lanewise
def where_nonzero(builder, vector, condition, value):
    """`value` in the lanes where `condition` is not 0, else 0."""
    zero = constant(vector, 0.0)
    return builder.select(builder.fcmp_unordered("!=", condition, zero), value, zero)


@intrinsic
def smallest(typing_context, array):
    """The smallest positive number of the array's element type, a subnormal one."""

    def codegen(context, builder, sig, args):
        exponent = {types.float32: -149, types.float64: -1074}[array.dtype]
        return ir.Constant(llvm_float(array.dtype), 2.0**exponent)

    return array.dtype(array), codegen


@lanewise
def keep_first(builder, vector, value, count: types.intp, other):
    """Lanes 0 to count - 1 of `value`, then the number `other` (count may exceed the lanes)."""
    kept = lanes_below(builder, vector, range(vector.lanes), count)
    return builder.select(kept, value, other)


@lanewise
def keep_from(builder, vector, value, first: types.intp, other):
    """The number `other` in lanes 0 to first - 1, the lanes of `value` from there on."""
    replaced = lanes_below(builder, vector, range(vector.lanes), first)
    return builder.select(replaced, other, value)


# Far below all that matters, far above the subnormal numbers, with which arithmetic takes a hundred
# times as long.
TINY = {types.float32: 1e-30, types.float64: 1e-290}


@lanewise
def clear_tiny(builder, vector, a):
    """0 in the lanes where the size of a is below TINY, else a."""
    size = call_intrinsic(builder, "fabs", vector, [a])
    near = builder.fcmp_ordered("<", size, constant(vector, TINY[vector.dtype]))
    return builder.select(near, constant(vector, 0.0), a)


@intrinsic
def tiny(typing_context, array):
    """TINY in every lane of a vector of the array's element type."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return constant(vector, TINY[vector.dtype])

    return vector(array), codegen


def inverse_square_root(builder, vector, value):
    """1 / sqrt(value): exact in float64, in float32 within a few units in the last place.

    LLVM may take the machine's estimate and refine it, in half the time.
    """
    estimates = ("afn", "arcp", "nsz") if vector.dtype == types.float32 else ()
    root = call_intrinsic(builder, "sqrt", vector, [value], fastmath=estimates)
    return builder.fdiv(constant(vector, 1.0), root, flags=estimates)


@lanewise
def inverse_root(builder, vector, a):
    """1 / sqrt(a), lane by lane, for normal positive numbers; see inverse_square_root."""
    return inverse_square_root(builder, vector, a)


@lanewise
def quick_root(builder, vector, a):
    """sqrt(a), lane by lane, for numbers from 0 on; as exact as inverse_square_root."""
    if vector.dtype == types.float64:
        return call_intrinsic(builder, "sqrt", vector, [a])
    above = builder.fadd(a, constant(vector, TINY[vector.dtype]))  # 1 / sqrt(0) is infinite
    return builder.fmul(a, inverse_square_root(builder, vector, above))


@lanewise
def keep_chosen(builder, vector, value, bits: types.intp):
    """The lanes of `value` whose bit is set, the first one lowest, and 0 in the others."""
    mask = builder.trunc(bits, ir.IntType(vector.lanes))
    kept = builder.bitcast(mask, ir.VectorType(ir.IntType(1), vector.lanes))
    return builder.select(kept, value, constant(vector, 0.0))
