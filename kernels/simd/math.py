"""exp, exp2 and log of vectors, of any number of lanes.

Largest relative error over the domain, set as the bound in tests/kernels/test_vmath.py: exp
1.15e-7, exp2 1.1e-7, quick_exp2 2.5e-7 and log 2.3e-7 in float32, exp, exp2 and quick_exp2 2e-16
and log 5e-16 in float64. exp is clamped to the normal range (EXP_RANGE) instead of reaching 0 or
infinity; exp2 and quick_exp2 are for softmax. NaN in, NaN out.

exp_any is exp without a clamp: subnormal numbers and 0 below the range, infinity above, as exact.

exp_near and softplus_near are for numbers up to NEAR, where dependency chains are long: they do not
clamp, and evaluate polynomials by Estrin's scheme, whose chains are short. Largest relative errors:
exp_near 1.8e-7 + 3e-9 |x| in float32 and 4e-16 + 4e-17 |x| in float64, softplus_near 3e-7 and
2.5e-15. On machines without fused multiplication and addition |x| counts 6e-8 and 1.3e-16, for
softplus_near too where x is negative: as much as rounding x did.
"""

import math
import struct

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import absolute, clamp, fma, maximum, relu
from tapegpt.kernels.simd.lanewise import lanewise
from tapegpt.kernels.simd.types import constant, llvm_integers, multiply_add

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
# The same with a term less where that will do: within 1.1e-7.
QUICK_EXP2_TERMS = {
    types.float32: [
        1.0000000754548972, 0.6931471880262281, 0.24022107485308397, 0.05550357114219054,
        0.009676031918353737, 0.001339086336471391,
    ],
    types.float64: EXP2_TERMS[types.float64],
}  # fmt: skip
# ln(1 + e) / e for e from 0 to 1, likewise: within 6e-9 and 2e-17 of it, relatively.
LOG1P_TERMS = {
    types.float32: [
        0.999999994656292, -0.49999892648063277, 0.3332971049891775, -0.24951616262872076,
        0.19663274257204805, -0.15269667074363288, 0.10543623795419527, -0.05637361283010733,
        0.019542527261014103, -0.00317605701843196,
    ],
    types.float64: [
        1.0, -0.4999999999999908, 0.33333333333197523, -0.24999999992009522, 0.19999999749856523,
        -0.16666661848248537, 0.14285651975275926, -0.12499427063514382, 0.11107211585299538,
        -0.09979768096586568, 0.09009095815198633, -0.08070954578430206, 0.07015296236526472,
        -0.05718978534193906, 0.041925709853904154, -0.026398779480743217, 0.013598778090617254,
        -0.0054217339910016095, 0.0015535244034334333, -0.0002827421139374107,
        2.4437973948580947e-05,
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

# Beyond these exp_any is 0 or infinity.
EXP_LIMITS = {types.float32: (-104.0, 89.0), types.float64: (-746.0, 710.0)}
# Exponentials of numbers up to this size, and sums of a few exponentials, are normal numbers.
NEAR = 60.0

# Below this exp2 underflows to 0. Such a term does not count beside the largest of a softmax, but
# products with it could be subnormal, and subnormal arithmetic takes a hundred times as long.
EXP2_LOWEST = {types.float32: -90.0, types.float64: -900.0}

# 2 to this is a normal number, and so is what a polynomial for 2^r, |r| <= 1/2, makes of it.
SMALLEST_POWER = {types.float32: -125.0, types.float64: -1021.0}


def integers(vector, number):
    """An integer in every lane, as wide as the floats of the vector."""
    return ir.Constant(llvm_integers(vector), [number] * vector.lanes)


def typed_constant(table):
    """An intrinsic f(vector) that is the constant table[element type] in every lane."""

    @lanewise
    def value(builder, vector, like):
        return constant(vector, table[vector.dtype])

    return value


def polynomial(table):
    """An intrinsic f(x): the polynomial whose coefficients are table[element type], by Horner."""

    @lanewise
    def evaluate(builder, vector, x):
        *rest, result = [constant(vector, coefficient) for coefficient in table[vector.dtype]]
        for coefficient in reversed(rest):
            result = multiply_add(builder, vector, result, x, coefficient)
        return result

    return evaluate


def pairwise_polynomial(table):
    """An intrinsic f(x, first): `first` + x times a polynomial, likewise, by Estrin's scheme.

    Neighbouring terms are put together, then neighbouring pairs, and so on.
    """

    @lanewise
    def evaluate(builder, vector, power, first):
        terms = [first, *(constant(vector, coefficient) for coefficient in table[vector.dtype])]
        while len(terms) > 1:
            pairs = [
                multiply_add(builder, vector, high, power, low)
                for low, high in zip(terms[::2], terms[1::2], strict=False)
            ]
            terms = pairs + terms[2 * len(pairs) :]
            power = builder.fmul(power, power)
        return terms[0]

    return evaluate


ln2_high = typed_constant(LN2_HIGH)
ln2_low = typed_constant(LN2_LOW)
rounding = typed_constant(ROUNDING)
log2_e = typed_constant(dict.fromkeys(FRACTION, LOG2_E))
exp_lowest = typed_constant({dtype: low for dtype, (low, _) in EXP_RANGE.items()})
exp_highest = typed_constant({dtype: high for dtype, (_, high) in EXP_RANGE.items()})
one = typed_constant(dict.fromkeys(FRACTION, 1.0))
minus_ln2 = typed_constant(dict.fromkeys(FRACTION, -math.log(2)))
lower_limit = typed_constant({dtype: low for dtype, (low, _) in EXP_LIMITS.items()})
upper_limit = typed_constant({dtype: high for dtype, (_, high) in EXP_LIMITS.items()})
exp_polynomial = polynomial(EXP_TERMS)
exp_pairwise = pairwise_polynomial({dtype: terms[1:] for dtype, terms in EXP_TERMS.items()})
log1p_pairwise = pairwise_polynomial(LOG1P_TERMS)
exp2_polynomial = polynomial(EXP2_TERMS)
quick_exp2_polynomial = polynomial(QUICK_EXP2_TERMS)
smallest_power = typed_constant(SMALLEST_POWER)
log_polynomial = polynomial(LOG_TERMS)


@lanewise
def number_rounded(builder, vector, rounded):
    """k, where `rounded` is ROUNDING + k."""
    subtracted = constant(vector, ROUNDING[vector.dtype])
    # A flag of its own keeps reassoc away, with which x + ROUNDING - ROUNDING would be x.
    return builder.fsub(rounded, subtracted, flags=("contract",))


@lanewise
def power_of_rounded(builder, vector, rounded):
    """2 ** k, where `rounded` is ROUNDING + k: its lowest bits become the exponent."""
    shift = integers(vector, FRACTION[vector.dtype])
    bits = builder.shl(builder.bitcast(rounded, shift.type), shift)
    return builder.bitcast(bits, rounded.type)


@lanewise
def times_power(builder, vector, x, rounded):
    """x * 2 ** k by adding to the exponent, where x and the result are normal numbers."""
    fraction = integers(vector, FRACTION[vector.dtype])
    bias = integers(vector, BIAS[vector.dtype] << FRACTION[vector.dtype])
    k = builder.sub(builder.shl(builder.bitcast(rounded, fraction.type), fraction), bias)
    return builder.bitcast(builder.add(builder.bitcast(x, k.type), k), x.type)


@lanewise
def scale_rounded(builder, vector, x, rounded):
    """x * 2 ** k for any k, in two factors, neither of which overflows."""
    dtype = vector.dtype
    fraction = integers(vector, FRACTION[dtype])
    # The bits of ROUNDING hold the bias once: less that, and the bias twice more, is positive, so
    # that it can be halved without a shift of signed numbers, which AVX2 does not have.
    twice_biased = number_bits(dtype) - 2 * BIAS[dtype]
    both = builder.sub(builder.bitcast(rounded, fraction.type), integers(vector, twice_biased))
    half = builder.lshr(both, integers(vector, 1))
    factors = (builder.shl(k, fraction) for k in (half, builder.sub(both, half)))
    result = x
    for factor in factors:
        # With flags of its own LLVM does not multiply the factors first.
        result = builder.fmul(result, builder.bitcast(factor, x.type), flags=("contract",))
    return result


def number_bits(dtype):
    """The bits of ROUNDING as an integer: one more for every step of the number rounded."""
    kind = {types.float32: "<fi", types.float64: "<dq"}[dtype]
    return struct.unpack(kind[0] + kind[2], struct.pack(kind[0] + kind[1], ROUNDING[dtype]))[0]


@intrinsic
def split_float(typing_context, x):
    """(m, k) with x = m * 2 ** k and m in [sqrt(1/2), sqrt(2)), for positive normal x."""

    def codegen(context, builder, sig, args):
        fraction = integers(x, FRACTION[x.dtype])
        # Subtracting the bits of sqrt(1/2) moves the boundary between two exponents there.
        half = {types.float32: 0x3F3504F3, types.float64: 0x3FE6A09E667F3BCD}[x.dtype]
        bits = builder.bitcast(args[0], fraction.type)
        exponent = builder.ashr(builder.sub(bits, integers(x, half)), fraction)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, fraction)), args[0].type)
        number = builder.sitofp(exponent, args[0].type)
        return context.make_tuple(builder, sig.return_type, [mantissa, number])

    return types.UniTuple(x, 2)(x), codegen


