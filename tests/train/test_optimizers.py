"""Updates of the parameters against plain NumPy in float64."""

import math

import numpy as np
import pytest
import references
from gradients import group
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import (
    ADAM,
    SGD,
    STEPS_PER_AVERAGE,
    Optimizer,
    adam,
    average,
    clip_gradient,
    sgd,
    update,
)
from tapegpt.kernels.simd import VECTOR_BYTES
from tapegpt.setting import DTYPES
from tapegpt.tape.alignment import aligned_zeros

TOLERANCES = {"float32": 2e-5, "float64": 1e-13}
MORE = 3  # parameters beyond the count, which stay as they are


def vectors(dtype, count):
    """Elements of so many vectors."""
    return count * VECTOR_BYTES // np.dtype(dtype).itemsize


def random_arrays(dtype, count, rng, arrays):
    """Parameters, as many arrays of zeros, and a few elements more of each."""
    zeros = [aligned_zeros(count + MORE, np.dtype(dtype)) for _ in range(1 + arrays)]
    zeros[0][:] = rng.normal(size=count + MORE)
    return zeros


def zero_state(dtype, arrays, size):
    return aligned_zeros(arrays * size, np.dtype(dtype)).reshape(arrays, size)


def made(state, kind=ADAM, beta1=0.85, beta2=0.99, epsilon=1e-8, weight_decay=0.0, **others):
    muon = no_matrices(state.dtype)
    settings = {"momentum": 0.9, "clip_norm": math.inf, "averaging": 0.0, "muon": muon, **others}
    return Optimizer(kind, state, beta1, beta2, epsilon, weight_decay, **settings)


def random_gradients(rng, size):
    return rng.normal(size=size) * 10.0 ** rng.integers(-6, 3, size)


