"""Learning rates from step to step, against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.loops.schedules import (
    CONSTANT,
    COSINE,
    EXPONENTIAL,
    LINEAR,
    WSD,
    Schedule,
    scheduled_rate,
)

RATE = 0.3
KINDS = (CONSTANT, LINEAR, EXPONENTIAL, COSINE, WSD)


def rates(kind, span, decay=0.998, warmup=0.05, origin=0.0, cooldown=1.0, final=0.0):
    """Of all steps."""
    schedule = Schedule(kind, RATE, decay, warmup, origin, float(span), cooldown, final)
    return np.array([scheduled_rate(schedule, step) for step in range(span)])


def numpy_cosine(span, warmup):
    steps = np.arange(span)
    done = np.clip((steps / span - warmup) / (1 - warmup), 0, 1)
    return RATE * np.minimum(
        np.divide(steps + 1, warmup * span, out=np.full(span, np.inf), where=warmup > 0),
        (1 + np.cos(np.pi * done)) / 2,
    )


spans = st.integers(1, 300)


@given(spans)
def test_constant(span):
    assert (rates(CONSTANT, span) == RATE).all()


@given(spans)
def test_linear_is_microgpt_s(span):
    assert rates(LINEAR, span).tolist() == [RATE * (1 - step / span) for step in range(span)]


@given(spans, st.sampled_from([1.0, 0.998, 0.5]))
def test_exponential_is_a_power(span, decay):
    """To the last bit, as the NumPy ports of microgpt have it."""
    expected = [RATE * decay**step for step in range(span)]
    assert rates(EXPONENTIAL, span, decay).tolist() == expected


@given(st.integers(10, 300), st.sampled_from([0.0, 0.1, 0.6]))
def test_cosine_ends_with_a_share_of_the_rate(span, final):
    """nanoGPT's: min_lr + (lr - min_lr) times the coefficient, after the same warm-up."""
    risen = int(0.2 * span)
    least, coefficients = final * RATE, rates(COSINE, span, warmup=0.2) / RATE
    expected = least + (RATE - least) * coefficients
    found = rates(COSINE, span, warmup=0.2, final=final)
    np.testing.assert_allclose(found[risen:], expected[risen:], rtol=1e-12)
    np.testing.assert_allclose(found[:risen], RATE * coefficients[:risen], rtol=1e-12)
    assert found[-1] >= least


@given(spans, st.sampled_from([0.0, 0.01, 0.05, 0.5, 0.99]))
def test_cosine_with_warm_up(span, warmup):
    found = rates(COSINE, span, warmup=warmup)
    np.testing.assert_allclose(found, numpy_cosine(span, warmup), rtol=1e-9, atol=1e-15)


def test_cosine_by_hand():
    found = rates(COSINE, 100, warmup=0.1) / RATE
    np.testing.assert_allclose(found[:11], [*np.arange(0.1, 1.05, 0.1), 1])
    assert found[55] == pytest.approx(0.5)
    assert 0 < found[99] < 0.001
    assert (np.diff(found[10:]) < 0).all()


def test_warm_up_stable_decay_by_hand():
    found = rates(WSD, 10, warmup=0.2, cooldown=0.4) / RATE
    np.testing.assert_allclose(found, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25], rtol=1e-12)


@given(spans)
def test_without_a_warm_up_and_with_all_of_it_a_cooldown_it_is_linear(span):
    found = rates(WSD, span, warmup=0.0, cooldown=1.0)
    np.testing.assert_allclose(found, rates(LINEAR, span), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_place_between_begin_and_end_counts(kind):
    """Forty steps more, before the first, of a training whose first step is the fortieth."""
    schedule = Schedule(kind, RATE, 0.9, 0.2, 40.0, 100.0)
    later = [scheduled_rate(schedule, step) for step in range(40, 140)]
    np.testing.assert_allclose(later, rates(kind, 100, 0.9, 0.2), rtol=1e-12)


@pytest.mark.parametrize("kind", [LINEAR, COSINE, WSD])
@pytest.mark.parametrize("late", [0, 1, 1000])
def test_no_rate_is_below_zero(kind, late):
    """Where the clock was slower than thought."""
    assert scheduled_rate(Schedule(kind, RATE, 1.0, 0.0, 0.0, 50.0), 50 + late) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_budgets(kind):
    for step in (0, 2**53 - 1):
        rate = scheduled_rate(Schedule(kind, RATE, 0.999, 0.0, 0.0, 2.0**53), step)
        assert math.isfinite(rate) and 0 <= rate <= RATE
