"""out = x / sqrt(mean(x^2) + epsilon), row by row (Zhang and Sennrich 2019, without a gain)."""

from tapegpt.kernels.elementwise import add_to
from tapegpt.kernels.jit import jit
from tapegpt.kernels.rows import row_range
from tapegpt.kernels.simd import (
    first_lane,
    fma,
    inverse_root,
    lanes,
    load,
    padded,
    row_stride,
    store,
    totals,
)


# operands: rows, width, x, epsilon (a constant node), scales (one node a row, kept for backward)
@jit
def rmsnorm_forward(values, operands, inputs, out, at, window):
    width, x, epsilon, scales = (
        operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 4],
    )  # fmt: skip
    row, columns = row_stride(values, width), padded(values, width)
    share = values.dtype.type(1 / width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        begin, end = r * row, r * row + columns
        x0 = load(values, x + begin)
        squares = x0 * x0
        for i in range(begin + lanes(values), end, lanes(values)):
            squares = fma(load(values, x + i), load(values, x + i), squares)
        scale = inverse_root(totals(squares) * share + values[epsilon])
        values[scales + r] = first_lane(scale)
        store(values, out + begin, x0 * scale)
        for i in range(begin + lanes(values), end, lanes(values)):
            store(values, out + i, load(values, x + i) * scale)


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
