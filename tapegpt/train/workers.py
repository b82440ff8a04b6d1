"""Threads that train one model together, each on its own copy of the program."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any

import numpy as np

from tapegpt.errors import TapegptError
from tapegpt.graph.compile import CompiledModel, Floats
from tapegpt.kernels.loops.thread_group import NOBODY_COMES, ThreadGroup
from tapegpt.kernels.program import Program
from tapegpt.tape.alignment import ALIGNMENT, aligned_zeros

REPORTS = ALIGNMENT // np.dtype(np.float64).itemsize  # a cache line for each thread


class Threads:
    """`count` threads, and what they share; the first has the program of the recording itself."""

    def __init__(self, compiled: CompiledModel, count: int) -> None:
        tape_arrays = compiled.program.tape_arrays
        grads = _rows(count - 1, len(tape_arrays.grads), tape_arrays.grads.dtype)
        self._programs = [compiled.program, *(_copy(compiled.program, row) for row in grads)]
        self._team = ThreadGroup(
            values=tape_arrays.values,
            grads=tape_arrays.grads,
            other_grads=grads,
            reports=_rows(count, REPORTS, np.dtype(np.float64)),
            arrivals=np.zeros(1, np.int64),
        )

    def __len__(self) -> int:
        return len(self._programs)

    def call(self, kernel: Callable[..., Any], *arguments: object) -> Any:
        """Have every thread call kernel(program, group, thread, *arguments).

        Returns the first thread's result. Raises `TapegptError` if there cannot be so many threads.
        """
        if len(self) == 1:
            return kernel(self._programs[0], self._team, 0, *arguments)

        self._team.arrivals[0] = 0
        ready = Barrier(len(self))  # a kernel waits for all the others: none may be missing

        def work(thread: int) -> Any:
            ready.wait()
            try:
                return kernel(self._programs[thread], self._team, thread, *arguments)
            except BaseException:
                self._team.arrivals[0] = NOBODY_COMES  # or the others would wait for this one
                raise

        with ThreadPoolExecutor(len(self)) as pool:
            try:
                started = [pool.submit(work, thread) for thread in range(len(self))]
            except BaseException as error:
                ready.abort()
                if not isinstance(error, RuntimeError):
                    raise
                raise TapegptError(
                    f"cannot start --threads {len(self)} threads: {error}: choose fewer"
                ) from error
            wait(started)  # here, so that an interruption waits once more, where this block ends
        results = [future.result() for future in started]
        return results[0]


def _rows(count: int, width: int, dtype: np.dtype[Any]) -> Any:
    """Zeros: (count, width and so much more that rows begin with a cache line)."""
    width += -width % (ALIGNMENT // dtype.itemsize)
    return aligned_zeros(count * width, dtype).reshape(count, width)


def _copy(program: Program, grads: Floats) -> Program:
    """The same program on values, gradients and inputs of its own."""
    tape_arrays = program.tape_arrays
    values = aligned_zeros(len(tape_arrays.values), tape_arrays.values.dtype)
    values[:] = tape_arrays.values
    return program._replace(
        tape_arrays=tape_arrays._replace(
            values=values, grads=grads, inputs=tape_arrays.inputs.copy()
        ),
        placed=program.placed.copy(),
    )
