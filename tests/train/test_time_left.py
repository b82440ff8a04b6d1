"""The time left that is shown, by a clock that only steps and evaluations move."""

import numpy as np
import pytest

from tapegpt.settings import TrainConfig
from tapegpt.train.loop import SECONDS_PER_CALL
from tapegpt.train.progress import BASIS, TimeLeft
from tapegpt.train.stopping import budget_of

STEPS = 3000


def constant(step):
    return 0.01


def noisy(step):
    return 0.01 * (1 + 0.3 * np.sin(step / 7) + 0.2 * np.sin(step / 30))


def twice_as_fast(step):
    return 1 / 75 if step < STEPS / 2 else 1 / 150


def half_as_fast(step):
    return 1 / 150 if step < STEPS / 2 else 1 / 75


def train(training, seconds_a_step, evaluation, first=0.0, guess=0.0):
    """Train as the command does: (seconds since the beginning, what was said to be left)."""
    budget = budget_of(training, 600)
    left = TimeLeft(budget, 0, 0.0, guess)
    now = elapsed = pace = 0.0
    step, count, shown = 0, 1, []
    while budget.done(step, elapsed) < budget.total:
        count = min(count, budget.steps_ahead(step, elapsed, pace))
        before, begin = budget.evaluations(step, elapsed), elapsed
        elapsed += sum(map(seconds_a_step, range(step, step + count))) + first * (step == 0)
        now += elapsed - begin
        step += count
        left.note_steps(step, elapsed)
        over = budget.done(step, elapsed) >= budget.total
        if over or budget.evaluations(step, elapsed) > before:
            now += evaluation(step)
            left.note_pause(evaluation(step))
        shown.append((now, left.at(step, elapsed)))
        pace = (elapsed - begin) / count
        count = max(1, min(4 * count, int(SECONDS_PER_CALL / pace)))
    return shown


def errors(shown, shares):
    """By how much the time left was wrong, as a share of what it then took."""
    end = shown[-1][0]
    found = []
    for share in shares:
        at, left = min(shown, key=lambda point: abs(point[0] - share * end))
        found.append(abs(left - (end - at)) / (end - at))
    return found


@pytest.mark.parametrize(
    ("seconds_a_step", "shares"),
    [
        (constant, [0.1, 0.25, 0.5, 0.75, 0.9]),
        (noisy, [0.1, 0.25, 0.5, 0.75]),
        # Before it is twice as fast, or half, nobody can know.
        (twice_as_fast, [0.75, 0.9]),
        (half_as_fast, [0.5, 0.75, 0.9]),
    ],
)
@pytest.mark.parametrize("evaluation", [0.0, 0.3, 3.0])
def test_the_speed_of_late_counts(seconds_a_step, shares, evaluation):
    training = TrainConfig(steps=STEPS, val_fraction=0.1 if evaluation else 0.0)
    guess = evaluation / 0.01
    shown = train(training, seconds_a_step, lambda step: evaluation, guess=guess)
    assert max(errors(shown, shares)) < 0.15
    assert shown[-1][1] == 0


def test_evaluations_slow_down_with_the_machine():
    shown = train(
        TrainConfig(steps=STEPS, val_fraction=0.1),
        half_as_fast,
        lambda step: 200 * half_as_fast(step),
    )
    assert max(errors(shown, [0.75, 0.9])) < 0.15


def test_an_evaluation_at_the_end_alone_is_foreseen():
    training = TrainConfig(steps=STEPS, val_fraction=0.1, eval_every=10**6)
    shown = train(training, constant, lambda step: 10.0, guess=900)
    assert max(errors(shown, [0.25, 0.5])) < 0.15


@pytest.mark.parametrize("seconds_a_step", [constant, twice_as_fast, half_as_fast])
def test_of_seconds_the_rest_is_known(seconds_a_step):
    training = TrainConfig(seconds=30, val_fraction=0.1)
    shown = train(training, seconds_a_step, lambda step: 0.5, guess=50)
    assert max(errors(shown, [0.25, 0.5, 0.75])) < 0.15


@pytest.mark.parametrize("first", [0.0, 0.4, 1.7])
def test_nothing_is_said_before_there_is_a_basis(first):
    """A first step that takes as long as a hundred others is none."""
    shown = train(TrainConfig(steps=STEPS), constant, lambda step: 0.0, first)
    known = [(at, left) for at, left in shown if left is not None]
    assert BASIS <= known[0][0] - first < BASIS + 2 * SECONDS_PER_CALL
    assert all(left == pytest.approx(30 + first - at, rel=0.05) for at, left in known)
    short = train(TrainConfig(steps=100), lambda step: 0.001, lambda step: 0.0)
    assert [left for _, left in short[:-1]] == [None] * (len(short) - 1)