@lanewise
def log_special(builder, vector, x, result):
    """`result` where x is positive and finite, else what IEEE 754 says ln x is."""
    zero, infinity, minus_infinity, nan = (
        constant(vector, number) for number in (0.0, math.inf, -math.inf, math.nan)
    )
    outside = builder.select(builder.fcmp_ordered("==", x, infinity), infinity, nan)
    outside = builder.select(builder.fcmp_ordered("==", x, zero), minus_infinity, outside)
    inside = builder.and_(
        builder.fcmp_ordered(">", x, zero), builder.fcmp_ordered("<", x, infinity)
    )
    return builder.select(inside, result, outside)


@lanewise
def zero_below_range(builder, vector, x, result):
    """`result`, or 0 where x is below EXP2_LOWEST; where x is NaN, `result`."""
    below = builder.fcmp_ordered("<", x, constant(vector, EXP2_LOWEST[vector.dtype]))
    return builder.select(below, constant(vector, 0.0), result)


@jit
def exp2(x):
    """2 ** x for x up to the largest exponent; 0 below EXP2_LOWEST."""
    rounded = x + rounding(x)
    r = x - number_rounded(rounded)
    return zero_below_range(x, exp2_polynomial(r) * power_of_rounded(rounded))


@jit
def quick_exp2(x):
    """2 ** x for x up to the largest exponent, about 0 below the normal range, in fewer steps."""
    x = maximum(x, smallest_power(x))
    rounded = x + rounding(x)
    r = x - number_rounded(rounded)
    return quick_exp2_polynomial(r) * power_of_rounded(rounded)


