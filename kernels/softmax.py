"""out = e^x / sum(e^x), row by row."""

import math

from tapegpt.kernels.elementwise import add_to
from tapegpt.kernels.jit import jit
from tapegpt.kernels.rows import row_range
from tapegpt.kernels.simd import (
    fma,
    keep_first,
    lanes,
    load,
    max_lanes,
    maximum,
    row_stride,
    splat,
    store,
    sum_lanes,
)
from tapegpt.kernels.vmath import exp


@jit
def softmax_row(values, x, out, width):
    """Write e^(x - max) of one row to out, 0 into its padding; return (max, their sum)."""
    row = row_stride(values, width)
    lowest = values.dtype.type(-math.inf)
    maxima = splat(values, lowest)
    for i in range(0, row, lanes(values)):
        maxima = maximum(maxima, keep_first(load(values, x + i), width - i, lowest))
    largest = max_lanes(maxima)
    total = splat(values, 0)
    for i in range(0, row, lanes(values)):
        e = keep_first(exp(load(values, x + i) - largest), width - i, values.dtype.type(0))
        store(values, out + i, e)
        total = total + e
    return largest, sum_lanes(total)


# operands: rows, width, x
@jit
def array_softmax_forward(values, operands, inputs, out, at, window):
    width, x = operands[at + 1], operands[at + 2]
    row = row_stride(values, width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        _, total = softmax_row(values, x + r * row, out + r * row, width)
        for i in range(r * row, (r + 1) * row, lanes(values)):
            store(values, out + i, load(values, out + i) / total)


# dx = out (dout - sum(out dout))
@jit
def array_softmax_backward(values, grads, operands, inputs, out, at, fresh, window):
    width, x = operands[at + 1], operands[at + 2]
    row = row_stride(values, width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        begin, end = r * row, (r + 1) * row
        products = splat(values, 0)
        for i in range(begin, end, lanes(values)):
            products = fma(load(values, out + i), load(grads, out + i), products)
        total = sum_lanes(products)
        for i in range(begin, end, lanes(values)):
            dx = load(values, out + i) * (load(grads, out + i) - total)
            add_to(grads, x + i, dx, fresh & 1)
