"""out = activation(start + x W^T): every row of x through one matrix of weights.

x: (R, n_in); W: (n_out, n_in), a row of weights per output, as in microgpt and PyTorch;
start, out: (R, n_out).

dx = dout W, where x, if it is the result of a ReLU, is positive, or none; dW = dout^T x;
dstart = dout

An activation's gradient is the business of the record that uses its result, see graph/fusion.py.
"""

from typing import NamedTuple

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Parameter, Rows, SharedRoom, Size, readers
from tapegpt.kernels.ops.elementwise import pass_gradient
from tapegpt.kernels.ops.product.amx import large_matmul
from tapegpt.kernels.ops.product.matmul import matmul
from tapegpt.kernels.ops.product.matrix import IDENTITY, RELU, Left, Result, Right, Shape, moved
from tapegpt.kernels.ops.product.packed import pack_weights, packed_product

ADJACENT = 1

PACKED = 2  # the variant for a few rows


class Args(NamedTuple):
    rows: Rows
    n_in: Size
    n_out: Size
    x: Differentiable
    w: Parameter
    start: Differentiable
    room: SharedRoom  # for a panel
    activation: Size = IDENTITY  # IDENTITY or RELU
    activation_of_x: Size = IDENTITY
    packed: Size = NONE  # where there is room for packed weights, see graph/packing.py


args, grads_of = readers(Args)


def make_linear(multiply):
    """The two kernels, for one way to multiply matrices."""

    @jit
    def linear_forward(values, operands, inputs, out, at, batch_range):
        a = args(operands, at)
        x_row, out_row = row_stride(values, a.n_in), row_stride(values, a.n_out)
        first, last = row_range(a.rows, batch_range)
        begin = first * out_row
        multiply(
            Left(values, a.x + first * x_row, x_row, ADJACENT),
            Right(values, a.w, x_row, True),
            Result(values, out + begin, out_row, moved(a.start, begin), a.activation),
            Shape(last - first, a.n_in, a.n_out),
            a.room,
        )

    @jit
    def linear_backward(values, grads, operands, inputs, out, at, back, batch_range):
        a, g = args(operands, at), grads_of(operands, back)
        x_row, out_row = row_stride(values, a.n_in), row_stride(values, a.n_out)
        first, last = row_range(a.rows, batch_range)
        x, dx, dout = a.x + first * x_row, g.dx + first * x_row, g.dout + first * out_row
        mask = x if a.activation_of_x == RELU else IDENTITY
        if g.dx != NONE:
            multiply(
                Left(grads, dout, out_row, ADJACENT),
                Right(values, a.w, x_row, False),
                Result(grads, dx, x_row, NONE if g.overwrite_dx else dx, mask),
                Shape(last - first, a.n_out, a.n_in),
                a.room,
            )
        multiply(
            Left(grads, dout, ADJACENT, out_row),
            Right(values, x, x_row, False),
            Result(grads, a.w, x_row, NONE if g.overwrite_dw else a.w, IDENTITY),
            Shape(a.n_out, last - first, a.n_in),
            a.room,
        )
        if g.dstart != NONE:
            count = (last - first) * out_row
            pass_gradient(grads, g.dstart + first * out_row, dout, count, g.overwrite_dstart)

    return linear_forward, linear_backward


forward, backward = make_linear(matmul)


@jit
def packed_forward(values, operands, inputs, out, at, batch_range):
    """The same for a few rows, with weights that pack_linear has packed."""
    a = args(operands, at)
    x_row, out_row = row_stride(values, a.n_in), row_stride(values, a.n_out)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        x, y, start = a.x + r * x_row, out + r * out_row, moved(a.start, r * out_row)
        packed_product(values, x, a.n_in, a.packed, a.n_out, y, start, a.activation)


@jit
def pack_linear(values, operands, at):
    """Pack the weights as they are now."""
    a = args(operands, at)
    pack_weights(values, a.w, a.n_in, a.n_out, a.packed)


LINEAR = ArrayOp(
    "linear",
    Args,
    forward,
    backward,
    # The first is for products that are large enough for AMX.
    variants=(make_linear(large_matmul), (packed_forward, backward)),
    backward_reads=("x",),
    adds_to="start",
    optional=("x", "start"),
    overwrites=("w",),
    row_by_row=True,
)
