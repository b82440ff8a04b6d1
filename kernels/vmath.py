"""exp, exp2 and log of vectors.

Largest relative error over the domain, set as the bound in tests/test_vmath.py: exp 1.15e-7, exp2
1.1e-7 and log 2.3e-7 in float32, exp and exp2 2e-16 and log 5e-16 in float64. exp is clamped to the
normal range (EXP_RANGE) instead of reaching 0 or infinity; exp2 is for softmax. NaN in, NaN out.
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.jit import jit
from tapegpt.kernels.simd import (
    clamp,
    constant,
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

# e^r for |r| <= ln(2)/2, interpolated in Chebyshev's points: within 3e-9 and 5e-18 of it.
EXP_TERMS = {
    types.float32: [
        1.0, 1.0000000377388714, 0.5000000047146057, 0.16666415414041177, 0.04166635277111221,
        0.008375134774624326, 0.0013941118895837,
    ],
    types.float64: [
        1.0, 1.0, 0.5000000000000019, 0.1666666666666668, 0.04166666666648795,
        0.008333333333319589, 0.0013888888952352863, 0.00019841269890076403,
        2.4801485441561313e-05, 2.755724088722987e-06, 2.763265472252779e-07,
        2.5110049204818658e-08,
    ],
}  # fmt: skip
# 2^r for |r| <= 1/2, likewise.
EXP2_TERMS = {
    types.float32: [
        1.0, 0.6931472067185375, 0.24022650922424724, 0.05550327193163993, 0.00961805664951722,
        0.0013400441580195398, 0.00015461456301343578,
    ],
    types.float64: [
        1.0, 0.6931471805599453, 0.2402265069591016, 0.055504108664821625, 0.009618129107587223,
        0.0013333558146406453, 0.00015403530463766596, 1.5252733841579287e-05,
        1.3215432514189648e-06, 1.017805707615539e-07, 7.074198158791346e-09,
        4.4558199665721414e-10,
    ],
}  # fmt: skip
# Added to a number this rounds it to a whole one, k, and leaves k + bias in the lowest bits.
ROUNDING = {
    dtype: 1.5 * 2 ** FRACTION[dtype] + BIAS[dtype] for dtype in (types.float32, types.float64)
}
LOG2_E = 1 / math.log(2)
# ln((1 + s) / (1 - s)) = 2 s (1 + s^2/3 + s^4/5 + ...) for |s| <= 3 - 2 sqrt(2): the first term
# left out is below half a unit in the last place.
LOG_TERMS = {
    types.float32: [2 / (2 * n + 1) for n in range(6)],
    types.float64: [2 / (2 * n + 1) for n in range(12)],
}
# Beyond these exp is the largest or smallest normal number, give or take a factor of 2.2.
EXP_RANGE = {types.float32: (-87.0, 88.0), types.float64: (-708.0, 709.0)}

# Below this exp2 is 0: what a softmax would make of it vanishes beside the largest term, but a
# product with it could be subnormal, and arithmetic on those takes a hundred times as long.
EXP2_LOWEST = {types.float32: -90.0, types.float64: -900.0}


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
rounding = typed_constant(ROUNDING)
log2_e = typed_constant(dict.fromkeys(FRACTION, LOG2_E))
exp_lowest = typed_constant({dtype: low for dtype, (low, _) in EXP_RANGE.items()})
exp_highest = typed_constant({dtype: high for dtype, (_, high) in EXP_RANGE.items()})
exp_polynomial = polynomial(EXP_TERMS)
exp2_polynomial = polynomial(EXP2_TERMS)
log_polynomial = polynomial(LOG_TERMS)


@intrinsic
def number_rounded(typing_context, rounded):
    """k, where `rounded` is ROUNDING + k."""

    def codegen(context, builder, sig, args):
        subtracted = constant(rounded, ROUNDING[rounded.dtype])
        # A flag of its own keeps reassoc away, with which x + ROUNDING - ROUNDING would be x.
        return builder.fsub(args[0], subtracted, flags=("contract",))

    return rounded(rounded), codegen


@intrinsic
def power_of_rounded(typing_context, rounded):
    """2 ** k, where `rounded` is ROUNDING + k: its lowest bits become the exponent."""

    def codegen(context, builder, sig, args):
        integers = llvm_integers(rounded)
        shift = ir.Constant(integers, [FRACTION[rounded.dtype]] * rounded.lanes)
        bits = builder.shl(builder.bitcast(args[0], integers), shift)
        return builder.bitcast(bits, llvm_vector(rounded))

    return rounded(rounded), codegen


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


@intrinsic
def zero_below_range(typing_context, x, result):
    """`result`, or 0 where x is below EXP2_LOWEST; where x is NaN, `result`."""

    def codegen(context, builder, sig, args):
        value, result = args
        below = builder.fcmp_ordered("<", value, constant(x, EXP2_LOWEST[x.dtype]))
        return builder.select(below, constant(x, 0.0), result)

    return x(x, x), codegen


@jit
def exp2(x):
    """2 ** x for x up to the largest exponent; 0 below EXP2_LOWEST."""
    rounded = x + rounding(x)
    r = x - number_rounded(rounded)
    return zero_below_range(x, exp2_polynomial(r) * power_of_rounded(rounded))


@jit
def exp(x):
    """e ** x: reduce by multiples of ln 2 to |r| <= ln(2)/2, sum the series, scale."""
    x = clamp(x, exp_lowest(x), exp_highest(x))
    rounded = fma(x, log2_e(x), rounding(x))
    k = number_rounded(rounded)
    r = fma(k, -1.0 * ln2_low(x), fma(k, -1.0 * ln2_high(x), x))
    return exp_polynomial(r) * power_of_rounded(rounded)


@jit
def log(x):
    """ln x for positive normal x; -inf at 0, NaN below, inf at inf."""
    mantissa, k = split_float(x)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    tail = fma(k, ln2_low(x), s * log_polynomial(s * s))
    return log_special(x, fma(k, ln2_high(x), tail))
