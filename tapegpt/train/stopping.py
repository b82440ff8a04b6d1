"""How long to train, in steps or in seconds, and when to evaluate on the way.

In the methods `step` and `elapsed`, in seconds, say how far training has come, and `pace` how many
seconds a step takes: 0 where nobody knows yet.
"""

import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tapegpt.setting import LARGEST_STEPS
from tapegpt.settings import TrainConfig

EVALUATIONS = 10  # over the whole training at least, unless there is an --eval-every
FIRST = 10  # steps before the first evaluation, where a pass over the corpus takes fewer
QUICKEST = 1e-9  # seconds a step


@dataclass(frozen=True, slots=True)
class Regular:
    """An evaluation after every so many steps."""

    every: int

    def until_next(self, step: int) -> int:
        """Steps from this one to the next evaluation."""
        return self.every - step % self.every

    def count(self, step: int) -> int:
        """How many evaluations are due by this step."""
        return step // self.every


@dataclass(frozen=True, slots=True)
class Listed:
    """An evaluation after each of these steps, in ascending order."""

    steps: tuple[int, ...]

    def until_next(self, step: int) -> int:
        """Steps from this one to the next evaluation."""
        rest = self.steps[self.count(step) :]
        return rest[0] - step if rest else LARGEST_STEPS

    def count(self, step: int) -> int:
        """How many evaluations are due by this step."""
        return bisect_right(self.steps, step)


def doubling(steps_a_pass: int, longest: int, total: int) -> Listed:
    """Evaluations ever further apart: a small corpus is learned, and over-learned, in a few passes.

    The first comes after one pass over the corpus, each of the others when there were twice as many
    steps as at the one before. No two are more than `longest` steps apart.
    """
    steps, step = [], 0
    while step < total:
        step += min(max(steps_a_pass, FIRST, step), longest)
        steps.append(step)
    return Listed(tuple(steps))


@dataclass(frozen=True, slots=True)
class StepBudget:
    """So many steps, with evaluations on the way."""

    total: int
    evaluated: Regular | Listed

    def done(self, step: int, elapsed: float) -> int:
        """How much of `total` is spent."""
        return step

    def span(self, step: int, elapsed: float, pace: float) -> tuple[float, float]:
        """The step that training began with, and how many steps it has in all."""
        return 0.0, float(self.total)

    def steps_ahead(self, step: int, elapsed: float, pace: float) -> int:
        """Steps until the next evaluation or the end: one at least."""
        return min(self.total - step, self.evaluated.until_next(step))

    def evaluations(self, step: int, elapsed: float) -> int:
        """How many evaluations are due by now, not counting the one at the end."""
        return self.evaluated.count(step)

    def seconds_left(self, step: int, elapsed: float, pace: float) -> float:
        """Seconds of training from now to the end, at this pace."""
        return max(0, self.total - step) * pace

    def evaluations_left(self, step: int, elapsed: float, pace: float) -> int:
        """How many evaluations are still to come, the one at the end included."""
        if step >= self.total:
            return 0
        return self.evaluated.count(self.total - 1) - self.evaluated.count(step) + 1


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """So many seconds, with evaluations after some steps, and some by the clock."""

    total: float
    evaluated: Regular | Listed
    by_clock: int

    def done(self, step: int, elapsed: float) -> float:
        """How much of `total` is spent."""
        return elapsed

    def span(self, step: int, elapsed: float, pace: float) -> tuple[float, float]:
        """The step that training would have begun with at this pace, and how many it would have."""
        pace = max(pace, QUICKEST)
        return step - elapsed / pace, self.total / pace

    def steps_ahead(self, step: int, elapsed: float, pace: float) -> int:
        """Steps until the next evaluation that follows steps, or the end: one at least."""
        ahead = int(min(LARGEST_STEPS, (self.total - elapsed) / max(pace, QUICKEST)))
        return max(1, min(ahead, self.evaluated.until_next(step)))

    def evaluations(self, step: int, elapsed: float) -> int:
        """How many evaluations are due by now, not counting the one at the end."""
        by_clock = int(min(self.by_clock, self.by_clock * elapsed / self.total))
        return by_clock + self.evaluated.count(step)

    def seconds_left(self, step: int, elapsed: float, pace: float) -> float:
        """Seconds of training from now to the end."""
        return max(0.0, self.total - elapsed)

    def evaluations_left(self, step: int, elapsed: float, pace: float) -> int:
        """How many evaluations are still to come at this pace, the one at the end included."""
        if elapsed >= self.total:
            return 0
        last = step + int(min(LARGEST_STEPS, (self.total - elapsed) / max(pace, QUICKEST)))
        by_clock = max(0, self.by_clock - 1) - int(self.by_clock * elapsed / self.total)
        return max(0, by_clock) + self.evaluated.count(last) - self.evaluated.count(step) + 1


def budget_of(training: TrainConfig, steps_a_pass: int) -> StepBudget | TimeBudget:
    """The budget that the settings of a training give it; a pass is one over its documents."""
    every = training.eval_every
    if training.steps is not None:
        tenth = -(-training.steps // EVALUATIONS)
        listed = doubling(steps_a_pass, tenth, training.steps)
        return StepBudget(training.steps, Regular(every) if every else listed)
    assert training.seconds is not None  # else there were steps
    if every:
        return TimeBudget(training.seconds, Regular(every), by_clock=0)
    listed = doubling(steps_a_pass, LARGEST_STEPS, LARGEST_STEPS)
    return TimeBudget(training.seconds, listed, EVALUATIONS)


class Clock:
    """Seconds of training: they stand still while it is paused."""

    def __init__(self, elapsed: float) -> None:
        self._start = time.perf_counter() - elapsed

    def read(self) -> float:
        """The seconds until now, those before this clock was made included."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what is done meanwhile."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin
