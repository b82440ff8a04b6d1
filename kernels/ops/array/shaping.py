"""Parts of arrays, arrays side by side or below each other, and rows as columns. All are copies."""

from typing import NamedTuple

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, Size, readers

# Rows and columns of the squares in which an array is transposed: of a cache line or two.
SQUARE = 16


class PartArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    x_width: Size
    x_rows: Size  # of x, or 0 where they are those of the batch
    first_row: Size
    first_column: Size


class JoinArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    x_width: Size
    x_rows: Size  # of x that come before those of y, or 0: y stands right of x
    y: Differentiable
    y_width: Size


class TransposeArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable


part_args, part_grads = readers(PartArgs)
join_args, join_grads = readers(JoinArgs)
transpose_args, transpose_grads = readers(TransposeArgs)


@jit
def add_rows(to, at, row, source, first, source_row, rows, width):
    """to += source, of `rows` rows; at and first: where the first of each begins."""
    for r in range(rows):
        for j in range(width):
            to[at + r * row + j] += source[first + r * source_row + j]


@jit
def copy_rows(to, at, row, source, first, source_row, rows, width):
    for r in range(rows):
        for j in range(width):
            to[at + r * row + j] = source[first + r * source_row + j]


@jit
def clear_rows(to, at, row, rows):
    for i in range(at, at + rows * row):
        to[i] = 0


# out = x[first_row : first_row + rows, first_column : first_column + width]
@jit
def part_forward(values, operands, inputs, out, at, batch_range):
    p = part_args(operands, at)
    first, last = row_range(p.rows, batch_range)
    row, x_row = row_stride(values, p.width), row_stride(values, p.x_width)
    x = p.x + (first + p.first_row) * x_row + p.first_column
    copy_rows(values, out + first * row, row, values, x, x_row, last - first, p.width)


@jit
def part_backward(values, grads, operands, inputs, out, at, back, batch_range):
    p, g = part_args(operands, at), part_grads(operands, back)
    first, last = row_range(p.rows, batch_range)
    row, x_row = row_stride(values, p.width), row_stride(values, p.x_width)
    if g.overwrite_dx:
        rows = p.x_rows if p.x_rows > 0 else last - first
        clear_rows(grads, g.dx + first * x_row, x_row, rows)
    dx = g.dx + (first + p.first_row) * x_row + p.first_column
    add_rows(grads, dx, x_row, grads, g.dout + first * row, row, last - first, p.width)


# out = x and y, side by side or below each other
@jit
def join_forward(values, operands, inputs, out, at, batch_range):
    p = join_args(operands, at)
    first, last = row_range(p.rows, batch_range)
    row, x_row = row_stride(values, p.width), row_stride(values, p.x_width)
    y_row, count = row_stride(values, p.y_width), last - first
    if p.x_rows > 0:
        copy_rows(values, out, row, values, p.x, x_row, p.x_rows, p.width)
        y_rows = count - p.x_rows
        copy_rows(values, out + p.x_rows * row, row, values, p.y, y_row, y_rows, p.width)
    else:
        begin, x, y = out + first * row, p.x + first * x_row, p.y + first * y_row
        copy_rows(values, begin, row, values, x, x_row, count, p.x_width)
        copy_rows(values, begin + p.x_width, row, values, y, y_row, count, p.y_width)


@jit
def join_backward(values, grads, operands, inputs, out, at, back, batch_range):
    p, g = join_args(operands, at), join_grads(operands, back)
    first, last = row_range(p.rows, batch_range)
    row, x_row = row_stride(values, p.width), row_stride(values, p.x_width)
    y_row, count = row_stride(values, p.y_width), last - first
    dx, dy, begin = g.dx + first * x_row, g.dy + first * y_row, g.dout + first * row
    x_rows = p.x_rows if p.x_rows > 0 else count
    y_rows = count - p.x_rows if p.x_rows > 0 else count
    y_begin = begin + p.x_rows * row if p.x_rows > 0 else begin + p.x_width
    if g.overwrite_dx:
        clear_rows(grads, dx, x_row, x_rows)
    add_rows(grads, dx, x_row, grads, begin, row, x_rows, p.x_width)
    if g.overwrite_dy:
        clear_rows(grads, dy, y_row, y_rows)
    add_rows(grads, dy, y_row, grads, y_begin, row, y_rows, p.y_width)


@jit
def add_transposed(to, at, row, source, first, source_row, rows, width):
    """to[r, c] += source[c, r], for `rows` rows and `width` columns of `to`."""
    for top in range(0, rows, SQUARE):
        for left in range(0, width, SQUARE):
            for r in range(top, min(top + SQUARE, rows)):
                for c in range(left, min(left + SQUARE, width)):
                    to[at + r * row + c] += source[first + c * source_row + r]


# out[r, c] = x[c, r]
@jit
def transpose_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = transpose_args(operands, at)
    row, x_row = row_stride(values, width), row_stride(values, rows)
    clear_rows(values, out, row, rows)
    add_transposed(values, out, row, values, x, x_row, rows, width)


@jit
def transpose_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _ = transpose_args(operands, at)
    g = transpose_grads(operands, back)
    row, x_row = row_stride(values, width), row_stride(values, rows)
    if g.overwrite_dx:
        clear_rows(grads, g.dx, x_row, width)
    add_transposed(grads, g.dx, x_row, grads, g.dout, row, width, rows)


PART = ArrayOp("array_part", PartArgs, part_forward, part_backward)
JOIN = ArrayOp("array_join", JoinArgs, join_forward, join_backward)
TRANSPOSE = ArrayOp("array_transpose", TransposeArgs, transpose_forward, transpose_backward)
