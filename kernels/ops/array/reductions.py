"""Sums and maxima of arrays, over all elements, over every row, or over every column.

Sums of more than FEW numbers are taken in float64.
"""

import math
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, SharedRoom, Size, readers
from tapegpt.kernels.ops.array.pointwise import add_row, clear
from tapegpt.kernels.ops.elementwise import UnaryArgs, add_to, array_sum, element_range
from tapegpt.kernels.simd import FEW


class RowArgs(NamedTuple):
    rows: Rows  # of x and of the result, which has one column
    x_width: Size
    x: Differentiable


class ColumnArgs(NamedTuple):
    rows: Rows  # of x; the result has one
    width: Size
    x: Differentiable
    room: SharedRoom  # for a row


sum_args, sum_grads = readers(UnaryArgs)
row_args, row_grads = readers(RowArgs)
column_args, column_grads = readers(ColumnArgs)


# out = the sum of all elements, a scalar
@jit
def array_sum_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = sum_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    values[out] = array_sum(values, x + begin, x + end)


@jit
def array_sum_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _ = sum_args(operands, at)
    g = sum_grads(operands, back)
    first, last = row_range(rows, batch_range)
    row = row_stride(values, width)
    for r in range(first, last):
        for i in range(g.dx + r * row, g.dx + r * row + width):
            grads[i] = grads[out] if g.overwrite_dx else grads[i] + grads[out]


# out[r] = the sum of row r
@jit
def row_sum_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = row_args(operands, at)
    first, last = row_range(rows, batch_range)
    row, out_row, columns = row_stride(values, width), row_stride(values, 1), padded(values, width)
    for r in range(first, last):
        values[out + r * out_row] = array_sum(values, x + r * row, x + r * row + columns)


@jit
def row_sum_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _ = row_args(operands, at)
    g = row_grads(operands, back)
    first, last = row_range(rows, batch_range)
    row, out_row = row_stride(values, width), row_stride(values, 1)
    for r in range(first, last):
        passed = grads[g.dout + r * out_row]
        for i in range(g.dx + r * row, g.dx + r * row + width):
            grads[i] = passed if g.overwrite_dx else grads[i] + passed


# out[0, j] = the sum of column j
@jit
def column_sum_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, room = column_args(operands, at)
    first, last = row_range(rows, batch_range)
    row, columns = row_stride(values, width), padded(values, width)
    clear(values, out, out + columns)
    for begin in range(first, last, FEW * FEW):
        # Sums of FEW rows, and in the room sums of FEW of those.
        clear(values, room, room + columns)
        for some in range(begin, min(begin + FEW * FEW, last), FEW):
            for j in range(0, width, simd.lanes(values)):
                total = simd.splat(values, 0)
                for r in range(some, min(some + FEW, last)):
                    total = total + simd.load(values, x + r * row + j)
                simd.store(values, room + j, simd.load(values, room + j) + total)
        add_row(values, room, values, out, width, False)


@jit
def column_sum_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _, _ = column_args(operands, at)
    g = column_grads(operands, back)
    first, last = row_range(rows, batch_range)
    row = row_stride(values, width)
    for r in range(first, last):
        for j in range(0, width, simd.lanes(values)):
            passed = simd.keep_first(simd.load(grads, g.dout + j), width - j, 0)
            add_to(grads, g.dx + r * row + j, passed, g.overwrite_dx)


@jit
def largest_place(values, begin, end):
    """Where the largest of values[begin : end] lies, the first of equals, or the first NaN."""
    best = begin
    for i in range(begin, end):
        if math.isnan(values[i]):
            return i
        if values[i] > values[best]:
            best = i
    return best


# out[r] = the largest of row r
@jit
def row_max_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = row_args(operands, at)
    first, last = row_range(rows, batch_range)
    row, out_row = row_stride(values, width), row_stride(values, 1)
    for r in range(first, last):
        place = largest_place(values, x + r * row, x + r * row + width)
        values[out + r * out_row] = values[place]


@jit
def row_max_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, x = row_args(operands, at)
    g = row_grads(operands, back)
    first, last = row_range(rows, batch_range)
    row, out_row = row_stride(values, width), row_stride(values, 1)
    for r in range(first, last):
        if g.overwrite_dx:
            clear(grads, g.dx + r * row, g.dx + r * row + width)
        place = largest_place(values, x + r * row, x + r * row + width)
        grads[place - x + g.dx] += grads[g.dout + r * out_row]


SUM = ArrayOp("array_sum", UnaryArgs, array_sum_forward, array_sum_backward)
ROW_SUM = ArrayOp("row_sum", RowArgs, row_sum_forward, row_sum_backward, row_by_row=True)
COLUMN_SUM = ArrayOp("column_sum", ColumnArgs, column_sum_forward, column_sum_backward)
ROW_MAX = ArrayOp(
    "row_max", RowArgs, row_max_forward, row_max_backward, backward_reads=("x",), row_by_row=True
)
