"""The k largest numbers of every row, and the product of these alone with a matrix.

    topk:             inputs[slot + r k : slot + (r + 1) k] = their columns, from left to right
    sparse_linear:  out[r] = start[r] + sum over i, inputs[slot + r k : ], of x[r, i] W[i]

x: (R, n_in); W: (n_in, n_out); start, out: (R, n_out). Only the chosen rows of W are read.
"""

import math
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import Array, ArrayOp, Differentiable, Parameter, Rows, Size, Slot, readers
from tapegpt.kernels.ops.elementwise import pass_gradient
from tapegpt.kernels.ops.product.matrix import IDENTITY, Result, Right, part_of

# Vectors of a row that are summed up together.
TOGETHER = 4

WORD = 64  # bits


class TopkArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Array
    k: Size
    slot: Slot


class SparseArgs(NamedTuple):
    rows: Rows
    n_in: Size
    n_out: Size
    x: Differentiable
    w: Parameter
    k: Size
    slot: Slot
    start: Differentiable


topk_args, _ = readers(TopkArgs)
sparse_args, sparse_grads = readers(SparseArgs)


@inlined
def copy_finite(values, x, width, row, out):
    """Copy a row, infinities made finite and the padding NaN; returns its extremes.

    NaN becomes the largest number of all: what follows from a NaN must be one too.
    """
    lowest, nan = simd.splat(values, -math.inf), values.dtype.type(math.nan)
    limit = simd.splat(values, 3e38 if values.itemsize == 4 else 1.5e308)
    above = values.dtype.type(3.4e38 if values.itemsize == 4 else 1.7e308)
    largest, negative = lowest, lowest
    for i in range(0, row, simd.lanes(values)):
        number = simd.replace_nan(simd.clamp(simd.load(values, x + i), limit * -1.0, limit), above)
        number = simd.keep_first(number, width - i, nan)
        largest, negative = simd.maximum(largest, number), simd.maximum(negative, number * -1.0)
        simd.store(values, out + i, number)
    return -simd.max_lanes(negative), simd.max_lanes(largest)


# Of equal numbers the first are chosen; `out` is a row of scratch.
#
# Bisection narrows a threshold down to between low and high. Numbers above low are chosen, but of
# those equal to high only the first `room`.
@jit
def topk_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, k, slot = topk_args(operands, at)
    row = row_stride(values, width)
    half, lowest = values.dtype.type(0.5), values.dtype.type(-math.inf)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        middle, high = copy_finite(values, x + r * row, width, row, out)
        low, room = lowest, k
        while True:
            at_most = 0 * k
            for i in range(out, out + row, simd.lanes(values)):
                at_most += simd.count_at_most(simd.load(values, i), middle)
            if at_most > width - k:
                high, room = middle, k - (width - at_most)
            else:
                low = middle
            middle = low * half + high * half
            if at_most == width - k or not low < middle < high:
                break
        chosen, end = slot + r * k, slot + (r + 1) * k
        for begin in range(0, row, WORD):
            above = 0 * k
            for i in range(begin, min(row, begin + WORD), simd.lanes(values)):
                above |= simd.lanes_above(simd.load(values, out + i), low) << (i - begin)
            while above != 0 and chosen < end:
                i = begin + simd.lowest_bit(above)
                above &= above - 1
                if values[out + i] == high:
                    room -= 1
                if values[out + i] != high or room >= 0:
                    inputs[chosen] = i
                    chosen += 1


@inlined
def gathered_product(inputs, x, chosen, k, w, out, columns):
    """`columns` vectors of a row: out = start + the sum of x[i] W[i] over the chosen i."""
    values, tile = out.array, simd.tile_zeros(out.array, 1, columns)
    one_row = simd.row_offsets(0, 1, 0, 1)
    if out.start >= 0:
        tile = simd.tile_load(tile, values, out.start, one_row)
    for j in range(chosen, chosen + k):
        x_i = simd.row_pointers(values, x + inputs[j], 0, 1)
        tile = simd.tile_fma(tile, x_i, values, w.begin + inputs[j] * w.row)
    simd.tile_store(values, out.begin, one_row, tile, 1)


@jit
def sparse_linear_forward(values, operands, inputs, out, at, batch_range):
    a = sparse_args(operands, at)
    x_row, row = row_stride(values, a.n_in), row_stride(values, a.n_out)
    result = Result(values, out, row, a.start, IDENTITY)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        x_r, chosen = a.x + r * x_row, a.slot + r * a.k
        c = 0 * row
        while c < row:
            w, out_c = Right(values, a.w + c, row, False), part_of(result, r * row + c)
            if row - c >= TOGETHER * simd.lanes(values):
                gathered_product(inputs, x_r, chosen, a.k, w, out_c, TOGETHER)
                c += TOGETHER * simd.lanes(values)
            else:
                gathered_product(inputs, x_r, chosen, a.k, w, out_c, 1)
                c += simd.lanes(values)


@jit
def sparse_linear_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, n_in, n_out, x, w, k, slot, _ = sparse_args(operands, at)
    g = sparse_grads(operands, back)
    x_row, row = row_stride(values, n_in), row_stride(values, n_out)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        x_r, dx_r, dout_r = x + r * x_row, g.dx + r * x_row, g.dout + r * row
        if g.overwrite_dx:
            for c in range(0, x_row, simd.lanes(grads)):
                simd.store(grads, dx_r + c, simd.splat(grads, 0))
        for j in range(slot + r * k, slot + r * k + k):
            i, w_i = inputs[j], w + inputs[j] * row
            x_i, dx_i = simd.splat(values, values[x_r + i]), simd.splat(values, 0)
            for c in range(0, row, simd.lanes(grads)):
                dout_c = simd.load(grads, dout_r + c)
                dx_i = simd.fma(dout_c, simd.load(values, w_i + c), dx_i)
                simd.store(grads, w_i + c, simd.fma(dout_c, x_i, simd.load(grads, w_i + c)))
            grads[dx_r + i] += simd.sum_lanes(dx_i)
    if g.dstart != NONE:
        begin, count = first * row, (last - first) * row
        pass_gradient(grads, g.dstart + begin, g.dout + begin, count, g.overwrite_dstart)


TOPK = ArrayOp("topk", TopkArgs, topk_forward, None, backward_reads=("x",), row_by_row=True)
SPARSE_LINEAR = ArrayOp(
    "sparse_linear",
    SparseArgs,
    sparse_linear_forward,
    sparse_linear_backward,
    backward_reads=("x",),
    adds_to="start",
    row_by_row=True,
)
