"""erf, tanh, softplus and powers of vectors, against the C library's in double precision."""

import math

import numpy as np
import pytest
from vectors import apply, whole_vectors

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import lanes, load, store
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

DTYPES = ["float32", "float64"]
# Largest relative errors, as the docstring of kernels/simd/special.py states them.
BOUNDS = {"float32": 3e-7, "float64": 6e-16}


@jit
def erf_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, erf(load(x, i)))


@jit
def tanh_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, tanh(load(x, i)))


@jit
def softplus_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, softplus(load(x, i)))


@jit
def powers_all(out, x, exponent):
    for i in range(0, len(x), lanes(x)):
        store(out, i, power(load(x, i), exponent))


@jit
def whole_powers(out, x):
    count = lanes(x)
    for i in range(0, len(x), count):
        a = load(x, i)
        store(out[0], i, whole_power(a, 0))
        store(out[1], i, whole_power(a, 1))
        store(out[2], i, whole_power(a, 7))
        store(out[3], i, whole_power(a, -2))
        store(out[4], i, sqrt(a))


@jit
def choices(out, x, y):
    for i in range(0, len(x), lanes(x)):
        a, b = load(x, i), load(y, i)
        store(out[0], i, where_less(a, b, 1.0, a))
        store(out[1], i, where_at_most(a, b, 1.0, a))
        store(out[2], i, where_equal(a, b, 1.0, a))
        store(out[3], i, where_unequal(a, b, 1.0, a))


def numbers(dtype, low, high):
    rng = np.random.default_rng(0)
    tiny = np.exp2(rng.uniform(-40, 0, 2000)) * rng.choice([-1, 1], 2000)
    edges = np.array([0.99999, 1.0, 1.00001, -1.0, 0.0])
    x = np.concatenate([np.linspace(low, high, 20_001), tiny, edges]).astype(dtype)
    return x[(low <= x) & (x <= high)]


def worst(result, exact):
    exact = np.array(exact)
    return np.max(np.abs(result - exact) / np.where(exact == 0, 1, np.abs(exact)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "exact"), [(erf_all, math.erf), (tanh_all, math.tanh)], ids=["erf", "tanh"]
)
def test_erf_and_tanh(kernel, exact, dtype):
    x = numbers(dtype, -7, 7)
    assert worst(apply(kernel, x), [exact(a) for a in x.tolist()]) <= BOUNDS[dtype]
    ends = np.array([np.inf, -np.inf, 40, -40, np.nan, 0], dtype)
    np.testing.assert_array_equal(apply(kernel, ends), [1, -1, 1, -1, np.nan, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus(dtype):
    x = numbers(dtype, -80, 80)
    exact = np.logaddexp(0, x.astype(np.float64))
    assert worst(apply(softplus_all, x), exact) <= {"float32": 4e-7, "float64": 1e-15}[dtype]
    ends = np.array([np.inf, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(apply(softplus_all, ends), [np.inf, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers(dtype):
    x = np.exp2(np.linspace(-8, 8, 999)).astype(dtype)
    exact = x.astype(np.float64) ** 2.5
    assert worst(apply(powers_all, x, 2.5), exact) <= {"float32": 4e-6, "float64": 4e-15}[dtype]
    given = whole_vectors(np.array([-1.5, 0.5, 3.0, -0.25], dtype))
    out = np.empty((5, len(given)), dtype)
    with np.errstate(invalid="ignore"):
        expected = [given**0, given, given**7, given**-2.0, np.sqrt(given)]
    whole_powers(out, given)
    np.testing.assert_allclose(out, expected, rtol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_choices(dtype):
    x, y = (
        whole_vectors(np.array([1, 2, 3, np.nan], dtype)),
        whole_vectors(np.array([2, 2, 2, 2], dtype)),
    )
    out = np.empty((4, len(x)), dtype)
    choices(out, x, y)
    holds = [x < y, x <= y, x == y, x != y]
    np.testing.assert_array_equal(out, [np.where(mask, 1, x) for mask in holds])
