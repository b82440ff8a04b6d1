"""Rotary positions: pairs of neighbouring columns turn by angles (Su et al. 2021, RoFormer).

    out[r, 2i]     = cos(angle) x[r, 2i] - sin(angle) x[r, 2i + 1]
    out[r, 2i + 1] = sin(angle) x[r, 2i] + cos(angle) x[r, 2i + 1]

x, out: (R, C), C even; cosines, sines: (positions, C), tables, row p for position p. A pair has its
cosine twice, and its sine with the sign -, then with +. So with swap for the exchange of neighbours

    out[r] = cosines[p] x[r] + sines[p] swap(x[r]),    p = inputs[positions + r]
    dx[r] = cosines[p] dout[r] + swap(sines[p] dout[r])
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import Array, ArrayOp, Differentiable, Rows, Size, Slot, readers
from tapegpt.kernels.ops.elementwise import add_to


class Args(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    positions: Slot
    cosines: Array
    sines: Array


args, grads_of = readers(Args)


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, positions, cosines, sines = args(operands, at)
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        table = inputs[positions + r] * row
        for c in range(0, columns, simd.lanes(values)):
            part = simd.load(values, x + r * row + c)
            turned = simd.swap_pairs(part) * simd.load(values, sines + table + c)
            y = simd.fma(part, simd.load(values, cosines + table + c), turned)
            simd.store(values, out + r * row + c, y)


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    row, columns = row_stride(values, a.width), padded(values, a.width)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        table = inputs[a.positions + r] * row
        for c in range(0, columns, simd.lanes(values)):
            dout = simd.load(grads, g.dout + r * row + c)
            turned = simd.swap_pairs(dout * simd.load(values, a.sines + table + c))
            passed = simd.fma(dout, simd.load(values, a.cosines + table + c), turned)
            add_to(grads, g.dx + r * row + c, passed, g.overwrite_dx)


ROTARY = ArrayOp("rotary", Args, forward, backward, row_by_row=True)
