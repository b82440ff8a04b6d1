"""out = x / sqrt(mean(x^2) + epsilon), row by row (Zhang and Sennrich 2019, without a gain).

Forward four rows go together: their sums take half of the steps, and wait for each other less.
"""

import math

import numpy as np

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.ops.elementwise import add_to, array_product
from tapegpt.kernels.simd import (
    FEW,
    absolute,
    fma,
    four,
    inverse_root,
    lanes,
    load,
    max_lanes,
    maximum,
    row_offsets,
    splat,
    store,
    store_part,
    sum_lanes,
    tile_add_product,
    tile_fma_lanes,
    tile_load,
    tile_row_sums,
    tile_store,
    tile_zeros,
    totals,
    within,
)


@jit
def rescaled_row(values, x, out, columns, width, epsilon):
    """Norm one row whose squares overflow or vanish, or that is long; returns its scale."""
    size = lanes(values)
    largest = splat(values, 0)
    for i in range(x, x + columns, size):
        largest = maximum(largest, absolute(load(values, i)))
    # So that neither the number nor one over it is subnormal.
    limit = 1e37 if values.itemsize == 4 else 1e307
    divisor = min(max(np.float64(max_lanes(largest)), math.sqrt(epsilon), 1 / limit), limit)
    factor = values.dtype.type(1 / divisor)
    whole = 0.0  # float64, see FEW
    for first in range(x, x + columns, FEW * size):
        squares = splat(values, 0)
        for i in range(first, min(first + FEW * size, x + columns), size):
            part = load(values, i) * factor
            store(values, out + i - x, part)
            squares = fma(part, part, squares)
        whole += sum_lanes(squares)
    root = 1 / math.sqrt(whole / width + (math.sqrt(epsilon) / divisor) ** 2)
    for i in range(out, out + columns, size):
        store(values, i, load(values, i) * values.dtype.type(root))
    return root / divisor


# operands: rows, width, x, epsilon (a constant node), scales (one node a row, kept for backward)
@jit
def rmsnorm_forward(values, operands, inputs, out, at, window):
    width, x, epsilon, scales = (
        operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 4],
    )  # fmt: skip
    row, columns, size = row_stride(values, width), padded(values, width), lanes(values)
    share = values.dtype.type(1 / width)
    first, last = row_range(operands[at], window)
    nothing = tile_zeros(values, four(values), 1)
    # Beyond it squares have been so small that they were subnormal, or 0.
    steepest = values.dtype.type(1e15 if values.itemsize == 4 else 1e145)
    for r in range(first, last, four(values)):
        rows = row_offsets(r, last, row, four(values))
        begin = tile_load(nothing, values, x, rows)
        squares = tile_add_product(nothing, begin, begin)
        for c in range(size, columns, size):
            part = tile_load(nothing, values, x + c, rows)
            squares = tile_add_product(squares, part, part)
        mean = tile_row_sums(squares) * share + values[epsilon]
        scale = inverse_root(mean)
        usual = within(mean, values.dtype.type(math.inf)) and within(scale, steepest)
        if columns > FEW * size or not usual:
            for i in range(r, min(r + four(values), last)):
                values[scales + i] = rescaled_row(
                    values, x + i * row, out + i * row, columns, width, values[epsilon]
                )
            continue
        store_part(values, scales + r, scale, min(four(values), last - r))
        tile_store(values, out, rows, tile_fma_lanes(nothing, begin, scale), last - r)
        for c in range(size, columns, size):
            scaled = tile_fma_lanes(nothing, tile_load(nothing, values, x + c, rows), scale)
            tile_store(values, out + c, rows, scaled, last - r)


# dx = scale (dout - out mean(out dout))
@jit
def rmsnorm_backward(values, grads, operands, inputs, out, at, back, window):
    width, scales = operands[at + 1], operands[at + 4]
    fresh, dout, dx = operands[back], operands[back + 1], operands[back + 2]
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(operands[at], window)
    share = values.dtype.type(-1 / width)
    for r in range(first, last):
        out_r, dout_r, dx_r = out + r * row, dout + r * row, dx + r * row
        scale, out0, dout0 = values[scales + r], load(values, out_r), load(grads, dout_r)
        products = out0 * dout0
        for i in range(lanes(values), columns, lanes(values)):
            products = fma(load(values, out_r + i), load(grads, dout_r + i), products)
        mean = totals(products) * share
        if columns > FEW * lanes(values):
            mean = splat(values, array_product(values, out_r, grads, dout_r, columns) * share)
        add_to(grads, dx_r, fma(out0, mean, dout0) * scale, fresh & 1)
        for i in range(lanes(values), columns, lanes(values)):
            passed = fma(load(values, out_r + i), mean, load(grads, dout_r + i))
            add_to(grads, dx_r + i, passed * scale, fresh & 1)
