"""Arithmetic lane by lane; `+ - * /` take a vector on either side and a scalar on the other."""

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from tapegpt.kernels.simd.types import (
    Vector,
    broadcast,
    call_intrinsic,
    constant,
    lanes_below,
    llvm_float,
    multiply_add,
    opaque,
)


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
    """A vector of zeros, of which the optimizer does not know that it is.

    It would turn a loop that stores three of them into a call of memset.
    """
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        zero = opaque(builder, ir.Constant(ir.IntType(vector.dtype.bitwidth), 0))
        return broadcast(builder, vector, builder.bitcast(zero, llvm_float(vector.dtype)))

    return vector(array), codegen


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c"""

    def codegen(context, builder, sig, args):
        return multiply_add(builder, a, *args)

    return a(a, a, a), codegen


def define_operator(function, instruction):
    """`function` on two vectors, or on a vector and a number, is the LLVM `instruction`."""

    @infer_global(function)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [arg for arg in args if isinstance(arg, Vector)]
            if vectors and all(isinstance(arg, (Vector, types.Number)) for arg in args):
                vector = vectors[0]
                scalar = vector.dtype
                cast = [arg if isinstance(arg, Vector) else scalar for arg in args]
                return signature(vector, *cast)
            return None

    def lower(context, builder, sig, args):
        vector = sig.return_type
        operands = [
            arg if isinstance(kind, Vector) else broadcast(builder, vector, arg)
            for kind, arg in zip(sig.args, args, strict=True)
        ]
        return getattr(builder, instruction)(*operands)

    for pattern in [(Vector, Vector), (Vector, types.Float), (types.Float, Vector)]:
        lower_builtin(function, *pattern)(lower)


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")
define_operator(operator.truediv, "fdiv")


@infer_global(operator.neg)
class VectorNegation(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)
def negate(context, builder, sig, args):
    return builder.fneg(args[0])


@intrinsic
def maximum(typing_context, a, b):
    """The larger of two vectors, lane by lane; a where either is NaN."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return a(a, a), codegen


@intrinsic
def relu(typing_context, a):
    """max(0, a), lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        zero = constant(a, 0.0)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return a(a), codegen


@intrinsic
def absolute(typing_context, a):
    """|a|, lane by lane."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "fabs", a, args)

    return a(a), codegen


@intrinsic
def replace_nan(typing_context, a, other):
    """a, and in the lanes where it is NaN the number `other`."""

    def codegen(context, builder, sig, args):
        missing = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.select(missing, broadcast(builder, a, args[1]), args[0])

    return a(a, a.dtype), codegen


@intrinsic
def clamp(typing_context, x, low, high):
    """x between low and high, lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        x_value, low, high = args
        raised = builder.select(builder.fcmp_ordered("<", x_value, low), low, x_value)
        return builder.select(builder.fcmp_ordered(">", raised, high), high, raised)

    return x(x, x, x), codegen


@intrinsic
def where_positive(typing_context, condition, value):
    """`value` in the lanes where `condition` > 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = constant(value, 0.0)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return value(condition, value), codegen


@intrinsic
def where_nonzero(typing_context, condition, value):
    """`value` in the lanes where `condition` is not 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = constant(value, 0.0)
        return builder.select(builder.fcmp_unordered("!=", args[0], zero), args[1], zero)

    return value(condition, value), codegen


@intrinsic
def smallest(typing_context, array):
    """The smallest positive number of the array's element type, a subnormal one."""

    def codegen(context, builder, sig, args):
        exponent = {types.float32: -149, types.float64: -1074}[array.dtype]
        return ir.Constant(llvm_float(array.dtype), 2.0**exponent)

    return array.dtype(array), codegen


@intrinsic
def keep_first(typing_context, value, count, other):
    """Lanes 0 to count - 1 of `value`, then the number `other` (count may exceed the lanes)."""

    def codegen(context, builder, sig, args):
        kept = lanes_below(builder, value, range(value.lanes), args[1])
        return builder.select(kept, args[0], broadcast(builder, value, args[2]))

    return value(value, types.intp, value.dtype), codegen


@intrinsic
def keep_from(typing_context, value, first, other):
    """The number `other` in lanes 0 to first - 1, the lanes of `value` from there on."""

    def codegen(context, builder, sig, args):
        replaced = lanes_below(builder, value, range(value.lanes), args[1])
        return builder.select(replaced, broadcast(builder, value, args[2]), args[0])

    return value(value, types.intp, value.dtype), codegen


# Far below all that matters, far above the subnormal numbers, with which arithmetic takes a hundred
# times as long.
TINY = {types.float32: 1e-30, types.float64: 1e-290}


@intrinsic
def clear_tiny(typing_context, a):
    """0 in the lanes where the size of a is below TINY, else a."""

    def codegen(context, builder, sig, args):
        size = call_intrinsic(builder, "fabs", a, args)
        near = builder.fcmp_ordered("<", size, constant(a, TINY[a.dtype]))
        return builder.select(near, constant(a, 0.0), args[0])

    return a(a), codegen


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


@intrinsic
def inverse_root(typing_context, a):
    """1 / sqrt(a), lane by lane, for normal positive numbers; see inverse_square_root."""

    def codegen(context, builder, sig, args):
        return inverse_square_root(builder, a, args[0])

    return a(a), codegen


@intrinsic
def quick_root(typing_context, a):
    """sqrt(a), lane by lane, for numbers from 0 on; as exact as inverse_square_root."""

    def codegen(context, builder, sig, args):
        if a.dtype == types.float64:
            return call_intrinsic(builder, "sqrt", a, args)
        above = builder.fadd(args[0], constant(a, TINY[a.dtype]))  # 1 / sqrt(0) is infinite
        return builder.fmul(args[0], inverse_square_root(builder, a, above))

    return a(a), codegen


@intrinsic
def keep_chosen(typing_context, value, bits):
    """The lanes of `value` whose bit is set, the first one lowest, and 0 in the others."""

    def codegen(context, builder, sig, args):
        mask = builder.trunc(args[1], ir.IntType(value.lanes))
        kept = builder.bitcast(mask, ir.VectorType(ir.IntType(1), value.lanes))
        return builder.select(kept, args[0], constant(value, 0.0))

    return value(value, types.intp), codegen
