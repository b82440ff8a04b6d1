"""One head of one document: out of the rows of a batch into matrices of its own, and back.

In rows, positions lie at no constant distance: those of all documents at a position lie together.
"""

from typing import Any, NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, padded
from tapegpt.kernels.ops.product.matmul import matmul, panel_by_panel, single_panel
from tapegpt.kernels.ops.product.matrix import IDENTITY, Result, Right, part_of
from tapegpt.kernels.simd import SINGLE_TILE

# Matrices have whole strips of so many rows. No vector has more lanes.
STRIP = 16


def whole_strips(count):
    """The rows of a matrix for so many positions."""
    return (count + STRIP - 1) // STRIP * STRIP


strips = inlined(whole_strips)


class Head(NamedTuple):
    """One head of one document, in rows: where those of its positions begin."""

    inputs: Any
    starts: int
    document: int
    column: int
    width: int  # head_dim


@inlined
def element(head, p, row):
    """The first element of the head at position p, of rows `row` elements apart."""
    return (head.inputs[head.starts + p] + head.document) * row + head.column


@jit
def copy_in(rows, begin, row, head, first, end, out, target):
    """Copy positions first to end - 1 out of rows to (T, C) at `target`, zeros after the last."""
    width, zero = padded(rows, head.width), rows.dtype.type(0)
    for p in range(first, end):
        x, copy = begin + element(head, p, row), target + p * width
        for c in range(0, head.width - simd.lanes(rows) + 1, simd.lanes(rows)):
            simd.store(out, copy + c, simd.load(rows, x + c))
        if width > head.width:
            c = width - simd.lanes(rows)
            simd.store(out, copy + c, simd.keep_first(simd.load(rows, x + c), head.width - c, zero))
    for i in range(target + end * width, target + strips(end) * width, simd.lanes(rows)):
        simd.store(out, i, simd.splat(out, 0))


@jit
def copy_out(x, source, head, first, end, rows, begin, row, overwrite):
    """Copy them back to rows, or add them to what is there: x, (T, C) at `source`."""
    width = padded(rows, head.width)
    for p in range(first, end):
        target = begin + element(head, p, row)
        for c in range(0, width, simd.lanes(rows)):
            number = simd.load(x, source + p * width + c)
            if not overwrite:
                number = simd.load(rows, target + c) + number
            if c + simd.lanes(rows) <= head.width:
                simd.store(rows, target + c, number)
            else:
                simd.store_part(rows, target + c, number, head.width - c)


class Matrices(NamedTuple):
    """The (T, C) matrices of one head."""

    q: int
    k: int
    v: int
    largest: int
    log_sum: int
    columns: int  # C
    head_dim: int


@inlined
def product(left, right, out, begin, row, shape, overwrite):
    """array[begin + r row : ] = A B, or += A B, of a strip or a square: nothing is packed."""
    array, b0, b_row = right
    b = Right(array, b0, b_row, False)
    result = Result(out, begin, row, NONE if overwrite else begin, IDENTITY)
    if shape.rows > STRIP:
        matmul(left, b, result, shape, 0)
    elif SINGLE_TILE[0] == STRIP:  # one tile has all its rows
        for c in range(0, shape.columns, simd.lanes(out)):
            panel = Right(array, b0 + c, b_row, False)
            single_panel(left, panel, part_of(result, c), STRIP, shape.depth)
    else:
        columns = padded(out, shape.columns)
        panel_by_panel(left, b, result, STRIP, shape.depth, 0, columns, NONE)


@jit
def scale_rows(values, x, rows, columns, factors):
    """Multiply every row of x with a factor of its own."""
    for r in range(rows):
        factor = simd.splat(values, values[factors + r])
        for i in range(x + r * columns, x + (r + 1) * columns, simd.lanes(values)):
            simd.store(values, i, simd.load(values, i) * factor)
