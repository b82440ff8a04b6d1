"""Scalar operations with any number of operands: one node out of many."""

from tapegpt.kernels.jit import jit
from tapegpt.kernels.scalar import add_product
from tapegpt.kernels.simd import fma, lanes, load, splat, store, sum_lanes


# out = a_0 + a_1 + ... ; operands: count, a_0, a_1, ...
@jit
def sum_forward(values, operands, out, at):
    total = values.dtype.type(0)
    for i in range(at + 1, at + 1 + operands[at]):
        total += values[operands[i]]
    values[out] = total


@jit
def sum_backward(grads, operands, out, at):
    for i in range(at + 1, at + 1 + operands[at]):
        grads[operands[i]] += grads[out]


# out = a_0 b_0 + a_1 b_1 + ... ; operands: count, a_0, a_1, ..., b_0, b_1, ...
@jit
def dot_forward(values, operands, out, at):
    count = operands[at]
    total = values.dtype.type(0)
    for i in range(at + 1, at + 1 + count):
        total += values[operands[i]] * values[operands[i + count]]
    values[out] = total


@jit
def dot_backward(values, grads, operands, out, at):
    count = operands[at]
    gradient = grads[out]
    for i in range(at + 1, at + 1 + count):
        a, b = operands[i], operands[i + count]
        add_product(grads, a, values[b], gradient)
        add_product(grads, b, values[a], gradient)


# The same for two runs of consecutive nodes; operands: count, first a, first b
@jit
def dot_run_forward(values, operands, out, at):
    count, a, b = operands[at], operands[at + 1], operands[at + 2]
    width = lanes(values)
    whole = count - count % width
    sums = splat(values, 0)
    for i in range(0, whole, width):
        sums = fma(load(values, a + i), load(values, b + i), sums)
    total = sum_lanes(sums)
    for i in range(whole, count):
        total += values[a + i] * values[b + i]
    values[out] = total


@jit
def dot_run_backward(values, grads, operands, out, at):
    if grads[out] == 0:  # see add_product
        return
    count, a, b = operands[at], operands[at + 1], operands[at + 2]
    width = lanes(values)
    whole = count - count % width
    dout = splat(values, grads[out])
    for i in range(0, whole, width):
        store(grads, a + i, fma(load(values, b + i), dout, load(grads, a + i)))
        store(grads, b + i, fma(load(values, a + i), dout, load(grads, b + i)))
    for i in range(whole, count):
        grads[a + i] += values[b + i] * grads[out]
        grads[b + i] += values[a + i] * grads[out]


# out = the largest of a_0, a_1, ... (the first of equals); operands: count, a_0, a_1, ...
@jit
def largest(values, operands, at):
    best = operands[at + 1]
    for i in range(at + 2, at + 1 + operands[at]):
        if values[operands[i]] > values[best]:
            best = operands[i]
    return best


@jit
def max_forward(values, operands, inputs, out, at, window):
    values[out] = values[largest(values, operands, at)]


@jit
def max_backward(values, grads, operands, inputs, out, at, fresh, window):
    grads[largest(values, operands, at)] += grads[out]
