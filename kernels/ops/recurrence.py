"""Recurrence: the row of a position is computed from the result at the position before.

A stretch of records that begins with PREVIOUS and ends with CARRY is replayed position by
position, see interpreter.py. Rows are position-major, documents in one order and the longest
first: the documents that reach a position are a prefix of the documents at the one before.

x, out: (R, C).
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import BatchRange, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, Size, Slot, readers
from tapegpt.kernels.ops.elementwise import pass_gradient


class PreviousArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    starts: Slot


class CarryArgs(NamedTuple):
    starts: Slot


previous_args, previous_grads = readers(PreviousArgs)
carry_args, _ = readers(CarryArgs)


@inlined
def position_range(inputs, starts, p):
    """The batch range of position p alone."""
    return BatchRange(p, p + 1, inputs[starts + p], inputs[starts + p + 1])


# out = x at the position before, 0 at the first
@jit
def previous_forward(values, operands, inputs, out, at, batch_range):
    _, width, x, starts = previous_args(operands, at)
    row, p = row_stride(values, width), batch_range.first_position
    target = out + batch_range.first_row * row
    count = (batch_range.end_row - batch_range.first_row) * row
    if p == 0:
        for i in range(0, count, simd.lanes(values)):
            simd.store(values, target + i, simd.splat(values, 0))
    else:
        source = x + inputs[starts + p - 1] * row
        for i in range(0, count, simd.lanes(values)):
            simd.store(values, target + i, simd.load(values, source + i))


# Always adds: documents that end here have the gradients of their losses in dx, and nothing more.
@jit
def previous_backward(values, grads, operands, inputs, out, at, back, batch_range):
    _, width, _, starts = previous_args(operands, at)
    g = previous_grads(operands, back)
    row, p = row_stride(values, width), batch_range.first_position
    count = (batch_range.end_row - batch_range.first_row) * row
    if p > 0:
        dx = g.dx + inputs[starts + p - 1] * row
        pass_gradient(grads, dx, g.dout + batch_range.first_row * row, count, False)


PREVIOUS = ArrayOp("previous", PreviousArgs, previous_forward, previous_backward)
CARRY = ArrayOp("carry", CarryArgs, None, None)


@jit
def move_state(values, operands, at, source, target):
    """Copy row `source` of the state that `previous` reads to row `target`."""
    _, width, x, _ = previous_args(operands, at)
    row = row_stride(values, width)
    for i in range(0, row, simd.lanes(values)):
        simd.store(values, x + target * row + i, simd.load(values, x + source * row + i))
