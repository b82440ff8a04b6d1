"""Functions of whole vectors, for kernels of one's own: `vmath.exp(simd.load(x[r], c))`.

As exact as simd/math.py and simd/special.py say.
"""

from tapegpt.kernels.simd.lanewise import absolute, fma, maximum, relu
from tapegpt.kernels.simd.math import exp2, log
from tapegpt.kernels.simd.math import exp_any as exp
from tapegpt.kernels.simd.special import (
    erf,
    power,
    softplus,
    sqrt,
    tanh,
    where_at_most,
    where_equal,
    where_less,
    where_unequal,
    whole_power,
)

__all__ = [
    "absolute",
    "erf",
    "exp",
    "exp2",
    "fma",
    "log",
    "maximum",
    "power",
    "relu",
    "softplus",
    "sqrt",
    "tanh",
    "where_at_most",
    "where_equal",
    "where_less",
    "where_unequal",
    "whole_power",
]
