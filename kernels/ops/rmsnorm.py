"""out[r] = x[r] / sqrt(mean(x[r]^2) + epsilon)       (Zhang and Sennrich 2019, without a gain).

x, out: (R, C); inv_rms: (R,), kept for backward.

dx[r] = inv_rms[r] (dout[r] - out[r] mean(out[r] dout[r]))

Forward four rows go together: their sums take half of the steps, and their dependency chains
overlap.
"""

import math
from typing import NamedTuple

import numpy as np

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Room, Rows, ScalarNode, Size, readers
from tapegpt.kernels.ops.elementwise import add_to, array_product
from tapegpt.kernels.simd import FEW


class Args(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    epsilon: ScalarNode
    inv_rms: Room


args, grads_of = readers(Args)


@jit
def rescaled_row(values, x, out, columns, width, epsilon):
    """Norm one row whose squares overflow or underflow, or that is long; returns its scale."""
    size = simd.lanes(values)
    largest = simd.splat(values, 0)
    for i in range(x, x + columns, size):
        largest = simd.maximum(largest, simd.absolute(simd.load(values, i)))
    # Neither the divisor nor its inverse is subnormal.
    limit = 1e37 if values.itemsize == 4 else 1e307
    divisor = min(max(np.float64(simd.max_lanes(largest)), math.sqrt(epsilon), 1 / limit), limit)
    factor = values.dtype.type(1 / divisor)
    whole = 0.0  # float64, see FEW
    for first in range(x, x + columns, FEW * size):
        squares = simd.splat(values, 0)
        for i in range(first, min(first + FEW * size, x + columns), size):
            part = simd.load(values, i) * factor
            simd.store(values, out + i - x, part)
            squares = simd.fma(part, part, squares)
        whole += simd.sum_lanes(squares)
    root = 1 / math.sqrt(whole / width + (math.sqrt(epsilon) / divisor) ** 2)
    for i in range(out, out + columns, size):
        simd.store(values, i, simd.load(values, i) * values.dtype.type(root))
    return root / divisor


@jit
def rmsnorm_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, epsilon, inv_rms = args(operands, at)
    row, columns, size = row_stride(values, width), padded(values, width), simd.lanes(values)
    share = values.dtype.type(1 / width)
    first, last = row_range(rows, batch_range)
    nothing = simd.tile_zeros(values, simd.four(values), 1)
    # A scale above it comes from squares that underflowed.
    steepest = values.dtype.type(1e15 if values.itemsize == 4 else 1e145)
    for r in range(first, last, simd.four(values)):
        offsets = simd.row_offsets(r, last, row, simd.four(values))
        begin = simd.tile_load(nothing, values, x, offsets)
        squares = simd.fma(begin, begin, nothing)
        for c in range(size, columns, size):
            part = simd.tile_load(nothing, values, x + c, offsets)
            squares = simd.fma(part, part, squares)
        mean = simd.tile_row_sums(squares) * share + values[epsilon]
        scale = simd.inverse_root(mean)
        usual = simd.within(mean, values.dtype.type(math.inf)) and simd.within(scale, steepest)
        if columns > FEW * size or not usual:
            for i in range(r, min(r + simd.four(values), last)):
                values[inv_rms + i] = rescaled_row(
                    values, x + i * row, out + i * row, columns, width, values[epsilon]
                )
            continue
        simd.store_part(values, inv_rms + r, scale, min(simd.four(values), last - r))
        simd.tile_store(values, out, offsets, simd.tile_fma_lanes(nothing, begin, scale), last - r)
        for c in range(size, columns, size):
            scaled = simd.tile_fma_lanes(
                nothing, simd.tile_load(nothing, values, x + c, offsets), scale
            )
            simd.tile_store(values, out + c, offsets, scaled, last - r)


@jit
def rmsnorm_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    width = a.width
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(a.rows, batch_range)
    share = values.dtype.type(-1 / width)
    for r in range(first, last):
        out_r, dout_r, dx_r = out + r * row, g.dout + r * row, g.dx + r * row
        scale = values[a.inv_rms + r]
        out0, dout0 = simd.load(values, out_r), simd.load(grads, dout_r)
        products = out0 * dout0
        for i in range(simd.lanes(values), columns, simd.lanes(values)):
            products = simd.fma(
                simd.load(values, out_r + i), simd.load(grads, dout_r + i), products
            )
        mean = simd.totals(products) * share
        if columns > FEW * simd.lanes(values):
            mean = simd.splat(values, array_product(values, out_r, grads, dout_r, columns) * share)
        add_to(grads, dx_r, simd.fma(out0, mean, dout0) * scale, g.overwrite_dx)
        for i in range(simd.lanes(values), columns, simd.lanes(values)):
            passed = simd.fma(simd.load(values, out_r + i), mean, simd.load(grads, dout_r + i))
            add_to(grads, dx_r + i, passed * scale, g.overwrite_dx)


RMSNORM = ArrayOp(
    "rmsnorm", Args, rmsnorm_forward, rmsnorm_backward, backward_reads=("out",), row_by_row=True
)
