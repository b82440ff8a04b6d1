"""out = x / sqrt(mean(x^2) + epsilon), row by row (Zhang and Sennrich 2019, without a gain)."""

import math

from tapegpt.kernels.elementwise import add_to
from tapegpt.kernels.jit import jit
from tapegpt.kernels.rows import row_range
from tapegpt.kernels.simd import fma, lanes, load, padded, row_stride, splat, store, sum_lanes


# operands: rows, width, x, epsilon (a constant node), scales (one node a row, kept for backward)
@jit
def rmsnorm_forward(values, operands, inputs, out, at, window):
    width, x, epsilon, scales = (
        operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 4],
    )  # fmt: skip
    row, columns = row_stride(values, width), padded(values, width)
    one = values.dtype.type(1)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        begin, end = r * row, r * row + columns
        squares = splat(values, 0)
        for i in range(begin, end, lanes(values)):
            squares = fma(load(values, x + i), load(values, x + i), squares)
        mean = sum_lanes(squares) / values.dtype.type(width)
        scale = one / values.dtype.type(math.sqrt(mean + values[epsilon]))
        values[scales + r] = scale
        for i in range(begin, end, lanes(values)):
            store(values, out + i, load(values, x + i) * scale)


# dx = scale (dout - out mean(out dout))
@jit
def rmsnorm_backward(values, grads, operands, inputs, out, at, back, window):
    width, scales = operands[at + 1], operands[at + 4]
    fresh, dout, dx = operands[back], operands[back + 1], operands[back + 2]
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        out_r, dout_r, dx_r = out + r * row, dout + r * row, dx + r * row
        products = splat(values, 0)
        for i in range(0, columns, lanes(values)):
            products = fma(load(values, out_r + i), load(grads, dout_r + i), products)
        mean = splat(values, -sum_lanes(products) / values.dtype.type(width))
        for i in range(0, columns, lanes(values)):
            passed = fma(load(values, out_r + i), mean, load(grads, dout_r + i))
            add_to(grads, dx_r + i, passed * values[scales + r], fresh & 1)
