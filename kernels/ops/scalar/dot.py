"""Dot products of scalar nodes: one at a time, and a vector's with all rows of a matrix."""

from typing import NamedTuple

import numpy as np

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.op import Block, Column, ListOp, readers
from tapegpt.kernels.ops.scalar.reduce import repeats
from tapegpt.kernels.simd import FEW


class DotArgs(NamedTuple):
    length: Column
    nodes: Block  # a_0, a_1, ..., then b_0, b_1, ...


class DotRunArgs(NamedTuple):
    length: Column
    a: Column  # the first of consecutive nodes
    b: Column


class DotRowsArgs(NamedTuple):
    rows: Column
    length: Column
    b: Column
    a: Block  # the first node of every row, the last again and again up to a whole vector


class DotColumnsArgs(NamedTuple):
    columns: Column
    length: Column
    a: Column
    b: Block  # likewise


dot_args, _ = readers(DotArgs)
dot_run_args, _ = readers(DotRunArgs)
dot_rows_args, _ = readers(DotRowsArgs)
dot_columns_args, _ = readers(DotColumnsArgs)


# out = a_0 b_0 + a_1 b_1 + ...
@jit
def dot_forward(values, operands, inputs, out, at):
    count, nodes = dot_args(operands, at)
    total = 0.0  # float64, as of sums
    for i in range(nodes, nodes + count):
        total += np.float64(values[operands[i]]) * values[operands[i + count]]
    values[out] = total


@jit
def dot_backward(values, grads, operands, inputs, out, dout, at):
    count, nodes = dot_args(operands, at)
    if repeats(operands, nodes, count) or repeats(operands, nodes + count, count):
        factors_backward(values, grads, operands, dout, nodes, nodes + count, count)
        factors_backward(values, grads, operands, dout, nodes + count, nodes, count)
        return
    for i in range(nodes, nodes + count):
        a, b = operands[i], operands[i + count]
        grads[a] += values[b] * dout
        grads[b] += values[a] * dout


@jit
def factors_backward(values, grads, operands, dout, a, b, count):
    """Pass on the gradients of `count` factors listed from operands[a], of those from operands[b].

    A node listed many times in a row gets its gradient in one addition, which keeps it exact.
    """
    i = 0 * count
    while i < count:
        node, total = operands[a + i], 0.0
        while i < count and operands[a + i] == node:
            total += values[operands[b + i]]
            i += 1
        grads[node] += total * dout


@inlined
def run_product(values, a, b, first, last):
    """The dot product of elements `first` to last - 1 of two runs, whole vectors."""
    sums = simd.splat(values, 0)
    for i in range(first, last, simd.lanes(values)):
        sums = simd.fma(simd.load(values, a + i), simd.load(values, b + i), sums)
    return simd.sum_lanes(sums)


# The same for consecutive nodes
@jit
def dot_run_forward(values, operands, inputs, out, at):
    count, a, b = dot_run_args(operands, at)
    width = simd.lanes(values)
    whole = count - count % width
    before = 0.0  # float64, see FEW
    first = 0 * whole
    while whole - first > FEW * width:
        before += run_product(values, a, b, first, first + FEW * width)
        first += FEW * width
    total = run_product(values, a, b, first, whole)
    for i in range(whole, count):
        total += values[a + i] * values[b + i]
    values[out] = before + total


@jit
def dot_run_backward(values, grads, operands, inputs, out, dout, at):
    count, a, b = dot_run_args(operands, at)
    width = simd.lanes(values)
    whole = count - count % width
    douts = simd.splat(values, dout)
    for i in range(0, whole, width):
        simd.store(grads, a + i, simd.fma(simd.load(values, b + i), douts, simd.load(grads, a + i)))
        simd.store(grads, b + i, simd.fma(simd.load(values, a + i), douts, simd.load(grads, b + i)))
    for i in range(whole, count):
        grads[a + i] += values[b + i] * dout
        grads[b + i] += values[a + i] * dout


