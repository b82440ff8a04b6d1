"""Operations on arrays, element by element: x, y and out are (R, C); padding stays zero."""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, ScalarNode, Size, readers
from tapegpt.kernels.simd import FEW


@inlined
def add_to(grads, at, value, overwrite):
    """grads[at : at + lanes] += value, or = value where nothing has been written yet."""
    simd.store(grads, at, value if overwrite else simd.load(grads, at) + value)


@inlined
def pass_gradient(grads, dx, dout, count, overwrite):
    """grads[dx : dx + count] += grads[dout : dout + count], where they are not the same."""
    if dx == dout:
        return
    for i in range(0, count, simd.lanes(grads)):
        add_to(grads, dx + i, simd.load(grads, dout + i), overwrite)


@inlined
def element_range(values, rows, width, batch_range):
    """First element and the one after the last of an elementwise operation's arrays."""
    first, last = row_range(rows, batch_range)
    row = row_stride(values, width)
    return first * row, last * row


@jit
def array_sum(values, begin, end):
    """The sum of values[begin : end], whole vectors, in float64."""
    whole = 0.0
    for first in range(begin, end, FEW * simd.lanes(values)):
        total = simd.splat(values, 0)
        for i in range(first, min(first + FEW * simd.lanes(values), end), simd.lanes(values)):
            total = total + simd.load(values, i)
        whole += simd.sum_lanes(total)
    return whole


@jit
def array_product(x, first, y, other, count):
    """The dot product of x[first : first + count] and y[other : other + count], in float64."""
    whole = 0.0
    for begin in range(0, count, FEW * simd.lanes(x)):
        total = simd.splat(x, 0)
        for i in range(begin, min(begin + FEW * simd.lanes(x), count), simd.lanes(x)):
            total = simd.fma(simd.load(x, first + i), simd.load(y, other + i), total)
        whole += simd.sum_lanes(total)
    return whole


class UnaryArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable


class AddArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    y: Differentiable


class ScaleArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    factor: ScalarNode


unary_args, unary_grads = readers(UnaryArgs)
add_args, add_grads = readers(AddArgs)
scale_args, scale_grads = readers(ScaleArgs)


# out = max(0, x)
@jit
def array_relu_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        simd.store(values, out + i, simd.relu(simd.load(values, x + i)))


@jit
def array_relu_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, x = unary_args(operands, at)
    g = unary_grads(operands, back)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        passed = simd.where_positive(simd.load(values, x + i), simd.load(grads, g.dout + i))
        add_to(grads, g.dx + i, passed, g.overwrite_dx)


# out = x + y
@jit
def array_add_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, y = add_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        simd.store(values, out + i, simd.load(values, x + i) + simd.load(values, y + i))


@jit
def array_add_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = add_args(operands, at), add_grads(operands, back)
    begin, end = element_range(values, a.rows, a.width, batch_range)
    pass_gradient(grads, g.dx + begin, g.dout + begin, end - begin, g.overwrite_dx)
    pass_gradient(grads, g.dy + begin, g.dout + begin, end - begin, g.overwrite_dy)


# out = factor x, for a factor whose gradient is not taken
@jit
def array_scale_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, factor = scale_args(operands, at)
    begin, end = element_range(values, rows, width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        simd.store(values, out + i, simd.load(values, x + i) * values[factor])


@jit
def array_scale_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = scale_args(operands, at), scale_grads(operands, back)
    begin, end = element_range(values, a.rows, a.width, batch_range)
    for i in range(begin, end, simd.lanes(values)):
        add_to(grads, g.dx + i, simd.load(grads, g.dout + i) * values[a.factor], g.overwrite_dx)


# out = the mean of all elements, a scalar
@jit
def array_mean_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    first, last = row_range(rows, batch_range)
    begin, end = element_range(values, rows, width, batch_range)
    values[out] = array_sum(values, x + begin, x + end) / ((last - first) * width)


@jit
def array_mean_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _ = unary_args(operands, at)
    g = unary_grads(operands, back)
    first, last = row_range(rows, batch_range)
    share = grads[out] / grads.dtype.type((last - first) * width)
    row = row_stride(values, width)
    for r in range(first, last):
        for i in range(g.dx + r * row, g.dx + r * row + width):
            grads[i] = share if g.overwrite_dx else grads[i] + share


RELU = ArrayOp(
    "array_relu",
    UnaryArgs,
    array_relu_forward,
    array_relu_backward,
    backward_reads=("x",),
    row_by_row=True,
)
ADD = ArrayOp(
    "array_add", AddArgs, array_add_forward, array_add_backward, adds_to="x", row_by_row=True
)
SCALE = ArrayOp(
    "array_scale", ScaleArgs, array_scale_forward, array_scale_backward, row_by_row=True
)
MEAN = ArrayOp("array_mean", UnaryArgs, array_mean_forward, array_mean_backward)
