"""Recurrence: a row made from what the row of the position before was made into.

A stretch of records that begins with PREVIOUS and ends with CARRY is replayed position by
position, see sweep.py. Rows are position-major, documents in one order and the longest first, so
what the rows of a position go on from is a prefix of the block of rows before them.
"""

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import row_stride
from tapegpt.kernels.ops.elementwise import pass_gradient
from tapegpt.kernels.simd import (
    lanes,
    load,
    splat,
    store,
)


@inlined
def position_window(inputs, starts, p):
    """The window of position p alone, see rows.py."""
    return p, p + 1, inputs[starts + p], inputs[starts + p + 1]


# out = x at the position before, 0 at the first; operands: rows, width, x, slot of the starts
@jit
def previous_forward(values, operands, inputs, out, at, window):
    row, x, starts = row_stride(values, operands[at + 1]), operands[at + 2], operands[at + 3]
    p, target, count = window[0], out + window[2] * row, (window[3] - window[2]) * row
    if p == 0:
        for i in range(0, count, lanes(values)):
            store(values, target + i, splat(values, 0))
    else:
        source = x + inputs[starts + p - 1] * row
        for i in range(0, count, lanes(values)):
            store(values, target + i, load(values, source + i))


# Never the first to pass x a gradient: not all its rows are gone on from.
@jit
def previous_backward(values, grads, operands, inputs, out, at, back, window):
    row, starts = row_stride(values, operands[at + 1]), operands[at + 3]
    dout, dx = operands[back + 1] + window[2] * row, operands[back + 2]
    p, count = window[0], (window[3] - window[2]) * row
    if p > 0:
        pass_gradient(grads, dx + inputs[starts + p - 1] * row, dout, count, False)


@jit
def move_state(values, operands, at, source, target):
    """Give row `target` of what `previous` reads what row `source` has."""
    row, x = row_stride(values, operands[at + 1]), operands[at + 2]
    for i in range(0, row, lanes(values)):
        store(values, x + target * row + i, load(values, x + source * row + i))
