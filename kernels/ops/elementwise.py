"""Operations on arrays, element by element; padding stays zero."""

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.simd import (
    FEW,
    fma,
    lanes,
    load,
    relu,
    splat,
    store,
    sum_lanes,
    where_positive,
)


@inlined
def add_to(grads, at, value, fresh):
    """grads[at : at + lanes] += value, or = value where nothing has been written yet."""
    store(grads, at, value if fresh else load(grads, at) + value)


@inlined
def pass_gradient(grads, dx, dout, count, fresh):
    """grads[dx : dx + count] += grads[dout : dout + count], where they are not the same."""
    if dx == dout:
        return
    for i in range(0, count, lanes(grads)):
        add_to(grads, dx + i, load(grads, dout + i), fresh)


@inlined
def element_range(values, operands, at, window):
    """First element and the one after the last of an elementwise operation's arrays."""
    first, last = row_range(operands[at], window)
    width = row_stride(values, operands[at + 1])
    return first * width, last * width


@jit
def array_sum(values, begin, end):
    """The sum of values[begin : end], whole vectors, in float64."""
    whole = 0.0
    for first in range(begin, end, FEW * lanes(values)):
        total = splat(values, 0)
        for i in range(first, min(first + FEW * lanes(values), end), lanes(values)):
            total = total + load(values, i)
        whole += sum_lanes(total)
    return whole


@jit
def array_product(x, first, y, other, count):
    """The dot product of x[first : first + count] and y[other : other + count], in float64."""
    whole = 0.0
    for begin in range(0, count, FEW * lanes(x)):
        total = splat(x, 0)
        for i in range(begin, min(begin + FEW * lanes(x), count), lanes(x)):
            total = fma(load(x, first + i), load(y, other + i), total)
        whole += sum_lanes(total)
    return whole


# out = max(0, x); operands: rows, width, x
@jit
def array_relu_forward(values, operands, inputs, out, at, window):
    x = operands[at + 2]
    begin, end = element_range(values, operands, at, window)
    for i in range(begin, end, lanes(values)):
        store(values, out + i, relu(load(values, x + i)))


@jit
def array_relu_backward(values, grads, operands, inputs, out, at, back, window):
    x = operands[at + 2]
    fresh, dout, dx = operands[back], operands[back + 1], operands[back + 2]
    begin, end = element_range(values, operands, at, window)
    for i in range(begin, end, lanes(values)):
        passed = where_positive(load(values, x + i), load(grads, dout + i))
        add_to(grads, dx + i, passed, fresh & 1)


# out = x + y; operands: rows, width, x, y
@jit
def array_add_forward(values, operands, inputs, out, at, window):
    x, y = operands[at + 2], operands[at + 3]
    begin, end = element_range(values, operands, at, window)
    for i in range(begin, end, lanes(values)):
        store(values, out + i, load(values, x + i) + load(values, y + i))


@jit
def array_add_backward(values, grads, operands, inputs, out, at, back, window):
    fresh, dout, dx, dy = (
        operands[back], operands[back + 1], operands[back + 2], operands[back + 3],
    )  # fmt: skip
    begin, end = element_range(values, operands, at, window)
    pass_gradient(grads, dx + begin, dout + begin, end - begin, fresh & 1)
    pass_gradient(grads, dy + begin, dout + begin, end - begin, fresh & 2)


# out = c x for a scalar node c, whose gradient is not taken; operands: rows, width, x, c
@jit
def array_scale_forward(values, operands, inputs, out, at, window):
    x, c = operands[at + 2], operands[at + 3]
    begin, end = element_range(values, operands, at, window)
    for i in range(begin, end, lanes(values)):
        store(values, out + i, load(values, x + i) * values[c])


@jit
def array_scale_backward(values, grads, operands, inputs, out, at, back, window):
    c = operands[at + 3]
    fresh, dout, dx = operands[back], operands[back + 1], operands[back + 2]
    begin, end = element_range(values, operands, at, window)
    for i in range(begin, end, lanes(values)):
        add_to(grads, dx + i, load(grads, dout + i) * values[c], fresh & 1)


# out = the mean of all elements, a scalar; operands: rows, width, x
@jit
def array_mean_forward(values, operands, inputs, out, at, window):
    x = operands[at + 2]
    first, last = row_range(operands[at], window)
    begin, end = element_range(values, operands, at, window)
    values[out] = array_sum(values, x + begin, x + end) / ((last - first) * operands[at + 1])


@jit
def array_mean_backward(values, grads, operands, inputs, out, at, back, window):
    width = operands[at + 1]
    fresh, dx = operands[back], operands[back + 2]
    first, last = row_range(operands[at], window)
    share = grads[out] / grads.dtype.type((last - first) * width)
    row = row_stride(values, width)
    for r in range(first, last):
        for i in range(dx + r * row, dx + r * row + width):
            grads[i] = share if fresh & 1 else grads[i] + share
