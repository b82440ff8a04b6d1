"""out = x + factor (f_K + sum over j of (gate_j + bias_j) f_j), of K pieces f_j of every row.

x, out: (R, C); gates: (R, K); bias: (1, K); features: (R, K C or more), f_j its columns from j C
on, to which no gradient is passed.

dx = dout,  dgate_j = factor sum(f_j dout),  dbias = the sum of the rows of dgate
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.op import (
    Array,
    ArrayOp,
    Differentiable,
    Parameter,
    Rows,
    ScalarNode,
    Size,
    readers,
)
from tapegpt.kernels.ops.elementwise import pass_gradient


class Args(NamedTuple):
    rows: Rows
    width: Size
    pieces: Size
    x: Differentiable
    gates: Differentiable
    bias: Parameter
    features: Array
    columns: Size  # of features
    factor: ScalarNode


args, grads_of = readers(Args)


@jit
def forward(values, operands, inputs, out, at, batch_range):
    a = args(operands, at)
    row, gate_row = row_stride(values, a.width), row_stride(values, a.pieces)
    feature_row, factor = row_stride(values, a.columns), values[a.factor]
    zero = values.dtype.type(0)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        features, gates = a.features + r * feature_row, a.gates + r * gate_row
        for i in range(0, a.width, simd.lanes(values)):
            total = simd.load(values, features + (a.pieces - 1) * a.width + i)
            for j in range(a.pieces):
                weight = simd.splat(values, values[gates + j] + values[a.bias + j])
                total = simd.fma(weight, simd.load(values, features + j * a.width + i), total)
            result = simd.load(values, a.x + r * row + i) + total * factor
            simd.store(values, out + r * row + i, simd.keep_first(result, a.width - i, zero))


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    row, gate_row = row_stride(values, a.width), row_stride(values, a.pieces)
    feature_row, factor = row_stride(values, a.columns), values[a.factor]
    zero = values.dtype.type(0)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        features, dgates = a.features + r * feature_row, g.dgates + r * gate_row
        if g.overwrite_dgates:
            for j in range(gate_row):
                grads[dgates + j] = zero
        for j in range(a.pieces):
            total = simd.splat(values, 0)
            for i in range(0, a.width, simd.lanes(values)):
                dout = simd.load(grads, g.dout + r * row + i)
                feature = simd.load(values, features + j * a.width + i)
                product = simd.keep_first(feature * dout, a.width - i, zero)
                total = total + product
            passed = values.dtype.type(simd.sum_lanes(total) * factor)
            grads[dgates + j] += passed
            grads[a.bias + j] += passed
    begin, count = first * row, (last - first) * row
    pass_gradient(grads, g.dx + begin, g.dout + begin, count, g.overwrite_dx)


GATED_SUM = ArrayOp(
    "gated_sum", Args, forward, backward, backward_reads=(), adds_to="x", row_by_row=True
)