def doubles(array):
    return array.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon", "weight_decay", "cautious"),
    [
        (0.85, 0.99, 1e-8, 0.0, False),
        (0.9, 0.999, 1e-3, 0.0, False),
        (0.0, 0.0, 0.5, 0.0, False),
        (0.85, 0.99, 1e-8, 0.01, False),
        (0.9, 0.95, 1e-6, 3.0, False),
        (0.9, 0.95, 1e-6, 3.0, True),
    ],
)
def test_adam_and_adamw_are_those_of_the_papers(
    dtype, beta1, beta2, epsilon, weight_decay, cautious
):
    rng = np.random.default_rng(0)
    count, tolerance = vectors(dtype, 4), TOLERANCES[dtype]
    values, grads = random_arrays(dtype, count, rng, 1)
    m, v = state = zero_state(dtype, 2, count + MORE)
    optimizer = made(state, ADAM, beta1, beta2, epsilon, weight_decay, cautious_decay=cautious)
    w, mean, square = doubles(values[:count]), 0.0, 0.0
    untouched = values[count:].copy()
    for step in range(1, 8):
        grads[:] = random_gradients(rng, count + MORE)
        settings = (step, 0.1 / step, beta1, beta2, epsilon, weight_decay, cautious)
        w, mean, square = references.adam(w, doubles(grads[:count]), mean, square, *settings)
        beyond = grads[count:].copy()
        adam(values, grads, optimizer, 0, count, *settings[:2])
        np.testing.assert_allclose(values[:count], w, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(m[:count], mean, rtol=1e-4, atol=tolerance)
        np.testing.assert_allclose(v[:count], square, rtol=1e-4, atol=tolerance)
        assert not grads[:count].any()
        assert (grads[count:] == beyond).all()
    assert (values[count:] == untouched).all()
    assert not m[count:].any()
    assert not v[count:].any()


def test_adam_in_float32_is_a_few_roundings_off():
    rng = np.random.default_rng(0)
    eps, tiny, count = np.finfo("float32").eps, 1e-30, 4096  # TINY in kernels/simd/
    values, grads = (aligned_zeros(count, np.dtype("float32")) for _ in range(2))
    m, v = state = zero_state("float32", 2, count)
    values[:] = rng.normal(size=count)
    for step in range(1, 20):
        # Also where squares are no normal numbers any more.
        grads[:] = rng.normal(size=count) * 10.0 ** rng.integers(-25, 3, count)
        w, g, old_m, old_v = (doubles(array) for array in (values, grads, m, v))
        _, mean, square = references.adam(w, g, old_m, old_v, step, 0.01, 0.85, 0.99, 1e-8)
        adam(values, grads, made(state), 0, count, step, 0.01)
        assert (np.abs(m - mean) <= 3 * eps * (np.abs(old_m) + np.abs(g)) + 1.1 * tiny).all()
        assert (np.abs(v - square) <= 4 * eps * square + 1.1 * tiny).all()
        # What is made of the moments, given those.
        root = np.sqrt(doubles(v) / (1 - 0.99**step)) + 1e-8
        change = 0.01 * m / (1 - 0.85**step) / root
        assert (np.abs(values - (w - change)) <= eps * (10 * np.abs(change) + np.abs(w))).all()


def test_parameters_without_a_gradient_stay():
    values, grads = (aligned_zeros(16, np.dtype("float64")) for _ in range(2))
    state = zero_state("float64", 2, 16)
    values[:] = np.arange(16)
    adam(values, grads, made(state), 0, 16, 1, 0.01)
    assert (values == np.arange(16)).all()
    sgd(values, grads, made(state), 0, 16, 1, 0.01)
    assert (values == np.arange(16)).all()


def test_adamw_decays_parameters_without_a_gradient():
    values, grads = (aligned_zeros(16, np.dtype("float64")) for _ in range(2))
    state = zero_state("float64", 2, 16)
    values[:] = np.arange(16)
    adam(values, grads, made(state, weight_decay=0.25), 0, 16, 1, 0.5)
    assert (values == 0.875 * np.arange(16)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_without_a_gradient_never_become_subnormal(dtype):
    """Arithmetic on subnormal numbers takes a hundred times as long."""
    values, grads = (aligned_zeros(48, np.dtype(dtype)) for _ in range(2))
    m, v = state = zero_state(dtype, 2, 48)
    optimizer = made(state, beta2=0.9)
    grads[:] = np.random.default_rng(0).normal(size=48) * 10.0 ** np.arange(-32, 16)
    smallest = np.finfo(dtype).tiny
    for step in range(1, 8000):
        adam(values, grads, optimizer, 0, 48, step, 0.01)
        assert (np.abs(m[m != 0]) >= smallest).all()
        assert (v >= smallest).all()
    assert not m.any()
    before = values.copy()
    adam(values, grads, optimizer, 0, 48, 8000, 0.01)
    assert (values == before).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_velocity_without_a_gradient_never_becomes_subnormal(dtype):
    values, grads = (aligned_zeros(48, np.dtype(dtype)) for _ in range(2))
    (velocity,) = state = zero_state(dtype, 1, 48)
    optimizer = made(state, SGD)
    grads[:] = np.random.default_rng(0).normal(size=48) * 10.0 ** np.arange(-32, 16)
    for _ in range(8000):
        sgd(values, grads, optimizer, 0, 48, 1, 0.01)
        assert (np.abs(velocity[velocity != 0]) >= np.finfo(dtype).tiny).all()
    assert not velocity.any()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    count=st.integers(1, 9),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_sgd_with_momentum(dtype, count, momentum, seed):
    rng, tolerance = np.random.default_rng(seed), TOLERANCES[dtype]
    count = vectors(dtype, count)
    values, grads = random_arrays(dtype, count, rng, 1)
    (velocity,) = state = zero_state(dtype, 1, count + MORE)
    optimizer = made(state, SGD, momentum=momentum)
    w, expected = doubles(values[:count]), 0.0
    untouched = values[count:].copy()
    for step in range(5):
        grads[:] = rng.normal(size=count + MORE)
        rate = 0.1 / (1 + step)
        w, expected = references.sgd(w, doubles(grads[:count]), expected, rate, momentum)
        beyond = grads[count:].copy()
        sgd(values, grads, optimizer, 0, count, 1, rate)
        np.testing.assert_allclose(values[:count], w, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(velocity[:count], expected, rtol=tolerance, atol=tolerance)
        assert not grads[:count].any()
        assert (grads[count:] == beyond).all()
    assert (values[count:] == untouched).all()
    assert not velocity[count:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_averaged_weights(dtype, share):
    """Later weights count more, but with a share of 1 all the same."""
    rng, count = np.random.default_rng(0), vectors(dtype, 3)
    values, mean = random_arrays(dtype, count, rng, 1)
    mean[:] = 7  # the first take its place
    seen, parts = [], []
    for n in range(1, 30):
        values[:] = rng.normal(size=count + MORE)
        seen.append(doubles(values[:count]))
        average(values, mean, 0, count, n, share)
        parts = [
            *(part * (1 - 1 / (1 + share * (n - 1))) for part in parts),
            1 / (1 + share * (n - 1)),
        ]
        expected = np.tensordot(parts, seen, 1)
        np.testing.assert_allclose(mean[:count], expected, rtol=0, atol=TOLERANCES[dtype])
    if share == 1:
        np.testing.assert_allclose(parts, 1 / 29)
    assert (mean[count:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    count=st.integers(1, 70),
    scale=st.integers(-25, 35),
    share=st.sampled_from([1e-3, 0.5, 0.999, 1.001, 1e3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_clipping_keeps_the_direction(dtype, count, scale, share, seed):
    """Also where squares are beyond float32's numbers."""
    grads = aligned_zeros(count + MORE, np.dtype(dtype))
    grads[:] = np.random.default_rng(seed).normal(size=count + MORE) * 10.0**scale
    before = grads.copy()
    longest = share * np.linalg.norm(doubles(before[:count]))
    clip_gradient(group(grads, grads), 0, 0, count, longest)
    expected = references.clip(doubles(before[:count]), longest)
    np.testing.assert_allclose(grads[:count], expected, rtol=3 * np.finfo(dtype).eps)
    assert (grads[count:] == before[count:]).all()
    if share > 1:
        assert (grads == before).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clipping_does_not_hide_what_is_not_finite(dtype, value):
    grads = aligned_zeros(16, np.dtype(dtype))
    grads[:] = 1
    grads[5] = value
    clip_gradient(group(grads, grads), 0, 0, 16, 0.5)
    assert np.isnan(grads[5]) or np.isinf(grads[5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_norm", [0.25, 1e9, math.inf])
@pytest.mark.parametrize(("kind", "weight_decay"), [(ADAM, 0.0), (ADAM, 0.1), (SGD, 0.0)])
def test_an_update_clips_and_then_optimizes(dtype, clip_norm, kind, weight_decay):
    rng, tolerance = np.random.default_rng(0), TOLERANCES[dtype]
    count = vectors(dtype, 2)
    values, grads = random_arrays(dtype, count, rng, 1)
    state = aligned_zeros((2 - kind) * count, np.dtype(dtype)).reshape(-1, count)
    optimizer = made(state, kind, 0.8, 0.9, 1e-6, weight_decay, momentum=0.7, clip_norm=clip_norm)
    w, first, second = doubles(values[:count]), 0.0, 0.0
    for step in range(1, 5):
        grads[:] = rng.normal(size=count + MORE)
        g = references.clip(doubles(grads[:count]), clip_norm)
        if kind == SGD:
            w, first = references.sgd(w, g, first, 0.02, 0.7)
        else:
            w, first, second = references.adam(
                w, g, first, second, step, 0.02, 0.8, 0.9, 1e-6, weight_decay
            )
        update(group(values, grads), 0, count, optimizer, step, 0.02)
        np.testing.assert_allclose(values[:count], w, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(state[0], first, rtol=1e-4, atol=tolerance)
        assert not grads[:count].any()


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_an_update_averages_now_and_then(averaging):
    rng, count = np.random.default_rng(0), vectors("float64", 2)
    values, grads = random_arrays("float64", count, rng, 1)
    state = aligned_zeros(2 * count, np.dtype("float64")).reshape(2, count)
    optimizer = made(state, SGD, momentum=0.5, averaging=averaging)
    for step in range(1, 2 * STEPS_PER_AVERAGE + 1):
        grads[:] = rng.normal(size=count + MORE)
        update(group(values, grads), 0, count, optimizer, step, 0.1)
        if step == STEPS_PER_AVERAGE:
            first = values[:count].copy()
            np.testing.assert_array_equal(state[1], first if averaging else 0)
    expected = first + (values[:count] - first) / 1.5 if averaging else 0
    np.testing.assert_allclose(state[1], expected, rtol=1e-14)