@jit
def exp(x):
    """e ** x: reduce by multiples of ln 2 to |r| <= ln(2)/2, sum the series, scale."""
    x = clamp(x, exp_lowest(x), exp_highest(x))
    rounded = fma(x, log2_e(x), rounding(x))
    k = number_rounded(rounded)
    r = fma(k, -1.0 * ln2_low(x), fma(k, -1.0 * ln2_high(x), x))
    return exp_polynomial(r) * power_of_rounded(rounded)


@jit
def exp_any(x):
    """e ** x of any number: infinity above the range, subnormal numbers and 0 below it."""
    x = clamp(x, lower_limit(x), upper_limit(x))
    rounded = fma(x, log2_e(x), rounding(x))
    k = number_rounded(rounded)
    r = fma(k, -1.0 * ln2_low(x), fma(k, -1.0 * ln2_high(x), x))
    return scale_rounded(exp_polynomial(r), rounded)


@jit
def exp_near(x):
    """e ** x for |x| < NEAR."""
    rounded = fma(x, log2_e(x), rounding(x))
    # In one step, though ln 2 is not exact: it does less harm than x's own rounding did.
    r = fma(number_rounded(rounded), minus_ln2(x), x)
    return times_power(exp_pairwise(r, one(x)), rounded)


@jit
def softplus_near(x):
    """ln(1 + e ** x) for |x| < NEAR, as max(x, 0) + ln(1 + e ** -|x|)."""
    e = exp_near(absolute(x) * -1.0)
    return log1p_pairwise(e, relu(x))


@jit
def log(x):
    """ln x for positive normal x; -inf at 0, NaN below, inf at inf."""
    mantissa, k = split_float(x)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    tail = fma(k, ln2_low(x), s * log_polynomial(s * s))
    return log_special(x, fma(k, ln2_high(x), tail))
