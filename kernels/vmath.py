"""exp and log of vectors.

Largest relative error over the domain, set as the bound in tests/test_vmath.py: exp 1.1e-7
and log 2.5e-7 in float32, exp 2e-16 and log 5e-16 in float64. exp is clamped to the normal range
(EXP_RANGE) instead of reaching 0 or infinity. NaN in, NaN out.
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.jit import jit
from tapegpt.kernels.simd import (
    clamp,
    constant,
    floor,
    fma,
    llvm_integers,
    llvm_vector,
    multiply_add,
)

# Number of fraction bits and exponent bias of the IEEE formats.
FRACTION = {types.float32: 23, types.float64: 52}
BIAS = {types.float32: 127, types.float64: 1023}

# ln 2 = high + low, high short enough that a whole number below 2048 times it is exact.
LN2_HIGH = {types.float32: 0.693359375, types.float64: 0.6931471803691238}
LN2_LOW = {types.float32: -2.12194440054690583e-4, types.float64: 1.9082149292705877e-10}

# Taylor series: the first term left out is below half a unit in the last place for |r| <= ln(2)/2.
EXP_TERMS = {
    types.float32: [1 / math.factorial(n) for n in range(8)],
    types.float64: [1 / math.factorial(n) for n in range(14)],
}
# ln((1 + s) / (1 - s)) = 2 s (1 + s^2/3 + s^4/5 + ...) for |s| <= 3 - 2 sqrt(2), likewise.
LOG_TERMS = {
    types.float32: [2 / (2 * n + 1) for n in range(6)],
    types.float64: [2 / (2 * n + 1) for n in range(12)],
}
# Beyond these exp is the largest or smallest normal number, give or take a factor of 2.2.
EXP_RANGE = {types.float32: (-87.0, 88.0), types.float64: (-708.0, 709.0)}


def typed_constant(table):
    """An intrinsic f(vector) that is the constant table[element type] in every lane."""

    @intrinsic
    def value(typing_context, like):
        def codegen(context, builder, sig, args):
            return constant(like, table[like.dtype])

        return like(like), codegen

    return value


def polynomial(table):
    """An intrinsic f(x): the polynomial whose coefficients are table[element type], by Horner."""

    @intrinsic
    def evaluate(typing_context, x):
        def codegen(context, builder, sig, args):
            *rest, result = [constant(x, coefficient) for coefficient in table[x.dtype]]
            for coefficient in reversed(rest):
                result = multiply_add(builder, x, result, args[0], coefficient)
            return result

        return x(x), codegen

    return evaluate


ln2_high = typed_constant(LN2_HIGH)
ln2_low = typed_constant(LN2_LOW)
exp_lowest = typed_constant({dtype: low for dtype, (low, _) in EXP_RANGE.items()})
exp_highest = typed_constant({dtype: high for dtype, (_, high) in EXP_RANGE.items()})
exp_polynomial = polynomial(EXP_TERMS)
log_polynomial = polynomial(LOG_TERMS)


@intrinsic
def power_of_two(typing_context, k):
    """2 ** k for whole k in the normal range, by writing the exponent bits."""

    def codegen(context, builder, sig, args):
        integers = llvm_integers(k)
        bias = ir.Constant(integers, [BIAS[k.dtype]] * k.lanes)
        shift = ir.Constant(integers, [FRACTION[k.dtype]] * k.lanes)
        bits = builder.shl(builder.add(builder.fptosi(args[0], integers), bias), shift)
        return builder.bitcast(bits, llvm_vector(k))

    return k(k), codegen


@intrinsic
def split_float(typing_context, x):
    """(m, k) with x = m * 2 ** k and m in [sqrt(1/2), sqrt(2)), for positive normal x."""

    def codegen(context, builder, sig, args):
        integers = llvm_integers(x)

        def splat(number):
            return ir.Constant(integers, [number] * x.lanes)

        fraction = FRACTION[x.dtype]
        # Subtracting the bits of sqrt(1/2) moves the boundary between two exponents there.
        half = {types.float32: 0x3F3504F3, types.float64: 0x3FE6A09E667F3BCD}[x.dtype]
        bits = builder.bitcast(args[0], integers)
        above = builder.sub(bits, splat(half))
        exponent = builder.ashr(above, splat(fraction))
        mantissa_bits = builder.sub(bits, builder.shl(exponent, splat(fraction)))
        mantissa = builder.bitcast(mantissa_bits, llvm_vector(x))
        return context.make_tuple(
            builder, sig.return_type, [mantissa, builder.sitofp(exponent, llvm_vector(x))]
        )

    return types.UniTuple(x, 2)(x), codegen


@intrinsic
def log_special(typing_context, x, result):
    """`result` where x is positive and finite, else what IEEE 754 says ln x is."""

    def codegen(context, builder, sig, args):
        value, result = args
        zero = constant(x, 0.0)
        infinity = constant(x, math.inf)
        outside = builder.select(
            builder.fcmp_ordered("==", value, infinity), infinity, constant(x, math.nan)
        )
        outside = builder.select(
            builder.fcmp_ordered("==", value, zero), constant(x, -math.inf), outside
        )
        inside = builder.and_(
            builder.fcmp_ordered(">", value, zero), builder.fcmp_ordered("<", value, infinity)
        )
        return builder.select(inside, result, outside)

    return x(x, x), codegen


@jit
def exp(x):
    """e ** x: reduce by multiples of ln 2 to |r| <= ln(2)/2, sum the series, scale."""
    x = clamp(x, exp_lowest(x), exp_highest(x))
    k = floor(x * 1.4426950408889634 + 0.5)
    r = fma(k, -1.0 * ln2_low(x), fma(k, -1.0 * ln2_high(x), x))
    return exp_polynomial(r) * power_of_two(k)


@jit
def log(x):
    """ln x for positive normal x; -inf at 0, NaN below, inf at inf."""
    mantissa, k = split_float(x)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    tail = fma(k, ln2_low(x), s * log_polynomial(s * s))
    return log_special(x, fma(k, ln2_high(x), tail))
