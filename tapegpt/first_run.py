"""At a first run, a second process compiles what training needs beside the forward kernels.

Compiling takes one thread of a process, and its results go from process to process through the
kernel cache. Without the second process, for whatever reason, the first compiles all by itself.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from tapegpt.kernels.compile.indirect_call import BACKWARD
from tapegpt.kernels.compile.kernel_cache import is_missing
from tapegpt.kernels.loops.sample import generate
from tapegpt.kernels.loops.train import train_steps
from tapegpt.kernels.registry import load_kernels, new_table
from tapegpt.sampling import draw
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.system.host import processors
from tapegpt.train.trainer import Trainer

LONGEST_WAIT = 30  # seconds, for what takes less than ten: a process that was stopped, say
BETWEEN_LOOKS = 0.02  # seconds

# The path is handed on, so that both find the same package.
SCRIPT = "import sys; sys.path[:] = {}; from tapegpt import first_run; first_run.main({!r}, {})"


@contextmanager
def helped(dtype: str, kernels: Sequence[int], stop: Sequence[int] = ()) -> Iterator[None]:
    """While the block compiles these kernels, forward and backward, a second process compiles
    training, sampling, and then the backward ones from the last on, until the two meet.

    There is none where training was compiled before, or one processor alone. After the block
    training and sampling are waited for, until there is something in `stop`.
    """
    if processors() < 2 or not is_missing(train_steps, dtype):
        yield
        return
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(sys.path, dtype, list(kernels))],
            stdin=subprocess.PIPE,  # which ends when this process does
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
    except OSError:
        yield
        return
    with process:
        try:
            yield
            end = time.monotonic() + LONGEST_WAIT
            # Sampling is compiled after training.
            while process.poll() is None and is_missing(generate, dtype) and time.monotonic() < end:
                if stop:
                    break
                time.sleep(BETWEEN_LOOKS)
        finally:
            process.kill()


def main(dtype: str, kernels: Sequence[int]) -> None:
    """The second process: it ends with the first one, if that comes earlier."""
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    compile_rest(dtype, kernels)


def _exit_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def compile_rest(dtype: str, kernels: Sequence[int]) -> None:
    """Compile training and sampling, then the backward ones of these kernels, last one first."""
    # The types are those of any model; for no steps and no texts nothing else is compiled.
    model = ModelConfig(n_embd=1, n_head=1, block_size=1)
    trainer = Trainer(model, TrainConfig(granularity="scalar", dtype=dtype), ["a"])
    trainer.advance(0)
    nothing = np.zeros(0, np.int64)
    draw(trainer.compiled, nothing, SampleConfig(), np.zeros((0, 1)), in_turn=True)
    table = new_table()
    for kernel in reversed(kernels):
        load_kernels(table, np.dtype(dtype), [kernel], BACKWARD)
