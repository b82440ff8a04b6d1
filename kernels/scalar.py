"""Scalar operations: one node out of one or two.

Each is inlined into the sweeps by Numba: as calls they would cost more time to compile than all
the rest of the machine.
"""

import math

from tapegpt.kernels.dispatch import read_record
from tapegpt.kernels.jit import inlined
from tapegpt.kernels.records import ADD, MUL


@inlined
def add_product(grads, a, slope, gradient):
    """grads[a] += slope * gradient, where 0 times infinity is 0.

    What the root does not depend on has gradient 0 and passes nothing on, however steep it is.
    """
    if gradient != 0:
        grads[a] += slope * gradient


# out = a + b, for record i and those next to it that are sums too. Sums and products are most of
# a scalar program, in long runs: staying with them takes half the time per record.
@inlined
def add_forward(values, records, i, end):
    while i < end:
        code, out, a, b = read_record(records, i)
        if code != ADD:
            break
        values[out] = values[a] + values[b]
        i += 1
    return i


@inlined
def add_backward(values, grads, records, i, begin):
    while i >= begin:
        code, out, a, b = read_record(records, i)
        if code != ADD:
            break
        grads[a] += grads[out]
        grads[b] += grads[out]
        i -= 1
    return i


# out = a b, likewise
@inlined
def mul_forward(values, records, i, end):
    while i < end:
        code, out, a, b = read_record(records, i)
        if code != MUL:
            break
        values[out] = values[a] * values[b]
        i += 1
    return i


@inlined
def mul_backward(values, grads, records, i, begin):
    while i >= begin:
        code, out, a, b = read_record(records, i)
        if code != MUL:
            break
        gradient = grads[out]
        add_product(grads, a, values[b], gradient)
        add_product(grads, b, values[a], gradient)
        i -= 1
    return i


# out = a - b
@inlined
def sub_forward(values, out, a, b):
    values[out] = values[a] - values[b]


@inlined
def sub_backward(values, grads, out, a, b):
    grads[a] += grads[out]
    grads[b] -= grads[out]


# out = a / b
@inlined
def div_forward(values, out, a, b):
    values[out] = values[a] / values[b]


@inlined
def div_backward(values, grads, out, a, b):
    inverse = values.dtype.type(1) / values[b]
    add_product(grads, a, inverse, grads[out])
    add_product(grads, b, -values[out] * inverse, grads[out])


# out = -a
@inlined
def neg_forward(values, out, a):
    values[out] = -values[a]


@inlined
def neg_backward(grads, out, a):
    grads[a] -= grads[out]


# out = c a, where no gradient is wanted for c
@inlined
def scale_forward(values, out, a, c):
    values[out] = values[a] * values[c]


@inlined
def scale_backward(values, grads, out, a, c):
    add_product(grads, a, values[c], grads[out])


# out = a ** c, where no gradient is wanted for c
@inlined
def pow_forward(values, out, a, c):
    values[out] = values[a] ** values[c]


@inlined
def pow_backward(values, grads, out, a, c):
    # A constant has no slope, where the formula could be 0 times infinity.
    if values[c] != 0:
        slope = values[c] * values[a] ** (values[c] - values.dtype.type(1))
        add_product(grads, a, slope, grads[out])


# out = e ** a
@inlined
def exp_forward(values, out, a):
    values[out] = math.exp(values[a])


@inlined
def exp_backward(values, grads, out, a):
    add_product(grads, a, values[out], grads[out])


# out = ln a
@inlined
def log_forward(values, out, a):
    values[out] = math.log(values[a])


@inlined
def log_backward(values, grads, out, a):
    add_product(grads, a, values.dtype.type(1) / values[a], grads[out])


# out = max(0, a)
@inlined
def relu_forward(values, out, a):
    values[out] = values.dtype.type(0) if values[a] < 0 else values[a]


@inlined
def relu_backward(values, grads, out, a):
    if values[a] > 0:
        grads[a] += grads[out]


# out = tanh a
@inlined
def tanh_forward(values, out, a):
    values[out] = math.tanh(values[a])


@inlined
def tanh_backward(values, grads, out, a):
    add_product(grads, a, values.dtype.type(1) - values[out] * values[out], grads[out])


# out = ln(1 + e ** a), as max(a, 0) + ln(1 + e ** -|a|), which never overflows
@inlined
def softplus_forward(values, out, a):
    x = values[a]
    values[out] = (x if x > 0 else values.dtype.type(0)) + math.log1p(math.exp(-abs(x)))


@inlined
def softplus_backward(values, grads, out, a):
    # 1 / (1 + e ** -a), written with the value at hand.
    add_product(grads, a, math.exp(values[a] - values[out]), grads[out])


# out = a, through which no gradient passes
@inlined
def detach_forward(values, out, a):
    values[out] = values[a]


# out = the element inputs[slot] rows of `stride` elements beyond the node `base`
@inlined
def lookup_forward(values, operands, inputs, out, at):
    base, slot, stride = operands[at], operands[at + 1], operands[at + 2]
    values[out] = values[base + inputs[slot] * stride]


@inlined
def lookup_backward(grads, operands, inputs, out, at):
    base, slot, stride = operands[at], operands[at + 1], operands[at + 2]
    grads[base + inputs[slot] * stride] += grads[out]
