"""exp of any number, exp and softplus of near ones, against the C library in extended precision."""

import numpy as np
import pytest
from vectors import apply, needs_extended

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import (
    VECTOR_BYTES,
    first_lane,
    fma,
    lanes,
    load,
    one_lane,
    store,
)
from tapegpt.kernels.simd.math import (
    NEAR,
    exp_any,
    exp_near,
    softplus_near,
)

DTYPES = ["float32", "float64"]
# Largest relative errors, as the docstring of simd/math.py states them, and what is added to
# those for every 1 in |x|: where multiplications and additions are fused, and where they are not.
EXP_ANY_BOUND = {"float32": 1.1e-7, "float64": 2e-16}
EXP_NEAR_BOUND = {"float32": 1.8e-7, "float64": 4e-16}
EXP_NEAR_SLOPE = {"float32": (3e-9, 6e-8), "float64": (4e-17, 1.3e-16)}
SOFTPLUS_BOUND = {"float32": 3e-7, "float64": 2.5e-15}


@jit
def exp_near_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, exp_near(load(x, i)))


@jit
def exp_any_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, exp_any(load(x, i)))


@jit
def softplus_all(out, x):
    for i in range(len(x)):
        out[i] = first_lane(softplus_near(one_lane(x, x[i])))


def near_numbers(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            np.linspace(-NEAR, NEAR, 300_000),
            rng.uniform(-1, 1, 300_000),
            np.exp2(rng.uniform(-60, 0, 10_000)),
            # Where the multiple of ln 2 that is taken out changes, the remainder is largest.
            (np.arange(-86, 86) + 0.5) * np.log(2),
        ]
    ).astype(dtype)
    return x[np.abs(x) < NEAR]


def relative_error(result, exact):
    return np.abs(result - exact) / exact


@jit
def square_minus(out, x, y):
    store(out, 0, fma(load(x, 0), load(x, 0), load(y, 0)))


def fuses(dtype):
    """Whether this machine rounds a product and a sum together."""
    x = np.full(VECTOR_BYTES // np.dtype(dtype).itemsize, 1 + np.finfo(dtype).eps, dtype)
    out = np.empty_like(x)
    square_minus(out, x, -x * x)
    return out[0] != 0


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_near(dtype):
    x = near_numbers(dtype)
    error = relative_error(apply(exp_near_all, x), np.exp(x.astype(np.longdouble)))
    fused, separate = EXP_NEAR_SLOPE[dtype]
    slope = fused if fuses(dtype) else separate
    assert (error - slope * np.abs(x)).max() <= EXP_NEAR_BOUND[dtype]


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_near(dtype):
    x = near_numbers(dtype)
    exact = np.log1p(np.exp(-np.abs(x).astype(np.longdouble))) + np.maximum(x, 0)
    error = relative_error(apply(softplus_all, x), exact)
    slope = 0.0 if fuses(dtype) else EXP_NEAR_SLOPE[dtype][1]
    assert (error + slope * np.minimum(x, 0)).max() <= SOFTPLUS_BOUND[dtype]


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_any(dtype):
    info = np.finfo(dtype)
    x = np.linspace(np.log(info.smallest_subnormal) - 3, np.log(info.max) + 3, 300_000)
    x = x.astype(dtype)
    result = apply(exp_any_all, x)
    exact = np.exp(x.astype(np.longdouble))
    normal, tiny, huge = (
        (exact >= info.tiny) & (exact <= info.max),
        exact < info.tiny,
        exact > info.max,
    )
    assert relative_error(result[normal], exact[normal]).max() <= EXP_ANY_BOUND[dtype]
    assert np.abs(result[tiny] - exact[tiny]).max() <= info.smallest_subnormal
    assert (result[huge] == np.inf).all()
    assert tiny.any()
    assert huge.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_any_at_the_edges(dtype):
    x = np.array([0, -0.0, np.inf, -np.inf, 1e30, -1e30, np.nan], dtype)
    expected = [1, 1, np.inf, 0, np.inf, 0, np.nan]
    np.testing.assert_array_equal(apply(exp_any_all, x), np.array(expected, dtype))
