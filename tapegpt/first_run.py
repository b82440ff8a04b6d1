"""At a first run, a second process compiles what training needs beside the forward kernels.

Compiling takes one thread of a process, and its results go from process to process through the
kernel cache. Without the second process, for whatever reason, the first compiles all by itself.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numba.core.event import Event, Listener, install_listener

from tapegpt.host import processors
from tapegpt.kernels import op
from tapegpt.kernels.compile.indirect_call import BACKWARD
from tapegpt.kernels.compile.kernel_cache import is_missing
from tapegpt.kernels.loops.train import train_steps
from tapegpt.kernels.registry import load_kernels
from tapegpt.sampling import draw
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

LONGEST_WAIT = 30  # seconds, for what takes less than ten: a process that was stopped, say

# The path is handed on, so that both find the same package.
SCRIPT = "import sys; sys.path[:] = {}; from tapegpt import first_run; first_run.main({!r}, {})"


@contextmanager
def compiling_ahead(dtype: str, kernels: Sequence[int]) -> Iterator[None]:
    """While the block compiles a model's kernels, forward and backward, have a process compile
    training, sampling, and then the backward ones from the last on, until the two meet.

    It is started when the block first finds a kernel missing in the cache, if training was never
    compiled before and there is a second processor. After the block training and sampling are
    waited for.
    """
    helper = _Helper(dtype, kernels)
    try:
        with install_listener("numba:compile", helper):
            yield
        helper.wait()
    finally:
        helper.end()


class _Helper(Listener):  # type: ignore[misc]  # Numba has no types
    """The second process, from the first compilation on that it hears of."""

    def __init__(self, dtype: str, kernels: Sequence[int]) -> None:
        self._script = SCRIPT.format(sys.path, dtype, list(kernels))
        self._asked = False
        self._process: subprocess.Popen[bytes] | None = None

    def on_start(self, event: Event) -> None:
        if self._asked:
            return
        self._asked = True
        if processors() < 2 or not is_missing(train_steps):
            return
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._script],
                stdin=subprocess.PIPE,  # which ends when this process does
                stdout=subprocess.PIPE,  # a byte, when training and sampling are compiled
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )

    def on_end(self, event: Event) -> None:
        """Nothing to do."""

    def wait(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        alarm = threading.Timer(LONGEST_WAIT, self._process.kill)
        alarm.start()
        try:
            if not self._process.stdout.read(1):
                self._process.wait()
        finally:
            alarm.cancel()
            alarm.join()

    def end(self) -> None:
        if self._process is not None:
            with self._process:
                self._process.kill()


def main(dtype: str, kernels: Sequence[int]) -> None:
    """The second process: it ends with the first one, if that comes earlier."""
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    compile_rest(dtype, kernels)
    os._exit(0)


def _exit_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def compile_rest(dtype: str, kernels: Sequence[int]) -> None:
    """Compile training and sampling, then the backward ones of these kernels, last one first."""
    # Its program has the same type as any.
    model = ModelConfig(n_embd=1, n_head=1, block_size=1)
    training = TrainConfig(granularity="scalar", dtype=dtype)
    trainer = Trainer(model, training, ["a"], load=False)
    trainer.advance(0)
    nothing = np.zeros(0, np.int64)
    draw(trainer.recording, nothing, SampleConfig(), np.zeros((0, 1)), in_turn=True)
    os.write(sys.stdout.fileno(), b".")
    table = np.zeros((op.COUNT, 2), np.int64)
    for kernel in reversed(kernels):
        load_kernels(table, np.dtype(dtype), [kernel], BACKWARD)
