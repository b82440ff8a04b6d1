"""out = max(0, x)^2                                   (So et al. 2021, Primer)

x, out: (R, C). dx = 2 max(0, x) dout
"""

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.op import ArrayOp
from tapegpt.kernels.ops.elementwise import (
    UnaryArgs,
    add_to,
    element_range,
    unary_args,
    unary_grads,
)


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        y = simd.relu(simd.load(values, x + i))
        simd.store(values, out + i, y * y)


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, x = unary_args(operands, at)
    g = unary_grads(operands, back)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        slope = simd.relu(simd.load(values, x + i)) * 2.0
        add_to(grads, g.dx + i, slope * simd.load(grads, g.dout + i), g.overwrite_dx)


RELU_SQUARED = ArrayOp(
    "relu_squared", UnaryArgs, forward, backward, backward_reads=("x",), row_by_row=True
)
