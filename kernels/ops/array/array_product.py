"""out = x y, of matrices: x (R, n_in), y (n_in, n_out), out (R, n_out).

dx = dout y^T; dy = x^T dout. A `linear` has the rows of its weights as columns here.
"""

from typing import NamedTuple

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, SharedRoom, Size, readers
from tapegpt.kernels.ops.product.matmul import matmul
from tapegpt.kernels.ops.product.matrix import IDENTITY, Left, Result, Right, Shape

ADJACENT = 1


class Args(NamedTuple):
    rows: Rows
    n_in: Size
    n_out: Size
    x: Differentiable
    y: Differentiable
    room: SharedRoom  # for a panel


args, grads_of = readers(Args)


@jit
def matmul_forward(values, operands, inputs, out, at, batch_range):
    a = args(operands, at)
    x_row, out_row = row_stride(values, a.n_in), row_stride(values, a.n_out)
    first, last = row_range(a.rows, batch_range)
    matmul(
        Left(values, a.x + first * x_row, x_row, ADJACENT),
        Right(values, a.y, out_row, False),
        Result(values, out + first * out_row, out_row, NONE, IDENTITY),
        Shape(last - first, a.n_in, a.n_out),
        a.room,
    )


@jit
def matmul_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    x_row, out_row = row_stride(values, a.n_in), row_stride(values, a.n_out)
    first, last = row_range(a.rows, batch_range)
    x, dx, dout = a.x + first * x_row, g.dx + first * x_row, g.dout + first * out_row
    if g.dx != NONE:
        matmul(
            Left(grads, dout, out_row, ADJACENT),
            Right(values, a.y, out_row, True),
            Result(grads, dx, x_row, NONE if g.overwrite_dx else dx, IDENTITY),
            Shape(last - first, a.n_out, a.n_in),
            a.room,
        )
    if g.dy != NONE:
        matmul(
            Left(values, x, ADJACENT, x_row),
            Right(grads, dout, out_row, False),
            Result(grads, g.dy, out_row, NONE if g.overwrite_dy else g.dy, IDENTITY),
            Shape(a.n_in, last - first, a.n_out),
            a.room,
        )


MATMUL = ArrayOp(
    "matmul",
    Args,
    matmul_forward,
    matmul_backward,
    backward_reads=("x", "y"),
    optional=("x", "y"),
    row_by_row=True,
)
