"""Causal self-attention over a packed batch.

For every document, position p and head, over the same document's positions s <= p:

    weight_s = softmax_s(q_p . k_s / sqrt(head_dim)),  out_p = sum_s weight_s v_s

Rows are position-major: the rows of position p lie from inputs[starts + p] up to
inputs[starts + p + 1], documents in one order, so document i's row at an earlier position s is
inputs[starts + s] + i. The keys and values of earlier positions are read from where they already
lie: the tape is the KV cache.

Every head of every document is a problem of its own, and problems are the lanes. A vector holds
one column of q, k or v for as many problems, document after document, head after head:

    row of document 0:    h0c0 h0c1 | h1c0 h1c1        vector of column 0:  h0c0 h1c0 h0c0 h1c0
    row of document 1:    h0c0 h0c1 | h1c0 h1c1        vector of column 1:  h0c1 h1c1 h0c1 h1c1
                          (2 heads of 2 columns)                            document 0 document 1

Every step is then lane by lane, for heads of any width, without a sum across lanes. Lanes without
a problem compute something finite that is never stored, and pass no gradient.
"""

import math

from tapegpt.kernels.elementwise import add_to
from tapegpt.kernels.jit import inlined, jit
from tapegpt.kernels.records import BATCH
from tapegpt.kernels.simd import (
    fma,
    group_offsets,
    keep_first,
    lanes,
    load,
    maximum,
    row_offsets,
    row_stride,
    splat,
    store,
    tile_add,
    tile_load,
    tile_store,
    tile_store_first,
    tile_transpose,
    tile_zeros,
)
from tapegpt.kernels.vmath import exp


@inlined
def problem_offsets(values, first, limit, n_head, head_dim):
    """Where the columns of problems first, first + 1, ... begin, from a position's first row on.

    From `limit` on they repeat problem limit - 1.
    """
    row = row_stride(values, n_head * head_dim)
    if row == n_head * head_dim:
        return row_offsets(first, limit, head_dim, lanes(values))
    return group_offsets(first, limit, head_dim, n_head, row, lanes(values))


@inlined
def rows_to_lanes(source, x, offsets, head_dim, target, out):
    """Turn the columns of the problems at x + offsets into head_dim vectors from out on."""
    size = lanes(source)
    empty = tile_zeros(source, lanes(source), 1)
    for c in range(0, head_dim, size):
        tile = tile_transpose(tile_load(empty, source, x + c, offsets))
        vectors = row_offsets(0, head_dim - c, size, lanes(source))
        tile_store(target, out + c * size, vectors, tile, head_dim - c)


@inlined
def lanes_to_rows(source, x, head_dim, target, out, offsets, count, fresh):
    """Turn head_dim vectors from x on into the columns of `count` problems at out + offsets.

    Adds to them if they are not fresh.
    """
    size = lanes(source)
    empty = tile_zeros(source, lanes(source), 1)
    for c in range(0, head_dim, size):
        vectors = row_offsets(0, head_dim - c, size, lanes(source))
        tile = tile_transpose(tile_load(empty, source, x + c * size, vectors))
        if not fresh:
            tile = tile_add(tile, tile_load(tile, target, out + c, offsets))
        tile_store_first(target, out + c, offsets, tile, count, head_dim - c)


@inlined
def dot_lanes(a, a0, b, b0, count):
    """The sum of a[i] * b[i] over `count` vectors from a0 and b0 on."""
    total = load(a, a0) * load(b, b0)
    for i in range(lanes(a), count * lanes(a), lanes(a)):
        total = fma(load(a, a0 + i), load(b, b0 + i), total)
    return total


