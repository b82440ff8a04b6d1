"""out[r] = e^x[r] / sum(e^x[r])

x, out: (R, C). dx[r] = out[r] (dout[r] - sum(out[r] dout[r]))
"""

import math

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import ArrayOp
from tapegpt.kernels.ops.elementwise import (
    UnaryArgs,
    add_to,
    array_product,
    array_sum,
    unary_args,
    unary_grads,
)
from tapegpt.kernels.simd import FEW
from tapegpt.kernels.simd.math import LOG2_E, exp2


@inlined
def padding(values, width):
    """Where the last vector of a row begins; -inf in its lanes that are padding, 0 in others."""
    last = (width - 1) // simd.lanes(values) * simd.lanes(values)
    return last, simd.keep_first(simd.splat(values, 0), width - last, values.dtype.type(-math.inf))


@inlined
def row_maximum(values, x, last, outside):
    """The largest number of one row."""
    maxima = simd.load(values, x + last) + outside
    for i in range(0, last, simd.lanes(values)):
        maxima = simd.maximum(maxima, simd.load(values, x + i))
    return simd.max_lanes(maxima)


@inlined
def row_exponentials(values, x, out, last, outside, largest):
    """Write e^(x - largest) of one row to out, 0 into its padding; return their sum."""
    total = exp2((simd.load(values, x + last) + outside - largest) * LOG2_E)
    simd.store(values, out + last, total)
    for i in range(0, last, simd.lanes(values)):
        e = exp2((simd.load(values, x + i) - largest) * LOG2_E)
        simd.store(values, out + i, e)
        total = total + e
    return simd.sum_lanes(total)


@jit
def array_softmax_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(rows, batch_range)
    end, outside = padding(values, width)
    for r in range(first, last):
        largest = row_maximum(values, x + r * row, end, outside)
        total = row_exponentials(values, x + r * row, out + r * row, end, outside, largest)
        if columns > FEW * simd.lanes(values):
            begin = out + r * row
            total = values.dtype.type(array_sum(values, begin, begin + columns))
        for i in range(r * row, r * row + columns, simd.lanes(values)):
            simd.store(values, out + i, simd.load(values, out + i) / total)


@jit
def array_softmax_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _ = unary_args(operands, at)
    g = unary_grads(operands, back)
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        out_r, dout_r, dx_r = out + r * row, g.dout + r * row, g.dx + r * row
        products = simd.splat(values, 0)
        for i in range(0, columns, simd.lanes(values)):
            products = simd.fma(
                simd.load(values, out_r + i), simd.load(grads, dout_r + i), products
            )
        total = simd.sum_lanes(products)
        if columns > FEW * simd.lanes(values):
            whole = array_product(values, out_r, grads, dout_r, columns)
            total = values.dtype.type(whole)
        for i in range(0, columns, simd.lanes(values)):
            passed = simd.load(values, out_r + i) * (simd.load(grads, dout_r + i) - total)
            add_to(grads, dx_r + i, passed, g.overwrite_dx)


SOFTMAX = ArrayOp(
    "array_softmax",
    UnaryArgs,
    array_softmax_forward,
    array_softmax_backward,
    backward_reads=("out",),
    row_by_row=True,
)
