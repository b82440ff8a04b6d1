"""Scalar operations with any number of operands, in no order: sum, max and softmax."""

import math
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.op import Block, Column, ListOp, readers
from tapegpt.kernels.simd.math import NEAR, exp_any, exp_near

# Softmax works on so many nodes at a time, and wants its list to be a multiple as long.
SOFTMAX_LANES = 4

# A sum of so many terms loses nothing to speak of in its own type.
FEW_TERMS = 8


class Args(NamedTuple):
    length: Column
    nodes: Block  # of softmax the last again and again, up to a multiple of SOFTMAX_LANES


args, _ = readers(Args)


# out = a_0 + a_1 + ...
@jit
def sum_forward(values, operands, inputs, out, at):
    count, nodes = args(operands, at)
    if count <= FEW_TERMS:
        total = values.dtype.type(0)
        for i in range(nodes, nodes + count):
            total += values[operands[i]]
        values[out] = total
    else:
        whole = 0.0  # float64: millions of terms in float32 would lose half of their digits
        for i in range(nodes, nodes + count):
            whole += values[operands[i]]
        values[out] = whole


@jit
def sum_backward(values, grads, operands, inputs, out, dout, at):
    count, nodes = args(operands, at)
    if repeats(operands, nodes, count):
        repeated_sum_backward(grads, operands, dout, nodes, nodes + count)
    else:
        for i in range(nodes, nodes + count):
            grads[operands[i]] += dout


@inlined
def repeats(operands, nodes, count):
    """Whether a list looks like a node many times over.

    Its gradient is then added up before it is added: bit by bit millions would lose digits.
    """
    return count > FEW_TERMS and operands[nodes] == operands[nodes + 1]


@jit
def repeated_sum_backward(grads, operands, dout, i, end):
    """As sum_backward; a node that stands there many times in a row gets its gradient at once."""
    while i < end:
        begin, a = i, operands[i]
        while i < end and operands[i] == a:
            i += 1
        grads[a] += dout * (i - begin)


# out_i = e ** a_i / (e ** a_0 + e ** a_1 + ...)
@inlined
def softmax_forward(values, operands, inputs, out, at):
    count, nodes = args(operands, at)
    x = simd.load_listed(values, operands, nodes, SOFTMAX_LANES)
    # Few numbers, and near ones: their exponentials stay in a register.
    if count <= SOFTMAX_LANES and simd.within(x, values.dtype.type(NEAR)):
        e = exp_near(x)
        if count < SOFTMAX_LANES:
            e = simd.keep_first(e, count, 0)
        simd.store_part(values, out, e / simd.totals(e), count)
    else:
        long_softmax_forward(values, operands, out, at)


@jit
def long_softmax_forward(values, operands, out, at):
    count, nodes = args(operands, at)
    largest = values[largest_of(values, operands, at)]
    total = simd.keep_first(simd.load_listed(values, operands, nodes, SOFTMAX_LANES), 0, 0)
    for i in range(0, count, SOFTMAX_LANES):
        x = simd.load_listed(values, operands, nodes + i, SOFTMAX_LANES)
        e = simd.keep_first(exp_any(x - largest), count - i, 0)
        total = total + e
        simd.store_part(values, out + i, e, count - i)
    total = simd.totals(total)
    for i in range(0, count, SOFTMAX_LANES):
        e = simd.load_lanes(values, out + i, SOFTMAX_LANES)
        simd.store_part(values, out + i, e / total, count - i)


@inlined
def softmax_backward(values, grads, operands, inputs, out, dout, at):
    count, nodes = args(operands, at)
    if count <= SOFTMAX_LANES:
        dy = simd.load_lanes(grads, out, SOFTMAX_LANES)
        y = simd.load_lanes(values, out, SOFTMAX_LANES)
        if count < SOFTMAX_LANES:
            dy, y = simd.keep_first(dy, count, 0), simd.keep_first(y, count, 0)
        if not simd.within(dy, simd.smallest(grads)):
            simd.add_listed(grads, operands, nodes, y * (dy - simd.totals(y * dy)))
    else:
        long_softmax_backward(values, grads, operands, out, at)


@jit
def long_softmax_backward(values, grads, operands, out, at):
    count, nodes = args(operands, at)
    mean = simd.keep_first(simd.load_lanes(grads, out, SOFTMAX_LANES), 0, 0)
    nothing = True
    for i in range(0, count, SOFTMAX_LANES):
        dout = simd.keep_first(simd.load_lanes(grads, out + i, SOFTMAX_LANES), count - i, 0)
        nothing = nothing and simd.within(dout, simd.smallest(grads))
        mean = mean + dout * simd.load_lanes(values, out + i, SOFTMAX_LANES)
    if nothing:
        return
    mean = simd.totals(mean)
    for i in range(0, count, SOFTMAX_LANES):
        dout = simd.load_lanes(grads, out + i, SOFTMAX_LANES)
        da = simd.load_lanes(values, out + i, SOFTMAX_LANES) * (dout - mean)
        simd.add_listed(grads, operands, nodes + i, simd.keep_first(da, count - i, 0))


# out = the largest of a_0, a_1, ... (the first of equals), or the first NaN
@jit
def largest_of(values, operands, at):
    count, nodes = args(operands, at)
    best = operands[nodes]
    for i in range(nodes, nodes + count):
        if math.isnan(values[operands[i]]):
            return operands[i]
        if values[operands[i]] > values[best]:
            best = operands[i]
    return best


@jit
def max_forward(values, operands, inputs, out, at, batch_range):
    values[out] = values[largest_of(values, operands, at)]


@jit
def max_backward(values, grads, operands, inputs, out, at, back, batch_range):
    if grads[out] != 0:
        grads[largest_of(values, operands, at)] += grads[out]


SUM = ListOp("sum", Args, sum_forward, sum_backward)
SOFTMAX = ListOp("softmax", Args, softmax_forward, softmax_backward, several=True)
MAX = ListOp("max", Args, max_forward, max_backward, by_address=True)
