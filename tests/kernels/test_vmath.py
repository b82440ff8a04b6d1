"""exp, exp2 and log of vectors, against the C library's in extended precision."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vectors import apply, needs_extended

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import (
    VECTOR_BYTES,
    lanes,
    load,
    store,
)
from tapegpt.kernels.simd.math import (
    EXP2_LOWEST,
    EXP_RANGE,
    exp,
    exp2,
    log,
    quick_exp2,
)

DTYPES = ["float32", "float64"]
# Largest relative errors, as the docstring of kernels/simd/math.py states them.
EXP_BOUND = {"float32": 1.15e-7, "float64": 2e-16}
EXP2_BOUND = {"float32": 1.1e-7, "float64": 2e-16}
QUICK_EXP2_BOUND = {"float32": 2.5e-7, "float64": 2e-16}
LOG_BOUND = {"float32": 2.3e-7, "float64": 5e-16}


@jit
def exp_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, exp(load(x, i)))


@jit
def exp2_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, exp2(load(x, i)))


@jit
def quick_exp2_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, quick_exp2(load(x, i)))


@jit
def log_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, log(load(x, i)))


def relative_error(result, exact):
    assert exact.dtype == np.longdouble
    return np.abs(result - exact) / np.where(exact == 0, 1, np.abs(exact))


def exp_range(dtype):
    return next(bounds for kind, bounds in EXP_RANGE.items() if str(kind) == dtype)


def exp2_range(dtype):
    low = next(bound for kind, bound in EXP2_LOWEST.items() if str(kind) == dtype)
    return low, np.finfo(dtype).maxexp - 1


def neighbours(x, count):
    """x and the floats next to it, `count` on either side."""
    steps = np.arange(-count, count + 1)
    return (x[:, None] * (1 + steps * np.finfo(x.dtype).eps)).astype(x.dtype).ravel()


def exp_arguments(dtype):
    low, high = exp_range(dtype)
    rng = np.random.default_rng(0)
    # Where the multiple of ln 2 that is taken out changes, the remainder is largest.
    halves = (np.arange(int(low), int(high)) + 0.5) * np.log(2)
    samples = [
        np.linspace(low, high, 300_000),
        rng.uniform(-1, 1, 300_000),
        np.exp2(rng.uniform(-60, 0, 10_000)),
        np.array([0.0, low, high, -46.786034, -16.2885]),
        neighbours(halves, 4),
    ]
    x = np.concatenate(samples).astype(dtype)
    return x[(x >= low) & (x <= high)]


def exp2_arguments(dtype):
    low, high = exp2_range(dtype)
    rng = np.random.default_rng(0)
    samples = [
        np.linspace(low, high, 300_000),
        rng.uniform(-1, 1, 300_000),
        np.exp2(rng.uniform(-60, 0, 10_000)),
        np.array([0.0, low, high, -0.49865904, -0.4959549]),
        neighbours(np.arange(low, high) + 0.5, 4),
    ]
    x = np.concatenate(samples).astype(dtype)
    return x[(x >= low) & (x <= high)]


def log_arguments(dtype):
    info = np.finfo(dtype)
    rng = np.random.default_rng(1)
    exponents = np.arange(info.minexp + 1, info.maxexp)
    # Where the exponent that is taken out changes, and around 1, where the result vanishes.
    edges = np.sqrt(0.5) * np.exp2(exponents.astype(float))
    samples = [
        np.exp2(rng.uniform(info.minexp, info.maxexp - 0.001, 300_000)),
        rng.uniform(0.5, 2, 300_000),
        neighbours(np.ones(1, dtype), 20_000),
        neighbours(edges.astype(dtype), 4),
        np.array([info.tiny, info.max, 1.1365491]),
    ]
    return np.concatenate([sample.astype(dtype) for sample in samples])


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_over_its_whole_domain(dtype):
    x = exp_arguments(dtype)
    error = relative_error(apply(exp_all, x), np.exp(x.astype(np.longdouble)))
    assert error.max() <= EXP_BOUND[dtype], x[error.argmax()]


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_over_its_whole_domain(dtype):
    x = exp2_arguments(dtype)
    error = relative_error(apply(exp2_all, x), np.exp2(x.astype(np.longdouble)))
    assert error.max() <= EXP2_BOUND[dtype], x[error.argmax()]


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_exp2_over_the_normal_numbers(dtype):
    x = exp2_arguments(dtype)
    error = relative_error(apply(quick_exp2_all, x), np.exp2(x.astype(np.longdouble)))
    assert error.max() <= QUICK_EXP2_BOUND[dtype], x[error.argmax()]
    outside = apply(quick_exp2_all, np.array([-1e30, -np.inf, np.nan], dtype))
    assert (outside[:2] < 10 * np.finfo(dtype).tiny).all()
    assert np.isnan(outside[2])


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_over_its_whole_domain(dtype):
    x = log_arguments(dtype)
    error = relative_error(apply(log_all, x), np.log(x.astype(np.longdouble)))
    assert error.max() <= LOG_BOUND[dtype], x[error.argmax()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_clamped_and_keeps_nan(dtype):
    low, high = exp_range(dtype)
    x = np.array([0, np.nan, -np.inf, low - 0.1, -1e30, low, high, high + 0.1, 1e30, np.inf], dtype)
    result = apply(exp_all, x)
    assert result[0] == 1
    assert np.isnan(result[1])
    assert (result[2:5] == result[5]).all()
    assert (result[7:] == result[6]).all()
    info = np.finfo(dtype)
    assert info.tiny <= result[5] <= 2.2 * info.tiny
    assert info.max / 2.2 <= result[6] <= info.max


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_of_whole_numbers_is_exact_and_0_below_its_domain(dtype):
    low, high = exp2_range(dtype)
    exponents = np.arange(int(low), high + 1)
    powers = apply(exp2_all, exponents.astype(dtype))
    np.testing.assert_array_equal(powers, np.ldexp(np.ones_like(powers), exponents))
    x = np.array([np.nextafter(low, -np.inf, dtype=dtype), 3 * low, -1e30, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(apply(exp2_all, x), [0, 0, 0, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_outside_its_domain(dtype):
    x = np.array([1, 0, -0.0, np.inf, -1e-30, -1, -np.inf, np.nan], dtype)
    expected = [0, -np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan, np.nan]
    np.testing.assert_array_equal(apply(log_all, x), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [exp_all, exp2_all, log_all])
@given(data=st.data())
def test_lanes_do_not_disturb_each_other(kernel, dtype, data):
    x = data.draw(st.floats(0.125, 50, width=32))
    others = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30, x])
    count = VECTOR_BYTES // np.dtype(dtype).itemsize
    alone = apply(kernel, np.full(count, x, dtype))[0]
    lane = data.draw(st.integers(0, count - 1))
    vector = data.draw(st.lists(others, min_size=count, max_size=count))
    vector[lane] = x
    assert apply(kernel, np.array(vector, dtype))[lane] == alone


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
@given(x=st.floats(-87, 88, width=32))
@example(0.34657359027997264)
def test_log_undoes_exp(dtype, x):
    y = apply(exp_all, np.array([x], dtype))
    exact = np.log(y.astype(np.longdouble))
    assert relative_error(apply(log_all, y), exact)[0] <= LOG_BOUND[dtype]
    # An error in y moves its logarithm by as much as y is wrong by, relatively.
    assert abs(exact[0] - np.longdouble(np.dtype(dtype).type(x))) <= EXP_BOUND[dtype]
