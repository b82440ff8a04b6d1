"""Each operation on arrays, forward and backward: one record of a tape, replayed many times.

Gradients are added to what is there; a recorded model overwrites them where it can.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numba import njit

from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.layout import BatchRange
from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import ADAM, Optimizer, adam
from tapegpt.settings import ModelConfig
from tapegpt.tape import Tape
from tapegpt.tape.alignment import aligned_zeros

VOCAB_SIZE = 27
SECONDS = 0.02  # of replays in one round

SMALL = (16, 7)  # documents and their positions
LARGE = (12, 64)  # of nanoGPT's size on a CPU


@dataclass(frozen=True)
class Case:
    name: str
    batch: tuple[int, int]
    width: int  # of the arrays x, y and z, and of the weights
    operation: Callable  # (tape, batch, weights, x, y, z)
    flops: int = 0  # of forward; backward has twice as many
    outputs: int = VOCAB_SIZE  # rows of the weights

    @property
    def rows(self) -> int:
        return self.batch[0] * self.batch[1]


def linear(n_in: int, n_out: int, batch: tuple[int, int]) -> Case:
    rows = batch[0] * batch[1]
    return Case(
        f"linear {n_in} x {n_out}, {rows} rows", batch, n_in,
        lambda tape, row, w, x, y, z: tape.linear(x, w), 2 * rows * n_in * n_out, n_out,
    )  # fmt: skip


def attention(width: int, batch: tuple[int, int], heads: int = 4) -> Case:
    documents, positions = batch
    shape = f"{documents} documents of {positions}" if documents > 1 else f"a text of {positions}"
    number = {1: ", 1 head", 4: ""}.get(heads, f", {heads} heads")
    return Case(
        f"attention {width} wide{number}, {shape}", batch, width,
        lambda tape, row, w, x, y, z: tape.attention(x, y, z, heads),
        4 * width * documents * positions * (positions + 1) // 2,
    )  # fmt: skip


def rowwise(name: str, width: int, batch: tuple[int, int], operation: Callable) -> Case:
    return Case(f"{name} {width} wide, {batch[0] * batch[1]} rows", batch, width, operation)


CASES = [
    *(linear(*shape, SMALL) for shape in [(16, 16), (16, 64), (64, 16), (16, 27), (64, 256)]),
    linear(128, 512, LARGE),
    linear(512, 128, LARGE),
    attention(16, SMALL),
    attention(64, SMALL),
    attention(128, LARGE),
    *(attention(width, (1, positions)) for width in (128, 256) for positions in (256, 1024)),
    *(attention(128, (1, 1024), heads) for heads in (1, 16)),
    rowwise("rmsnorm", 16, SMALL, lambda tape, row, w, x, y, z: tape.rmsnorm(x)),
    rowwise("rmsnorm", 128, LARGE, lambda tape, row, w, x, y, z: tape.rmsnorm(x)),
    rowwise("relu", 64, SMALL, lambda tape, row, w, x, y, z: tape.relu(x)),
    rowwise("softmax", 27, SMALL, lambda tape, row, w, x, y, z: tape.softmax(x)),
    rowwise(
        "cross_entropy", 27, SMALL,
        lambda tape, row, w, x, y, z: tape.cross_entropy(x, row),
    ),
    rowwise(
        "embed", 16, SMALL,
        lambda tape, row, w, x, y, z: tape.embed((w, row), (w, row)),
    ),
]  # fmt: skip


@njit
def replay_forward(tape_arrays, begin, end, window, count):
    for _ in range(count):
        forward_sweep(tape_arrays, begin, end, window)


@njit
def replay_backward(tape_arrays, begin, end, window, count):
    for _ in range(count):
        reverse_sweep(tape_arrays, begin, end, window)


@njit
def replay_adam(values, grads, optimizer, count):
    for step in range(count):
        adam(values, grads, optimizer, 0, optimizer.state.shape[1], step + 1, 1e-3)


def repeats(replay: Callable[[int], object]) -> int:
    """How many replays one round has."""
    count, seconds = 1, 0.0
    while seconds < SECONDS / 10:
        count *= 4
        begin = time.perf_counter()
        replay(count)
        seconds = time.perf_counter() - begin
    return max(1, round(count * SECONDS / seconds))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operation(measure, case, direction):
    tape_arrays, begin, end, window = recorded(case)
    replay = {"forward": replay_forward, "backward": replay_backward}[direction]
    count = repeats(lambda count: replay(tape_arrays, begin, end, window, count))
    flops = case.flops * (1 if direction == "forward" else 2)
    measure(
        lambda: replay(tape_arrays, begin, end, window, count),
        table="kernel",
        row=case.name,
        column=direction,
        unit="µs" if flops else "ns a row",
        scale=1e6 / count if flops else 1e9 / count / case.rows,
        flops=flops * count,
    )


def test_adam(measure):
    compiled = compiled_model(ModelConfig(), VOCAB_SIZE, "vector", "float32", 1)
    program, tape_arrays = compiled.program, compiled.program.tape_arrays
    state = aligned_zeros(2 * program.num_params, tape_arrays.values.dtype).reshape(2, -1)
    none = no_matrices("float32")
    optimizer = Optimizer(ADAM, state, 0.85, 0.99, 1e-8, 0.0, 0.0, math.inf, 0.0, none)
    values, grads = tape_arrays.values, tape_arrays.grads
    grads[: program.num_params] = 1
    count = repeats(lambda count: replay_adam(values, grads, optimizer, count))
    measure(
        lambda: replay_adam(values, grads, optimizer, count),
        table="kernel",
        row=f"adam, {program.num_params} parameters",
        column="forward",
        unit="ns for 1000 of them",
        scale=1e12 / count / program.num_params,
    )


def recorded(case: Case):
    """The arrays of a tape, the records of one operation in them, and the window of a full batch.

    All values and gradients that the records read are there.
    """
    rng = np.random.default_rng(1)
    documents, positions = case.batch
    tape = Tape("float32")
    tables = [tape.parameter(rng.normal(size=(VOCAB_SIZE, case.width))) for _ in range(3)]
    weights = tape.parameter(rng.normal(size=(case.outputs, case.width)))
    tape.batch(documents, positions)
    row = tape.batch_input(VOCAB_SIZE)
    inputs = [tape.embed((table, row)) for table in tables]

    case.operation(tape, row, weights, *inputs)  # also what is shared: room for products
    begin = tape.mark().records
    out = case.operation(tape, row, weights, *inputs)
    end = tape.mark().records
    root = out if tape.shape(out) == () else tape.mean(tape.relu(out))
    tape.backward(root)  # of no rows: it only loads the kernels

    rows = case.rows
    tape.set_lengths([positions] * documents)
    tape.set_input(row, rng.integers(VOCAB_SIZE, size=rows))
    tape_arrays = tape._replay_arrays()
    window = BatchRange(0, positions, 0, rows)
    replay_forward(tape_arrays, 0, len(tape_arrays.records), window, 1)
    tape_arrays.grads[:] = 0
    tape_arrays.grads[root.id] = 1
    replay_backward(tape_arrays, 0, len(tape_arrays.records), window, 1)
    return tape_arrays, begin, end, window
