"""How long to train, in steps and by the clock."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.setting import LARGEST_STEPS
from tapegpt.settings import TrainConfig
from tapegpt.train.stopping import Clock, Listed, Regular, StepBudget, TimeBudget, budget_of

HELD_OUT = {"val_fraction": 0.1}
NEVER = Listed(())  # but by the clock


def walk(budget, step=0, seconds=0.0, seconds_a_step=0.01, most=7):
    """Training as the command does it, by the steps' true pace; (step, seconds) of evaluations."""
    evaluated, pace = [], 0.0
    while budget.done(step, seconds) < budget.total:
        count = min(most if pace else 1, budget.steps_ahead(step, seconds, pace))
        assert count >= 1
        before = budget.evaluations(step, seconds)
        step, seconds = step + count, seconds + count * seconds_a_step
        if budget.evaluations(step, seconds) > before or budget.done(step, seconds) >= budget.total:
            evaluated.append((step, seconds))
        pace = seconds_a_step
    return evaluated


def test_settings_become_budgets():
    every = {"eval_every": 30, **HELD_OUT}
    assert budget_of(TrainConfig(**every), 7) == StepBudget(1000, Regular(30))
    assert budget_of(TrainConfig(seconds=3, **every), 7) == TimeBudget(3.0, Regular(30), 0)
    assert budget_of(TrainConfig(seconds=3), 7).by_clock == 10


@pytest.mark.parametrize(
    ("steps", "steps_a_pass", "evaluated"),
    [
        (1000, 3000, [*range(100, 1001, 100)]),
        (1005, 101, [*range(101, 1005, 101), 1005]),
        (3, 1, [1, 2, 3]),
        (1000, 30, [30, 60, 120, *range(220, 1000, 100), 1000]),
        (1000, 1, [10, 20, 40, 80, 160, *range(260, 1000, 100), 1000]),
    ],
)
def test_evaluations_follow_passes_over_the_corpus_and_tenths(steps, steps_a_pass, evaluated):
    found = walk(budget_of(TrainConfig(steps=steps), steps_a_pass))
    assert [step for step, _ in found] == evaluated


def test_evaluations_of_a_time_follow_passes_over_the_corpus_and_the_clock():
    budget = budget_of(TrainConfig(seconds=10), 30)
    found = walk(budget, seconds_a_step=1 / 128, most=1)
    assert [step for step, _ in found[:8]] == [30, 60, 120, 128, 240, 256, 384, 480]
    slow = walk(budget_of(TrainConfig(seconds=10), 30000))
    assert [round(seconds) for _, seconds in slow] == list(range(1, 11))
    endless = budget_of(TrainConfig(seconds=1e308), 1)
    assert len(endless.evaluated.steps) < 60


@given(steps=st.integers(1, 300), every=st.integers(1, 350), most=st.integers(1, 400))
def test_evaluations_after_so_many_steps_and_at_the_end(steps, every, most):
    expected = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    found = walk(StepBudget(steps, Regular(every)), most=most)
    assert [step for step, _ in found] == expected


@given(start=st.integers(0, 99), most=st.integers(1, 20))
def test_a_resumed_training_evaluates_after_the_same_steps(start, most):
    for budget in (StepBudget(100, Regular(30)), budget_of(TrainConfig(steps=100), 3)):
        whole = [step for step, _ in walk(budget)]
        assert [step for step, _ in walk(budget, start, most=most)] == [
            step for step in whole if step > start
        ]


def test_ten_evaluations_by_the_clock():
    found = walk(TimeBudget(10.0, NEVER, 10), most=1)
    assert [round(seconds) for _, seconds in found] == list(range(1, 11))


@given(most=st.integers(1, 200))
def test_evaluations_after_so_many_steps_of_a_time(most):
    steps = [step for step, _ in walk(TimeBudget(1.0, Regular(30), 0), most=most)]
    assert steps[:-1] == [30, 60, 90] and steps[-1] in (100, 101)


@given(total=st.floats(0.01, 100), seconds_a_step=st.floats(1e-3, 1), most=st.integers(1, 10**6))
def test_time_is_overdrawn_by_less_than_a_step(total, seconds_a_step, most):
    _, seconds = walk(TimeBudget(total, NEVER, 10), 0, 0.0, seconds_a_step, most)[-1]
    assert total <= seconds <= total + 1.001 * seconds_a_step


def test_the_schedule_of_steps_is_theirs_whatever_the_clock_says():
    for step, seconds, pace in ((0, 0.0, 0.0), (7, 99.0, 3.0)):
        assert StepBudget(1000, Regular(100)).span(step, seconds, pace) == (0.0, 1000.0)


@given(
    step=st.integers(0, 10**6),
    share=st.floats(0, 1),
    pace=st.floats(1e-6, 10),
    ahead=st.floats(0, 9),
)
def test_the_schedule_of_a_time_follows_the_clock(step, share, pace, ahead):
    total = 60.0
    origin, span = TimeBudget(total, NEVER, 10).span(step, share * total, pace)
    done = (step + ahead - origin) / span
    assert done == pytest.approx(share + ahead * pace / total, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("total", [1e-300, 1e308])
def test_extreme_times(total):
    budget = TimeBudget(total, NEVER, 10)
    assert 1 <= budget.steps_ahead(0, 0.0, 0.0) <= LARGEST_STEPS
    origin, span = budget.span(0, 0.0, 0.0)
    assert (origin, span > 0) == (0, True)
    assert budget.evaluations(1, 0.0) == 0


def test_a_paused_clock_stands_still(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(7.0)
    assert clock.read() == 7
    now[0] += 2
    with clock.paused():
        now[0] += 50
    now[0] += 3
    assert clock.read() == 12
