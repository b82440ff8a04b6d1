"""How far training has come, on stderr: a live line on a terminal, now and then one elsewhere."""

import logging
import math
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tapegpt.commands.terminal import harmless
from tapegpt.train.amounts import amount, duration
from tapegpt.train.stopping import QUICKEST, StepBudget, TimeBudget

LINES = 10  # at least, over a whole run
LONGEST_SILENCE = 10.0  # seconds
NO_TIME = 0.5  # seconds
LONGEST_SAMPLE = 60  # characters
KEPT = 0.98  # of the smoothed loss, at a step
# For the time left: two thirds of what the speed is taken from is no older than this share of the
# training so far, or than so many seconds.
MEMORY, LEAST_MEMORY = 1 / 16, 1.5
BASIS = 1.0  # seconds of training before anything can be said of it
PAUSES = 3  # the last evaluations, which the next ones will be like


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


class TimeLeft:
    """Seconds until the end, by the clock on the wall: evaluations and saves included.

    The speed is that of late, because a machine may change its own; so is what evaluations take.

    evaluation, test: about how many steps take as long, until evaluations are measured.
    """

    def __init__(
        self,
        budget: StepBudget | TimeBudget,
        step: int,
        elapsed: float,
        evaluation: float = 0.0,
        test: float = 0.0,
    ) -> None:
        self._budget = budget
        self._evaluation, self._test = evaluation, test
        self._last = (step, elapsed)
        self._is_warm = False
        self._seen = 0.0  # seconds of training after the first call
        self._steps, self._seconds = 0.0, 0.0  # weighed: those of long ago count less
        self._pauses: list[float] = []

    def note_steps(self, step: int, elapsed: float) -> None:
        """A call of the kernel has brought training so far."""
        last_step, last_elapsed = self._last
        steps, seconds = step - last_step, elapsed - last_elapsed
        self._last = (step, elapsed)
        if not self._is_warm:  # the first finds nothing in the caches
            self._is_warm = True
            return
        self._seen += seconds
        kept = math.exp(-seconds / max(LEAST_MEMORY, MEMORY * self._seen))
        self._steps = kept * self._steps + steps
        self._seconds = kept * self._seconds + seconds

    def note_pause(self, seconds: float) -> None:
        """An evaluation, with what is done at one, has taken so long."""
        if len(self._pauses) == 1:  # the first may have loaded something
            self._pauses.clear()
        self._pauses = [*self._pauses, seconds][-PAUSES:]

    @property
    def pace(self) -> float | None:
        """Seconds a step, of late; None while too little is known."""
        if self._seen < BASIS or self._steps == 0:
            return None
        return max(self._seconds / self._steps, QUICKEST)

    def at(self, step: int, elapsed: float) -> float | None:
        """What is left after `step` steps and `elapsed` seconds of training; None: unknown yet."""
        if self._budget.done(step, elapsed) >= self._budget.total:
            return 0.0
        if (pace := self.pace) is None:
            measures = self._evaluation + self._test > 0
            by_clock = isinstance(self._budget, TimeBudget) and not measures
            return self._budget.seconds_left(step, elapsed, 0.0) if by_clock else None
        evaluation, test = self._evaluation * pace, self._test * pace
        if self._pauses:
            measured = sum(self._pauses) / len(self._pauses)
            test *= measured / evaluation if evaluation else 1.0
            evaluation = measured
        evaluations = self._budget.evaluations_left(step, elapsed, pace)
        return self._budget.seconds_left(step, elapsed, pace) + evaluations * evaluation + test


class State(NamedTuple):
    """What is shown of a training."""

    step: int
    elapsed: float  # seconds of training
    loss: float  # smoothed
    val_loss: float | None  # of an evaluation that has just been made
    counting: float | None  # what counting reaches where val_loss is measured
    sample: str | None  # a text that is drawn there, on one line


