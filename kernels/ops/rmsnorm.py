"""out = x / sqrt(mean(x^2) + epsilon), row by row (Zhang and Sennrich 2019, without a gain).

Forward four rows go together: their sums take half of the steps, and wait for each other less.
"""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.ops.elementwise import add_to
from tapegpt.kernels.simd import (
    fma,
    four,
    inverse_root,
    lanes,
    load,
    row_offsets,
    store_part,
    tile_add_product,
    tile_fma_lanes,
    tile_load,
    tile_row_sums,
    tile_store,
    tile_zeros,
    totals,
)


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
    for r in range(first, last, four(values)):
        rows = row_offsets(r, last, row, four(values))
        begin = tile_load(nothing, values, x, rows)
        squares = tile_add_product(nothing, begin, begin)
        for c in range(size, columns, size):
            part = tile_load(nothing, values, x + c, rows)
            squares = tile_add_product(squares, part, part)
        scale = inverse_root(tile_row_sums(squares) * share + values[epsilon])
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
        add_to(grads, dx_r, fma(out0, mean, dout0) * scale, fresh & 1)
        for i in range(lanes(values), columns, lanes(values)):
            passed = fma(load(values, out_r + i), mean, load(grads, dout_r + i))
            add_to(grads, dx_r + i, passed * scale, fresh & 1)
