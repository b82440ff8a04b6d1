"""The k largest numbers of every row, and the product of those alone with a matrix.

    topk:             inputs[slot + r k : slot + (r + 1) k] = their columns, from left to right
    gathered_linear:  out[r] = start[r] + sum over i, inputs[slot + r k : ], of x[r, i] W[i]

x: (R, n_in); W: (n_in, n_out); start, out: (R, n_out). Only the chosen rows of W are read.
"""

import math
from typing import NamedTuple

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import (
    Array,
    ArrayOp,
    Differentiable,
    Parameter,
    Rows,
    Size,
    Slot,
    readers,
)
from tapegpt.kernels.ops.elementwise import pass_gradient
from tapegpt.kernels.simd import (
    clamp,
    count_at_most,
    fma,
    keep_first,
    lanes,
    lanes_above,
    load,
    lowest_bit,
    max_lanes,
    maximum,
    replace_nan,
    row_offsets,
    row_pointers,
    splat,
    store,
    sum_lanes,
    tile_fma,
    tile_load,
    tile_store,
    tile_zeros,
)

# Vectors of a row that are summed up together.
TOGETHER = 4

WORD = 64  # bits


class TopkArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Array
    k: Size
    slot: Slot


class GatheredArgs(NamedTuple):
    rows: Rows
    n_in: Size
    n_out: Size
    x: Differentiable
    w: Parameter
    k: Size
    slot: Slot
    start: Differentiable


topk_args, _ = readers(TopkArgs)
gathered_args, gathered_grads = readers(GatheredArgs)


@inlined
def copy_finite(values, x, width, row, out):
    """Copy a row, infinities made finite and the padding NaN; returns its extremes.

    NaN becomes the largest number of all: what follows from a NaN must be one too.
    """
    lowest, nan = splat(values, -math.inf), values.dtype.type(math.nan)
    limit = splat(values, 3e38 if values.itemsize == 4 else 1.5e308)
    above = values.dtype.type(3.4e38 if values.itemsize == 4 else 1.7e308)
    largest, negative = lowest, lowest
    for i in range(0, row, lanes(values)):
        number = replace_nan(clamp(load(values, x + i), limit * -1.0, limit), above)
        number = keep_first(number, width - i, nan)
        largest, negative = maximum(largest, number), maximum(negative, number * -1.0)
        store(values, out + i, number)
    return -max_lanes(negative), max_lanes(largest)


# Of equals the first count; `out` is a row to work in.
#
# A threshold is found by halving the interval from low to high. What is above low counts, but of
# what equals high only as much as the numbers above it leave room for.
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
            for i in range(out, out + row, lanes(values)):
                at_most += count_at_most(load(values, i), middle)
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
            for i in range(begin, min(row, begin + WORD), lanes(values)):
                above |= lanes_above(load(values, out + i), low) << (i - begin)
            while above != 0 and chosen < end:
                i = begin + lowest_bit(above)
                above &= above - 1
                if values[out + i] == high:
                    room -= 1
                if values[out + i] != high or room >= 0:
                    inputs[chosen] = i
                    chosen += 1


@inlined
def gathered_product(values, inputs, x, chosen, k, w, w_row, start, out, columns):
    """`columns` vectors of a row of out = start + the sum of x[i] W[i] over the chosen i."""
    tile = tile_zeros(values, 1, columns)
    one_row = row_offsets(0, 1, 0, 1)
    if start >= 0:
        tile = tile_load(tile, values, start, one_row)
    for j in range(chosen, chosen + k):
        tile = tile_fma(
            tile, row_pointers(values, x + inputs[j], 0, 1), values, w + inputs[j] * w_row
        )
    tile_store(values, out, one_row, tile, 1)


@jit
def gathered_linear_forward(values, operands, inputs, out, at, batch_range):
    rows, n_in, n_out, x, w, k, slot, start = gathered_args(operands, at)
    x_row, row = row_stride(values, n_in), row_stride(values, n_out)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        x_r, out_r, chosen = x + r * x_row, out + r * row, slot + r * k
        start_r = start if start == NONE else start + r * row
        c = 0 * row
        while c < row:
            begin = start_r if start == NONE else start_r + c
            if row - c >= TOGETHER * lanes(values):
                gathered_product(
                    values, inputs, x_r, chosen, k, w + c, row, begin, out_r + c, TOGETHER
                )
                c += TOGETHER * lanes(values)
            else:
                gathered_product(values, inputs, x_r, chosen, k, w + c, row, begin, out_r + c, 1)
                c += lanes(values)


@jit
def gathered_linear_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, n_in, n_out, x, w, k, slot, _ = gathered_args(operands, at)
    g = gathered_grads(operands, back)
    x_row, row = row_stride(values, n_in), row_stride(values, n_out)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        x_r, dx_r, dout_r = x + r * x_row, g.dx + r * x_row, g.dout + r * row
        if g.overwrite_dx:
            for c in range(0, x_row, lanes(grads)):
                store(grads, dx_r + c, splat(grads, 0))
        for j in range(slot + r * k, slot + r * k + k):
            i, w_i = inputs[j], w + inputs[j] * row
            x_i, dx_i = splat(values, values[x_r + i]), splat(values, 0)
            for c in range(0, row, lanes(grads)):
                dout_c = load(grads, dout_r + c)
                dx_i = fma(dout_c, load(values, w_i + c), dx_i)
                store(grads, w_i + c, fma(dout_c, x_i, load(grads, w_i + c)))
            grads[dx_r + i] += sum_lanes(dx_i)
    if g.dstart != NONE:
        begin, count = first * row, (last - first) * row
        pass_gradient(grads, g.dstart + begin, g.dout + begin, count, g.overwrite_dstart)


TOPK = ArrayOp("topk", TopkArgs, topk_forward, None, backward_reads=("x",), row_by_row=True)
GATHERED_LINEAR = ArrayOp(
    "gathered_linear",
    GatheredArgs,
    gathered_linear_forward,
    gathered_linear_backward,
    backward_reads=("x",),
    adds_to="start",
    row_by_row=True,
)
