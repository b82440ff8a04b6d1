"""How long to train, in steps or in seconds, and when to evaluate on the way.

In the methods `step` and `elapsed`, in seconds, say how far training has come, and `pace` how many
seconds a step takes: 0 where nobody knows yet.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tapegpt.settings import LARGEST_STEPS, TrainConfig

EVALUATIONS = 10  # over the whole training, unless there is an --eval-every
QUICKEST = 1e-9  # seconds a step


@dataclass(frozen=True, slots=True)
class StepBudget:
    """So many steps, with an evaluation after every so many."""

    total: int
    eval_every: int

    def done(self, step: int, elapsed: float) -> int:
        """How much of `total` is spent."""
        return step

    def span(self, step: int, elapsed: float, pace: float) -> tuple[float, float]:
        """The step that training began with, and how many steps it has in all."""
        return 0.0, float(self.total)

    def steps_ahead(self, step: int, elapsed: float, pace: float) -> int:
        """Steps until the next evaluation or the end: one at least."""
        return min(self.total - step, self.eval_every - step % self.eval_every)

    def evaluations(self, step: int, elapsed: float) -> int:
        """How many evaluations are due by now, not counting the one at the end."""
        return step // self.eval_every


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """So many seconds, with an evaluation after every so many steps, or by the clock."""

    total: float
    eval_every: int | None

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
        if self.eval_every is not None:
            ahead = min(ahead, self.eval_every - step % self.eval_every)
        return max(1, ahead)

    def evaluations(self, step: int, elapsed: float) -> int:
        """How many evaluations are due by now, not counting the one at the end."""
        if self.eval_every is not None:
            return step // self.eval_every
        return int(min(EVALUATIONS, EVALUATIONS * elapsed / self.total))


def budget_of(training: TrainConfig) -> StepBudget | TimeBudget:
    """The budget that the settings of a training give it."""
    if training.steps is not None:
        return StepBudget(training.steps, training.eval_every or -(-training.steps // EVALUATIONS))
    assert training.seconds is not None  # else there were steps
    return TimeBudget(training.seconds, training.eval_every)


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