class Progress:
    """Shows steps, losses, speed and the time left."""

    def __init__(
        self,
        budget: StepBudget | TimeBudget,
        step: int,
        elapsed: float,
        tokens_per_step: float,
        quiet: bool,
        left: TimeLeft | None = None,
    ) -> None:
        self.left = left or TimeLeft(budget, step, elapsed)
        self._budget = budget
        self._first_step, self._first_elapsed = step, elapsed
        self._begin = self._next_line = budget.done(step, elapsed)
        self._tokens_per_step = tokens_per_step
        self._silent_since = time.perf_counter()
        self._val_loss = ""
        self._silent = quiet
        self._bar: Any = None
        self._held = ExitStack()
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            by_step = isinstance(budget, StepBudget)
            count = "{n_fmt}/{total_fmt}" if by_step else "{n:.1f}/{total:g} s"
            # What matters most comes first: tqdm cuts the line where the window ends.
            self._bar = tqdm(
                initial=self._begin,
                total=budget.total,
                bar_format=f"{{percentage:3.0f}}% {count}{{postfix}} {{bar:10}}",
                dynamic_ncols=True,
                mininterval=0.1,
                leave=False,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            from tqdm.contrib.logging import logging_redirect_tqdm

            # Messages come above the live line.
            self._held.enter_context(logging_redirect_tqdm([logging.getLogger("tapegpt")]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()
        if self._bar is not None:
            self._bar.close()

    def update(self, state: State) -> None:
        """Training has come this far."""
        if self._silent:
            return
        if state.val_loss is not None:
            self._val_loss = f", val_loss {state.val_loss:.4f}"
        done, total = self._budget.done(state.step, state.elapsed), self._budget.total
        if self._bar is not None:
            self._bar.set_postfix_str(self._shown(state), refresh=False)
            self._bar.update(min(done, total) - self._bar.n)
            if state.val_loss is not None:  # stays on the screen
                self._bar.write(self._line(state), file=sys.stderr)
            return
        silence = time.perf_counter() - self._silent_since
        due = done >= self._next_line or done >= total or silence >= LONGEST_SILENCE
        if due or state.val_loss is not None:
            print(self._line(state), file=sys.stderr)
            self._silent_since = time.perf_counter()
            self._next_line = (done * LINES // total + 1) * total / LINES

    def _line(self, state: State) -> str:
        known = state.val_loss is not None and state.counting is not None
        counting = f", counting {state.counting:.4f}" if known else ""
        of = f"/{self._budget.total}" if isinstance(self._budget, StepBudget) else ""
        sample = "" if state.sample is None else f" | {harmless(state.sample)[:LONGEST_SAMPLE]}"
        return f"step {state.step}{of} {self._shown(state, counting)}{sample}"

    def _shown(self, state: State, counting: str = "") -> str:
        seconds = max(state.elapsed - self._first_elapsed, QUICKEST)
        pace = self.left.pace or seconds / max(1, state.step - self._first_step)
        rate = 1 / pace
        left = self.left.at(state.step, state.elapsed)
        until_end = "" if left is None else f", {duration(left)} left"
        return (
            f"loss {state.loss:.4f}{self._val_loss}{counting}, {rate:.0f} steps/s,"
            f" {amount(rate * self._tokens_per_step)} tokens/s{until_end}"
        )


class Compiling:
    """How many kernels are ready; nothing is shown where that takes no time to speak of.

    On a terminal there is a line as soon as one is compiled, elsewhere one now and then.

    total: how many there are. None: nobody knows, and the line is gone whenever none is compiled.
    """

    def __init__(self, quiet: bool, total: int | None = None) -> None:
        self._silent = quiet
        self._silent_since = time.perf_counter()
        self._ready, self._total = 0, total
        self._depth = 0  # kernels that are compiled for each other
        self._begin: float | None = None
        self._bar: Any = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        from numba.core.event import Listener, install_listener

        compiling = self

        class Watcher(Listener):  # type: ignore[misc]  # Numba has no types
            def on_start(self, event: object) -> None:
                compiling._depth += 1
                compiling._show()

            def on_end(self, event: object) -> None:
                compiling._depth -= 1
                if compiling._depth == 0 and compiling._total is None:
                    compiling._hide()

        self._held.enter_context(install_listener("numba:compile", Watcher()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()
        self._hide()

    def update(self, ready: int) -> bool:
        """So many are ready. Returns True."""
        self._ready = ready
        silence = time.perf_counter() - self._silent_since
        if self._bar is not None or silence >= NO_TIME:
            self._show()
        if silence >= LONGEST_SILENCE and not self._silent and not sys.stderr.isatty():
            print(f"compiling: {ready} of {self._total} kernels", file=sys.stderr)
            self._silent_since = time.perf_counter()
        return True

    def _show(self) -> None:
        if self._silent or not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            of_all = "{n_fmt} of {total_fmt} kernels, {elapsed} {bar:10}"
            shape = f"compiling: {of_all if self._total else '{elapsed}'}"
            self._bar = tqdm(total=self._total, bar_format=shape, dynamic_ncols=True, leave=False)
            self._begin = self._bar.start_t = self._begin or self._bar.start_t
        self._bar.n = self._ready
        self._bar.refresh()

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
