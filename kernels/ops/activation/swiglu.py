"""out = x gate / (1 + e^-gate)                       (Shazeer 2020: SwiGLU, without its products)

x, gate, out: (R, C). With s = 1 / (1 + e^-gate):

dx = gate s dout,  dgate = x s (1 + gate (1 - s)) dout
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, Size, readers
from tapegpt.kernels.ops.activation.gelu import sigmoid
from tapegpt.kernels.ops.elementwise import add_to, element_range


class Args(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    gate: Differentiable


args, grads_of = readers(Args)


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, gate = args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        z = simd.load(values, gate + i)
        simd.store(values, out + i, simd.load(values, x + i) * (z * sigmoid(z)))


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    begin, end = element_range(values, a.rows, a.width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        z, dout = simd.load(values, a.gate + i), simd.load(grads, g.dout + i)
        s = sigmoid(z)
        silu = z * s
        slope = simd.fma(silu, 1.0 - s, s)
        passed = simd.load(values, a.x + i) * slope * dout
        add_to(grads, g.dx + i, silu * dout, g.overwrite_dx)
        add_to(grads, g.dgate + i, passed, g.overwrite_dgate)


SWIGLU = ArrayOp("swiglu", Args, forward, backward, backward_reads=("x", "gate"), row_by_row=True)
