"""out = cap tanh(x / cap): logits that stay between -cap and cap (Gemma 2, 2024).

x, out: (R, C). dx = (1 - (out / cap)^2) dout

tanh(z) is 1 - 2 / (1 + e^2z). What is not finite becomes NaN, so that a training notices it.
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, ScalarNode, Size, readers
from tapegpt.kernels.ops.elementwise import add_to, element_range
from tapegpt.kernels.simd.math import exp_any


class Args(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    cap: ScalarNode


args, grads_of = readers(Args)


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, cap = args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    largest, zero = values[cap], simd.splat(values, 0)
    for i in range(begin, end, simd.lanes(values)):
        z = simd.load(values, x + i)
        share = 1.0 - 2.0 / (exp_any(z * (2.0 / largest)) + 1.0)
        simd.store(values, out + i, simd.fma(z, zero, share * largest))


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    begin, end = element_range(values, a.rows, a.width, batch_range)
    inverse = 1.0 / values[a.cap]
    for i in range(begin, end, simd.lanes(values)):
        share = simd.load(values, out + i) * inverse
        passed = (1.0 - share * share) * simd.load(grads, g.dout + i)
        add_to(grads, g.dx + i, passed, g.overwrite_dx)


SOFTCAP = ArrayOp("softcap", Args, forward, backward, backward_reads=("out",), row_by_row=True)
