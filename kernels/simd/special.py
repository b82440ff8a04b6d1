"""erf, tanh, softplus, sqrt and powers of vectors, and choices between vectors lane by lane.

Largest relative errors, set as bounds in tests/kernels/test_special.py: erf and tanh 3e-7 in
float32 and 6e-16 in float64; softplus 4e-7 and 1e-15. NaN in, NaN out; infinities have theirs.

erf by two polynomials, as in W. J. Cody, Rational Chebyshev approximations for the error function
(1969): x P(x^2) near 0, and 1 - e^(-x^2) Q(1 / (x + 3)) beyond. The coefficients were computed by
Remez's exchange with 50 digits: within 4e-8 and 7e-18 of the function, relatively.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import absolute, clamp, fma, relu
from tapegpt.kernels.simd.lanewise import lanewise
from tapegpt.kernels.simd.math import (
    exp_any,
    exp_pairwise,
    ln2_high,
    ln2_low,
    log,
    log1p_pairwise,
    log2_e,
    number_rounded,
    one,
    polynomial,
    power_of_rounded,
    rounding,
    typed_constant,
)
from tapegpt.kernels.simd.types import call_intrinsic, llvm_float

# erf(x) / x for |x| <= 1, a polynomial in x^2.
ERF_NEAR_TERMS = {
    types.float32: [
        1.1283791224996276, -0.3761232620807172, 0.11280180208579654, -0.02671131278469752,
        0.004917552207217617, -0.0005631422827952974,
    ],
    types.float64: [
        1.1283791670955126, -0.3761263890318352, 0.11283791670944185, -0.02686617064311145,
        0.005223977606118397, -0.0008548325929312908, 0.0001205529357691112,
        -1.4924712303200864e-05, 1.6447131596542416e-06, -1.6206314020901686e-07,
        1.3710981784571833e-08, -7.77947147084308e-10,
    ],
}  # fmt: skip
# e^(x^2) (1 - erf(x)) for x from 1 to where erf is 1, a polynomial in 1 / (x + 3) - 3 / 16. The
# smaller e^(-x^2) is, the less exact it need be.
ERF_FAR_TERMS = {
    types.float32: [
        0.22393305368285116, 2.37039420431567, 11.220402543624141, 38.04244357966063,
        156.19885932239086,
    ],
    types.float64: [
        0.22392935763140878, 2.3715697251254464, 11.127869360589733, 41.02269137840743,
        113.857517242394, 212.25323383602657, 157.9132101053395, -367.9295829564265,
        -1007.0088109866863, 395.3545586318251, 4961.070344870379, -5515.658769637436,
    ],
}  # fmt: skip
# Twice the numbers beyond which tanh is 1 or -1.
TANH_LIMIT = {types.float32: 20.0, types.float64: 40.0}

erf_near = polynomial(ERF_NEAR_TERMS)
erf_far = polynomial(ERF_FAR_TERMS)
tanh_limit = typed_constant(TANH_LIMIT)
zero = typed_constant(dict.fromkeys(TANH_LIMIT, 0.0))


def chooser(comparison: str, ordered: bool = True):
    """An intrinsic f(a, b, x, y): x in the lanes where the comparison of a and b holds, else y."""

    @lanewise
    def choose(builder, vector, a, b, x, y):
        compare = builder.fcmp_ordered if ordered else builder.fcmp_unordered
        return builder.select(compare(comparison, a, b), x, y)

    return choose


where_less = chooser("<")
where_at_most = chooser("<=")
where_equal = chooser("==")
where_unequal = chooser("!=", ordered=False)


@lanewise
def sqrt(builder, vector, x):
    """The square root; NaN below 0."""
    return call_intrinsic(builder, "sqrt", vector, [x])


@lanewise
def with_sign_of(builder, vector, size, x):
    """`size` with the sign of x."""
    return call_intrinsic(builder, "copysign", vector, [size, x])


@jit
def erf_given(x, exponential):
    """erf(x), where e^(-x^2) is known, as who wants the derivative too knows it."""
    size = absolute(x)
    near = x * erf_near(x * x)
    far = 1.0 - erf_far(1.0 / (size + 3.0) - 0.1875) * exponential
    return where_less(size, 1.0, near, with_sign_of(far, x))


@jit
def erf(x):
    """2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    return erf_given(x, exp_any(-(x * x)))


@jit
def tanh(x):
    """(e^2x - 1) / (e^2x + 1), with e^2x - 1 as exact near 0 as elsewhere."""
    twice = clamp(x + x, -1.0 * tanh_limit(x), tanh_limit(x))
    rounded = fma(twice, log2_e(x), rounding(x))
    k = number_rounded(rounded)
    r = fma(k, -1.0 * ln2_low(x), fma(k, -1.0 * ln2_high(x), twice))
    power = power_of_rounded(rounded)
    less_one = fma(power, exp_pairwise(r, zero(x)), power - one(x))
    return less_one / (less_one + 2.0)


@jit
def softplus(x):
    """ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|)."""
    return log1p_pairwise(exp_any(-absolute(x)), relu(x))


@jit
def power(x, exponent):
    """x ** exponent for x from 0 on, as e^(exponent ln x); NaN below 0.

    The relative error grows with the size of exponent ln x, to 1e-13 where the result is largest.
    """
    return exp_any(log(x) * exponent)


@lanewise
def library_power(builder, vector, x, exponent):
    """x ** exponent, of any numbers, by the system's library lane by lane."""
    return call_intrinsic(builder, "pow", vector, [x, exponent])


@jit
def number_power(x, exponent):
    """x ** exponent for one number: the common ones in a few steps, others by the library."""
    if exponent == 2:
        y = x * x
    elif exponent == 1:
        y = x
    elif exponent == 3:
        y = x * x * x
    elif exponent == 0.5:
        y = sqrt(x)
    elif exponent == -0.5:
        y = 1.0 / sqrt(x)
    elif exponent == -1:
        y = 1.0 / x
    elif exponent == 0:
        y = one(x)
    else:
        y = library_power(x, exponent)
    return y


@intrinsic(prefer_literal=True)
def whole_power(typing_context, x, exponent):
    """x ** exponent for a whole number that is a literal, by squaring."""
    number = exponent.literal_value

    def codegen(context, builder, sig, args):
        base, left, result = args[0], abs(number), None
        while left:
            if left & 1:
                result = base if result is None else builder.fmul(result, base)
            left >>= 1
            base = builder.fmul(base, base) if left else base
        one = ir.Constant(args[0].type, [ir.Constant(llvm_float(x.dtype), 1.0)] * x.lanes)
        if result is None:
            return one
        return result if number > 0 else builder.fdiv(one, result)

    return x(x, exponent), codegen
