"""How far training has come, on stderr: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

LINES = 10  # about as many, over a whole run


class Progress:
    """Shows steps, loss, steps per second and the time left."""

    def __init__(self, step: int, steps: int, quiet: bool) -> None:
        self._begin, self._steps = step, steps
        self._start = time.perf_counter()
        self._next_line = step
        self._silent = quiet
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(initial=step, total=steps, unit="step", dynamic_ncols=True)

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

    def update(self, step: int, loss: float) -> None:
        """Training has completed `step` steps; the last one had this loss."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif not self._silent and (step >= self._next_line or step == self._steps):
            seconds = time.perf_counter() - self._start
            rate = (step - self._begin) / seconds
            left = (self._steps - step) / rate
            print(
                f"step {step}/{self._steps} loss {loss:.4f} {rate:.0f} steps/s, {left:.0f} s left",
                file=sys.stderr,
            )
            self._next_line = step + self._steps // LINES
