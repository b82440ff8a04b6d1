"""sin and cos of vectors.

Largest absolute errors, set as bounds in tests/kernels/test_trigonometric.py: 1.2e-7 in float32 and
2.3e-16 in float64; relative ones near 0 likewise. NaN of what is not finite.

k pi / 2 is subtracted in parts so short that k times each is exact (Cody and Waite, Software
manual for the elementary functions, 1980); the rest is within pi / 4, where polynomials are
interpolated in Chebyshev's points: within 1.4e-8 and 1.4e-17 of sine, 3e-10 and 2e-19 of cosine.
Beyond REDUCTION_LIMIT the system's library computes lane by lane.
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.simd import fma, within
from tapegpt.kernels.simd.lanewise import lanewise
from tapegpt.kernels.simd.math import (
    BIAS,
    integers,
    number_rounded,
    one,
    polynomial,
    rounding,
    typed_constant,
)
from tapegpt.kernels.simd.types import call_intrinsic, llvm_float

# (sin x - x) / x^3 and (cos x - 1) / x^2, polynomials in x^2.
SIN_TERMS = {
    types.float32: [-0.16666664650292082, 0.008332745936380422, -0.00019587387068464455],
    types.float64: [
        -0.16666666666666666, 0.008333333333330925, -0.00019841269836722418,
        2.755731608381636e-06, -2.5051127944014188e-08, 1.5917848524808262e-10,
    ],
}  # fmt: skip
COS_TERMS = {
    types.float32: [
        -0.49999999968871983, 0.041666650548440196, -0.0013887583970817676, 2.4463116702438325e-05,
    ],
    types.float64: [
        -0.5, 0.04166666666666664, -0.0013888888888880693, 2.4801587293630193e-05,
        -2.7557315544387844e-07, 2.087588326175103e-09, -1.1367793938832811e-11,
    ],
}  # fmt: skip
# pi / 2 is the sum of four, or of three and 0.
HALF_PI = {
    types.float32: (1.5703125, 0.0004837512969970703, 7.549533620476723e-08, 2.563344151594519e-12),
    types.float64: (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21, 0.0),
}
REDUCTION_LIMIT = {types.float32: 6000.0, types.float64: 1e6}

sin_polynomial, cos_polynomial = polynomial(SIN_TERMS), polynomial(COS_TERMS)
part_0, part_1, part_2, part_3 = (
    typed_constant({dtype: -parts[i] for dtype, parts in HALF_PI.items()}) for i in range(4)
)


@intrinsic
def reduction_limit(typing_context, x):
    """REDUCTION_LIMIT of a vector's elements, a number."""

    def codegen(context, builder, sig, args):
        return ir.Constant(llvm_float(x.dtype), REDUCTION_LIMIT[x.dtype])

    return x.dtype(x), codegen


turns = typed_constant(dict.fromkeys(HALF_PI, 2 / math.pi))


def at_quarter(ahead: int):
    """An intrinsic f(rounded, sine, cosine): the sine of r + (k + ahead) pi / 2.

    `rounded` is ROUNDING + k; sine and cosine are those of r.
    """

    @lanewise
    def choose(builder, vector, rounded, sine, cosine):
        one, two, zero = (integers(vector, n) for n in (1, 2, 0))
        shift = integers(vector, ahead - BIAS[vector.dtype])
        quarter = builder.add(builder.bitcast(rounded, zero.type), shift)
        odd = builder.icmp_signed("!=", builder.and_(quarter, one), zero)
        found = builder.select(odd, cosine, sine)
        negative = builder.icmp_signed("!=", builder.and_(quarter, two), zero)
        return builder.select(negative, builder.fneg(found), found)

    return choose


@lanewise
def library_sin(builder, vector, x):
    return call_intrinsic(builder, "sin", vector, [x])


@lanewise
def library_cos(builder, vector, x):
    return call_intrinsic(builder, "cos", vector, [x])


@inlined
def sin_and_cos(x, rounded):
    """Those of x - k pi / 2, where `rounded` is ROUNDING + k."""
    k = number_rounded(rounded)
    r = fma(k, part_2(x), fma(k, part_1(x), fma(k, part_0(x), x)))
    r = fma(k, part_3(x), r)
    square = r * r
    return fma(r * square, sin_polynomial(square), r), fma(square, cos_polynomial(square), one(x))


sine_at, cosine_at = at_quarter(0), at_quarter(1)


@jit
def sin(x):
    """The sine of x, in radians."""
    if within(x, reduction_limit(x)):
        rounded = fma(x, turns(x), rounding(x))
        sine, cosine = sin_and_cos(x, rounded)
        y = sine_at(rounded, sine, cosine)
    else:
        y = library_sin(x)
    return y


@jit
def cos(x):
    """The cosine of x, in radians."""
    if within(x, reduction_limit(x)):
        rounded = fma(x, turns(x), rounding(x))
        sine, cosine = sin_and_cos(x, rounded)
        y = cosine_at(rounded, sine, cosine)
    else:
        y = library_cos(x)
    return y
