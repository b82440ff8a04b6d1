"""How far training has come, on stderr: a bar on a terminal, now and then a line elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tapegpt.train.stopping import StepBudget, TimeBudget

LINES = 10  # about as many, over a whole run
KEPT = 0.98  # of the smoothed loss, at a step


class SmoothedLoss:
    """The mean of the losses so far, in which those of long ago count less and less."""

    def __init__(self) -> None:
        self._sum, self._weight = 0.0, 0.0

    def add(self, losses: NDArray[np.float64]) -> None:
        """The losses of the next steps, which count the same among themselves."""
        kept: float = KEPT ** len(losses)
        self._sum = kept * self._sum + (1 - kept) * float(losses.mean())
        self._weight = kept * self._weight + (1 - kept)

    @property
    def value(self) -> float:
        """NaN before there was any loss."""
        return self._sum / self._weight if self._weight else math.nan


class Progress:
    """Shows steps, losses, steps per second and the time left."""

    def __init__(
        self, budget: StepBudget | TimeBudget, step: int, elapsed: float, quiet: bool
    ) -> None:
        self._budget = budget
        self._first_step, self._begin = step, budget.done(step, elapsed)
        self._start = time.perf_counter()
        self._next_line = self._begin
        self._val_loss = ""
        self._silent = quiet
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            by_step = isinstance(budget, StepBudget)
            self._bar = tqdm(
                initial=self._begin,
                total=budget.total,
                unit="step",
                bar_format=None if by_step else "{l_bar}{bar}| {n:.1f}/{total:g} s{postfix}",
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, elapsed: float, loss: float, val_loss: float | None) -> None:
        """Training has come this far; the last step had this loss, and an evaluation val_loss."""
        if val_loss is not None:
            self._val_loss = f" val_loss {val_loss:.4f}"
        losses = f"loss {loss:.4f}{self._val_loss}"
        done, total = self._budget.done(step, elapsed), self._budget.total
        if self._bar is not None:
            self._bar.set_postfix_str(losses, refresh=False)
            self._bar.update(min(done, total) - self._bar.n)
        elif not self._silent and (done >= self._next_line or done >= total):
            since_start = time.perf_counter() - self._start
            rate = (step - self._first_step) / since_start
            left = max(0, total - done) / (done - self._begin) * since_start
            of = f"/{total}" if isinstance(self._budget, StepBudget) else ""
            print(
                f"step {step}{of} {losses} {rate:.0f} steps/s, {left:.0f} s left", file=sys.stderr
            )
            self._next_line = (done * LINES // total + 1) * total / LINES
