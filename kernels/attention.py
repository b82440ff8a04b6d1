"""Causal self-attention over a packed batch.

For every document, position p and head, over the same document's positions s <= p:

    weight_s = softmax_s(q_p . k_s / sqrt(head_dim)),  out_p = sum_s weight_s v_s

Rows are position-major: the rows of position p lie from inputs[starts + p] up to
inputs[starts + p + 1], documents in one order, so document i's row at an earlier position s is
inputs[starts + s] + i. The keys and values of earlier positions are read where they already lie
on the tape: the tape is the KV cache.

Heads never leave their lanes. A head as wide as its lane group (a power of two up to the vector,
or whole vectors) is summed by butterfly within the group, so that scores and weights come out
replicated in every lane of their head, and the weighted sum needs no shuffle. For heads of any
other width the tape records copies into such groups before, and back after (regroup.py).
"""

import math

import numpy as np

from tapegpt.kernels.elementwise import add_to
from tapegpt.kernels.jit import inlined, jit
from tapegpt.kernels.records import BATCH
from tapegpt.kernels.simd import (
    fma,
    lanes,
    load,
    maximum,
    padded,
    splat,
    store,
    sum_within_groups,
)
from tapegpt.kernels.vmath import exp


@inlined
def score(a, a0, b, b0, unit, group):
    """a . b of the heads in one unit, replicated in the lanes of each."""
    products = load(a, a0) * load(b, b0)
    for c in range(lanes(a), unit, lanes(a)):
        products = fma(load(a, a0 + c), load(b, b0 + c), products)
    return sum_within_groups(products, group)


@inlined
def geometry(values, operands, at, window):
    """Elements in a row, in a unit (a head, or the heads that share a vector), the scale of the
    scores, the first position and the one after the last.
    """
    n_head, head_dim, group = operands[at + 1], operands[at + 2], operands[at + 3]
    row, unit = padded(values, n_head * group), max(group, lanes(values))
    scale = values.dtype.type(1 / math.sqrt(head_dim))
    if operands[at] == BATCH:
        return row, unit, scale, window[0], window[1]
    return row, unit, scale, np.int64(0), operands[at + 9]


# operands: rows, n_head, head_dim, group (lanes a head takes), q, k, v, weights (block rows for
# every row, kept for backward), slot of the starts, block
@jit
def attention_forward(values, operands, inputs, out, at, window):
    row, unit, scale, first, last = geometry(values, operands, at, window)
    group, q, k, v = operands[at + 3], operands[at + 4], operands[at + 5], operands[at + 6]
    weights, starts, block = operands[at + 7], operands[at + 8], operands[at + 9]
    for p in range(first, last):
        begin, count = inputs[starts + p], inputs[starts + p + 1] - inputs[starts + p]
        for i in range(count):
            r = begin + i
            saved = weights + r * block * row
            for j in range(0, row, unit):
                largest = splat(values, -math.inf)
                for s in range(p + 1):
                    key = k + (inputs[starts + s] + i) * row + j
                    x = score(values, q + r * row + j, values, key, unit, group) * scale
                    store(values, saved + s * row + j, x)
                    largest = maximum(largest, x)
                total = splat(values, 0)
                for s in range(p + 1):
                    e = exp(load(values, saved + s * row + j) - largest)
                    store(values, saved + s * row + j, e)
                    total = total + e
                inverse = 1.0 / total
                for s in range(p + 1):
                    e = load(values, saved + s * row + j)
                    store(values, saved + s * row + j, e * inverse)
                for c in range(j, j + unit, lanes(values)):
                    result = splat(values, 0)
                    for s in range(p + 1):
                        value = load(values, v + (inputs[starts + s] + i) * row + c)
                        result = fma(load(values, saved + s * row + j), value, result)
                    store(values, out + r * row + c, result)


# With w the weights: dv_s += w_s dout; ds_s = w_s (dout . v_s - dout . out) / sqrt(head_dim);
# dq += ds_s k_s; dk_s += ds_s q.
@jit
def attention_backward(values, grads, operands, inputs, out, at, fresh, window):
    row, unit, scale, first, last = geometry(values, operands, at, window)
    group, q, k, v = operands[at + 3], operands[at + 4], operands[at + 5], operands[at + 6]
    weights, starts, block = operands[at + 7], operands[at + 8], operands[at + 9]
    for p in range(first, last):
        begin, count = inputs[starts + p], inputs[starts + p + 1] - inputs[starts + p]
        for i in range(count):
            r = begin + i
            saved = weights + r * block * row
            for j in range(0, row, unit):
                dout = out + r * row + j
                mean = score(grads, dout, values, dout, unit, group)
                for s in range(p + 1):
                    earlier = (inputs[starts + s] + i) * row + j
                    # A key's row first gets a gradient from its own query.
                    new = s == p
                    weight = load(values, saved + s * row + j)
                    dweight = score(grads, dout, values, v + earlier, unit, group)
                    dscore = weight * (dweight - mean) * scale
                    for c in range(0, unit, lanes(values)):
                        query = load(values, q + r * row + j + c)
                        add_to(grads, k + earlier + c, dscore * query, new and fresh & 2)
                        dv = weight * load(grads, dout + c)
                        add_to(grads, v + earlier + c, dv, new and fresh & 4)
                        dq = dscore * load(values, k + earlier + c)
                        add_to(grads, q + r * row + j + c, dq, s == 0 and fresh & 1)