# out_i = a_i b: a matrix of the rows a_i, (rows, count), times a vector b, (count,)
@jit
def dot_rows_forward(values, operands, inputs, out, at, batch_range):
    rows, count, b, first = dot_rows_args(operands, at)
    width = simd.lanes(values)
    for i in range(0, rows, width):
        sums = simd.tile_zeros(values, width, 1)
        for j in range(0, count, width):
            exist = simd.keep_first(simd.splat(values, 1), count - j, 0)
            x = simd.keep_first(simd.load(values, b + j), count - j, 0)
            sums = simd.tile_fma_rows(sums, values, operands, first + i, j, x, exist)
        simd.store_part(values, out + i, simd.tile_row_sums(sums), rows - i)


@inlined
def row_backward(values, grads, dout_node, a, x, dx, count):
    """Add to the gradient of one row of the matrix; dx plus what the row adds to it."""
    dout = simd.splat(values, grads[dout_node])
    # What the root does not depend on passes nothing on, see vanishes.
    da = simd.fma(simd.where_nonzero(dout, x), dout, simd.load(grads, a))
    dx = simd.fma(simd.where_nonzero(dout, simd.load(values, a)), dout, dx)
    simd.store_part(grads, a, da, count)
    return dx


@jit
def dot_rows_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, count, b, first = dot_rows_args(operands, at)
    for j in range(0, count, simd.lanes(values)):
        x = simd.load(values, b + j)
        # Two sums, of every other row: a single one would wait for itself.
        even, odd = simd.splat(values, 0), simd.splat(values, 0)
        for i in range(0, rows - 1, 2):
            a, next_a = operands[first + i] + j, operands[first + i + 1] + j
            even = row_backward(values, grads, out + i, a, x, even, count - j)
            odd = row_backward(values, grads, out + i + 1, next_a, x, odd, count - j)
        if rows % 2 == 1:
            a = operands[first + rows - 1] + j
            even = row_backward(values, grads, out + rows - 1, a, x, even, count - j)
        simd.store_part(grads, b + j, simd.load(grads, b + j) + even + odd, count - j)


# out_j = a_0 b_0j + a_1 b_1j + ...: a vector a, (count,), times a matrix of the rows b_i,
# (count, columns)
@jit
def dot_columns_forward(values, operands, inputs, out, at, batch_range):
    columns, count, a, first = dot_columns_args(operands, at)
    for j in range(0, columns, simd.lanes(values)):
        sums = simd.splat(values, 0)
        for i in range(count):
            row = simd.load(values, operands[first + i] + j)
            sums = simd.fma(row, simd.splat(values, values[a + i]), sums)
        simd.store_part(values, out + j, sums, columns - j)


@jit
def dot_columns_backward(values, grads, operands, inputs, out, at, back, batch_range):
    columns, count, a, first = dot_columns_args(operands, at)
    width = simd.lanes(values)
    for j in range(0, columns, width):
        dout = simd.keep_first(simd.load(grads, out + j), columns - j, 0)
        for i in range(0, count, width):
            sums = simd.tile_zeros(values, width, 1)
            sums = simd.tile_fma_rows(sums, values, operands, first + i, j, dout, dout)
            da = simd.load(grads, a + i) + simd.tile_row_sums(sums)
            simd.store_part(grads, a + i, da, count - i)
        for i in range(count):
            b = operands[first + i] + j
            db = simd.where_nonzero(dout, dout * values[a + i])
            simd.store_part(grads, b, simd.load(grads, b) + db, columns - j)


DOT = ListOp("dot", DotArgs, dot_forward, dot_backward)
DOT_RUN = ListOp("dot_run", DotRunArgs, dot_run_forward, dot_run_backward)
DOT_ROWS = ListOp(
    "dot_rows", DotRowsArgs, dot_rows_forward, dot_rows_backward, several=True, by_address=True
)
DOT_COLUMNS = ListOp(
    "dot_columns",
    DotColumnsArgs,
    dot_columns_forward,
    dot_columns_backward,
    several=True,
    by_address=True,
)