# operands: rows, n_head, head_dim, q, k, v, slot of the starts, block, groups (of problems), then
# q, k and v in lanes (block x groups x head_dim vectors each), the weights (block x groups x block
# vectors) and room to work in (head_dim + block vectors)
@jit
def attention_forward(values, operands, inputs, out, at, window):
    n_head, head_dim, starts, block, groups, size, row, scale, first, last = geometry(
        values, operands, at, window
    )
    queries, keys, contents = operands[at + 9], operands[at + 10], operands[at + 11]
    weights, work = operands[at + 12], operands[at + 13]
    head = head_dim * size
    for p in range(first, last):
        rows = inputs[starts + p] * row
        problems = (inputs[starts + p + 1] - inputs[starts + p]) * n_head
        for i in range(0, problems, size):
            group = i // size
            here = (p * groups + group) * head
            offsets = problem_offsets(values, i, problems, n_head, head_dim)
            for j in range(3):
                source, lane = operands[at + 3 + j] + rows, operands[at + 9 + j] + here
                rows_to_lanes(values, source, offsets, head_dim, values, lane)

            saved = weights + (p * groups + group) * block * size
            largest = splat(values, -math.inf)
            for s in range(p + 1):
                key = keys + (s * groups + group) * head
                score = dot_lanes(values, queries + here, values, key, head_dim) * scale
                store(values, saved + s * size, score)
                largest = maximum(largest, score)
            total = splat(values, 0)
            for s in range(p + 1):
                e = exp(load(values, saved + s * size) - largest)
                store(values, saved + s * size, e)
                total = total + e
            inverse = 1.0 / total
            for s in range(p + 1):
                weight = load(values, saved + s * size) * inverse
                store(values, saved + s * size, weight)
                content = contents + (s * groups + group) * head
                for c in range(0, head, size):
                    term = weight * load(values, content + c)
                    store(values, work + c, term if s == 0 else load(values, work + c) + term)
            count = problems - i
            lanes_to_rows(values, work, head_dim, values, out + rows, offsets, count, True)


# With w the weights: dv_s += w_s dout; ds_s = w_s (dw_s - sum(w dw)) / sqrt(head_dim), where
# dw_s = dout . v_s; dq = sum of ds_s k_s; dk_s += ds_s q. In lanes, dq, dk and dv lie in the
# gradients of the queries, keys and contents; from the last position down, those of a position are
# whole once its own query has been dealt with.
@jit
def attention_backward(values, grads, operands, inputs, out, at, fresh, window):
    n_head, head_dim, starts, block, groups, size, row, scale, first, last = geometry(
        values, operands, at, window
    )
    queries, keys, contents = operands[at + 9], operands[at + 10], operands[at + 11]
    weights, dout = operands[at + 12], operands[at + 13]
    head = head_dim * size
    dweights = dout + head
    for p in range(last - 1, first - 1, -1):
        rows = inputs[starts + p] * row
        problems = (inputs[starts + p + 1] - inputs[starts + p]) * n_head
        longer = 0 if p + 1 == last else inputs[starts + p + 2] - inputs[starts + p + 1]
        for i in range(0, problems, size):
            group = i // size
            here = (p * groups + group) * head
            offsets = problem_offsets(values, i, problems, n_head, head_dim)
            rows_to_lanes(grads, out + rows, offsets, head_dim, grads, dout)
            for c in range(dout, dout + head, size):
                zero = values.dtype.type(0)
                store(grads, c, keep_first(load(grads, c), problems - i, zero))

            saved = weights + (p * groups + group) * block * size
            mean = splat(values, 0)
            for s in range(p + 1):
                content = contents + (s * groups + group) * head
                dweight = dot_lanes(grads, dout, values, content, head_dim)
                store(grads, dweights + s * size, dweight)
                mean = fma(dweight, load(values, saved + s * size), mean)
            # Where no document of the group goes on, this is the first gradient of all its keys.
            new = longer * n_head <= i
            for s in range(p + 1):
                earlier = (s * groups + group) * head
                weight = load(values, saved + s * size)
                dscore = weight * (load(grads, dweights + s * size) - mean) * scale
                for c in range(0, head, size):
                    add_to(grads, contents + earlier + c, weight * load(grads, dout + c), new)
                    query = load(values, queries + here + c)
                    add_to(grads, keys + earlier + c, dscore * query, new)
                    key = load(values, keys + earlier + c)
                    add_to(grads, queries + here + c, dscore * key, s == 0)
            count = problems - i
            for j in range(3):
                lane, target = operands[at + 9 + j] + here, operands[at + 3 + j] + rows
                overwrite = fresh & 1 << j
                lanes_to_rows(grads, lane, head_dim, grads, target, offsets, count, overwrite)


@inlined
def geometry(values, operands, at, window):
    """Sizes that both directions need, and the first position and the one after the last."""
    n_head, head_dim = operands[at + 1], operands[at + 2]
    starts, block, groups = operands[at + 6], operands[at + 7], operands[at + 8]
    size, row = lanes(values), row_stride(values, n_head * head_dim)
    scale = values.dtype.type(1 / math.sqrt(head_dim))
    first, last = window[0], window[1]
    if operands[at] != BATCH:
        first, last = 0 * block, block
    return n_head, head_dim, starts, block, groups, size, row, scale, first, last
