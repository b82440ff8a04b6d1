"""out = start + x W^T: every row of x through one matrix of weights.

W is (n_out, n_in), a row of weights per output, as in microgpt and PyTorch.
"""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.ops.elementwise import pass_gradient
from tapegpt.kernels.ops.product.matmul import IDENTITY, RELU

ADJACENT = 1


def make_linear(multiply):
    """The two kernels, for one way to multiply matrices."""

    # out = activation(start + x W^T)
    # operands: rows, n_in, n_out, x, W, start or NONE, room for a panel, activation, that of x
    # differentiable: x, start (and W, which always accumulates)
    # An activation's gradient is the business of the record that uses its result, see passes.py.
    @jit
    def linear_forward(values, operands, inputs, out, at, window):
        n_in, n_out, x, start = (
            operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 5],
        )  # fmt: skip
        x_row, out_row = row_stride(values, n_in), row_stride(values, n_out)
        first, last = row_range(operands[at], window)
        multiply(
            values, x + first * x_row, x_row, ADJACENT,
            values, operands[at + 4], x_row, True, operands[at + 6],
            values, out + first * out_row, out_row,
            start if start == NONE else start + first * out_row,
            last - first, n_in, n_out, operands[at + 7],
        )  # fmt: skip

    @jit
    def linear_backward(values, grads, operands, inputs, out, at, back, window):
        n_in, n_out, w = operands[at + 1], operands[at + 2], operands[at + 4]
        x_row, out_row = row_stride(values, n_in), row_stride(values, n_out)
        first, last = row_range(operands[at], window)
        x = operands[at + 3] + first * x_row
        fresh, dstart = operands[back], operands[back + 3]
        dout = operands[back + 1] + first * out_row
        dx = operands[back + 2] + first * x_row
        # dx += dout W, where x, if it is the result of a ReLU, is positive
        mask = x if operands[at + 8] == RELU else IDENTITY
        multiply(
            grads, dout, out_row, ADJACENT,
            values, w, x_row, False, operands[at + 6],
            grads, dx, x_row, NONE if fresh & 1 else dx,
            last - first, n_out, n_in, mask,
        )  # fmt: skip
        # dW += dout^T x
        multiply(
            grads, dout, ADJACENT, out_row,
            values, x, x_row, False, operands[at + 6],
            grads, w, x_row, w,
            n_out, last - first, n_in, IDENTITY,
        )  # fmt: skip
        if dstart != NONE:
            count = (last - first) * out_row
            pass_gradient(grads, dstart + first * out_row, dout, count, fresh & 2)

    return linear_forward, linear_backward
