"""Sine and cosine of vectors, against the C library's in double precision."""

import numpy as np
import pytest
from vectors import apply

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import lanes, load, store
from tapegpt.kernels.simd.trigonometric import cos, sin

# Largest absolute errors, as the docstring of kernels/simd/trigonometric.py states them.
BOUNDS = {"float32": 1.2e-7, "float64": 2.3e-16}
EXACT = {"float32": np.float64, "float64": np.longdouble}


@jit
def sin_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, sin(load(x, i)))


@jit
def cos_all(out, x):
    for i in range(0, len(x), lanes(x)):
        store(out, i, cos(load(x, i)))


KERNELS = {"sin": (sin_all, np.sin), "cos": (cos_all, np.cos)}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", KERNELS)
def test_errors_are_within_the_bounds(name, dtype):
    kernel, reference = KERNELS[name]
    rng = np.random.default_rng(1)
    quarters = np.pi / 2 * np.arange(-200, 201)
    x = np.concatenate(
        [rng.uniform(-10, 10, 20_000), rng.uniform(-5000, 5000, 20_000), quarters]
    ).astype(dtype)
    wrong = np.abs(apply(kernel, x) - reference(x.astype(EXACT[dtype])))
    assert wrong.max() <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_small_sine_is_its_angle(dtype):
    tiny = np.finfo(dtype).tiny
    x = np.array([tiny, -tiny, 1e-20, 1e-8, -1e-5, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(apply(sin_all, x)[:4], x[:4])
    np.testing.assert_allclose(apply(sin_all, x), np.sin(x.astype(np.float64)), rtol=1e-6, atol=0)
    np.testing.assert_array_equal(apply(cos_all, x)[:4], np.ones(4))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", KERNELS)
def test_beyond_the_reduction_and_of_nothing_finite(name, dtype):
    kernel, reference = KERNELS[name]
    large = np.array([1e7, -3e9, 1e15, 2.0], dtype)
    found = apply(kernel, large)
    assert np.abs(found - reference(large.astype(EXACT[dtype]))).max() <= BOUNDS[dtype]
    assert np.isnan(apply(kernel, np.array([np.nan, np.inf, -np.inf], dtype))).all()
