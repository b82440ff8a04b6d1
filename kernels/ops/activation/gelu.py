"""out = x / (1 + e^-u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3): GELU by tanh.

(Hendrycks and Gimpel 2016. It is x (1 + tanh(u / 2)) / 2, as GPT-2 has it.)

x, out: (R, C). With s = 1 / (1 + e^-u): dx = (s + x s (1 - s) u') dout
"""

import math

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.op import ArrayOp
from tapegpt.kernels.ops.elementwise import (
    UnaryArgs,
    add_to,
    element_range,
    unary_args,
    unary_grads,
)
from tapegpt.kernels.simd.math import exp_any

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = LINEAR * 0.044715
FAR = 16.0  # beyond it s is 0 or 1 in every float


@inlined
def sigmoid(x):
    """1 / (1 + e^-x)"""
    return 1.0 / (exp_any(x * -1.0) + 1.0)


@inlined
def gate(values, x):
    """s, and x^2, for an x that is not beyond FAR."""
    near = simd.clamp(x, values.dtype.type(-FAR), values.dtype.type(FAR))
    square = near * near
    cubic, linear = values.dtype.type(CUBIC), values.dtype.type(LINEAR)
    return sigmoid(near * (square * cubic + linear)), square


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        part = simd.load(values, x + i)
        s, _ = gate(values, part)
        simd.store(values, out + i, part * s)


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, x = unary_args(operands, at)
    g = unary_grads(operands, back)
    begin, end = element_range(values, rows, width, batch_range)
    cubic, linear = values.dtype.type(3 * CUBIC), values.dtype.type(LINEAR)
    for i in range(begin, end, simd.lanes(values)):
        part = simd.load(values, x + i)
        s, square = gate(values, part)
        slope = simd.fma(part * s * (1.0 - s), square * cubic + linear, s)
        add_to(grads, g.dx + i, slope * simd.load(grads, g.dout + i), g.overwrite_dx)


GELU = ArrayOp("gelu", UnaryArgs, forward, backward, backward_reads=("x",), row_by_row=True)
