"""Scalar operations: one node out of one or two.

Each is inlined into the sweeps by Numba: as calls they would cost more time to compile than all
the rest of the machine.
"""

import math

from tapegpt.kernels.compile.indirect_call import read_record
from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.op import ADD, MUL
from tapegpt.kernels.simd import first_lane, one_lane
from tapegpt.kernels.simd.math import NEAR, exp_near, softplus_near


@inlined
def vanishes(dout):
    """Whether a gradient is 0. The reverse sweep asks, so that operations with one result never
    see one.

    What the root does not depend on has gradient 0 and passes nothing on, however steep it is: 0
    times infinity is 0 here. A subnormal gradient is passed on: a steep slope may make it normal.
    """
    return dout == 0


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
        dout = grads[out]
        if not vanishes(dout):
            grads[a] += values[b] * dout
            grads[b] += values[a] * dout
        i -= 1
    return i


# out = a - b
@inlined
def sub_forward(values, out, a, b):
    values[out] = values[a] - values[b]


@inlined
def sub_backward(grads, dout, a, b):
    grads[a] += dout
    grads[b] -= dout


# out = a / b
@inlined
def div_forward(values, out, a, b):
    values[out] = values[a] / values[b]


@inlined
def div_backward(values, grads, out, dout, a, b):
    da = dout / values[b]
    grads[a] += da
    grads[b] -= values[out] * da


# out = -a
@inlined
def neg_forward(values, out, a):
    values[out] = -values[a]


@inlined
def neg_backward(grads, dout, a):
    grads[a] -= dout


# out = c a, where no gradient is wanted for c
@inlined
def scale_forward(values, out, a, c):
    values[out] = values[a] * values[c]


@inlined
def scale_backward(values, grads, dout, a, c):
    grads[a] += values[c] * dout


# out = a ** c, where no gradient is wanted for c
@inlined
def pow_forward(values, out, a, c):
    values[out] = values[a] ** values[c]


@inlined
def pow_backward(values, grads, dout, a, c):
    # A constant has no slope, where the formula could be 0 times infinity.
    if values[c] != 0:
        grads[a] += values[c] * values[a] ** (values[c] - values.dtype.type(1)) * dout


# out = e ** a
@inlined
def exp_forward(values, out, a):
    values[out] = math.exp(values[a])


@inlined
def exp_backward(values, grads, out, dout, a):
    grads[a] += values[out] * dout


# out = ln a
@inlined
def log_forward(values, out, a):
    values[out] = math.log(values[a])


@inlined
def log_backward(values, grads, dout, a):
    grads[a] += dout / values[a]


# out = max(0, a)
@inlined
def relu_forward(values, out, a):
    values[out] = values.dtype.type(0) if values[a] < 0 else values[a]


@inlined
def relu_backward(values, grads, dout, a):
    if values[a] > 0:
        grads[a] += dout


# out = tanh a
@inlined
def tanh_forward(values, out, a):
    values[out] = math.tanh(values[a])


@inlined
def tanh_backward(values, grads, out, dout, a):
    grads[a] += (values.dtype.type(1) - values[out] * values[out]) * dout


# out = ln(1 + e ** a)
@inlined
def softplus_forward(values, out, a):
    x = values[a]
    if abs(x) < NEAR:
        values[out] = first_lane(softplus_near(one_lane(values, x)))
    else:
        values[out] = (x if x > 0 else values.dtype.type(0)) + math.exp(-abs(x))


@inlined
def softplus_backward(values, grads, out, dout, a):
    # 1 / (1 + e ** -a), written with the value at hand.
    logarithm = values[a] - values[out]
    if abs(logarithm) < NEAR:
        slope = first_lane(exp_near(one_lane(values, logarithm)))
    else:  # infinity, or so negative that ln(1 + e ** a) is e ** a
        slope = values.dtype.type(1) if values[a] > 0 else values[out]
    grads[a] += slope * dout


# out = a, through which no gradient passes
@inlined
def detach_forward(values, out, a):
    values[out] = values[a]


# out = `count` nodes, inputs[slot] rows of `stride` nodes beyond the node `base`
@inlined
def lookup_forward(values, operands, inputs, out, at):
    count, base, slot, stride = operands[at], operands[at + 1], operands[at + 2], operands[at + 3]
    found = base + inputs[slot] * stride
    for i in range(count):
        values[out + i] = values[found + i]


@inlined
def lookup_backward(grads, operands, inputs, out, at):
    count, base, slot, stride = operands[at], operands[at + 1], operands[at + 2], operands[at + 3]
    found = base + inputs[slot] * stride
    for i in range(count):
        grads[found + i] += grads[out + i]
