"""Causal self-attention over a packed batch.

For every document, position p and head, over the same document's positions s <= p:

    weight_s = softmax_s(q_p . k_s / sqrt(head_dim)),  out_p = sum_s weight_s v_s

Rows are position-major: the rows of position p lie from inputs[starts + p] up to
inputs[starts + p + 1], documents in one order, so document i's row at an earlier position s is
inputs[starts + s] + i.

Every head of every document is a problem of its own, document after document, head after head,
and problems are the lanes (see lanes.py): as many as a vector has lanes form a group. Of a group,
q, k, v and out are matrices of vectors, a row a position and a column a column of the head; the
weights are one with a row for p and a column for s. Sampling comes back to one position after the
other: the keys and values of earlier positions are still there. The tape is the KV cache.
"""

import math

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import BATCH, row_stride
from tapegpt.kernels.ops.product.lane_batching import (
    LANE_COLUMNS,
    copy_lane,
    lane_place,
    lane_product,
    lane_row_product,
    make_moves,
    whole_tiles,
)
from tapegpt.kernels.simd import (
    fma,
    lanes,
    load,
    maximum,
    splat,
    store,
    zeros,
)
from tapegpt.kernels.simd.math import LOG2_E, exp2


@inlined
def lane_stride(values, columns):
    """Elements from one row of vectors to the next."""
    return whole_tiles(columns) * lanes(values)


@inlined
def geometry(values, operands, inputs, at, window):
    """How heads lie in rows of q, k and v, in those of out, and in lanes; and the positions that
    are to be computed, which whole tiles exceed on both sides.
    """
    n_head, head_dim, starts, block = (
        operands[at + 1], operands[at + 2], operands[at + 6], operands[at + 7],
    )  # fmt: skip
    whole, given_row, problems = operands[at + 8], operands[at + 14], operands[at + 15]
    row = row_stride(values, n_head * head_dim)
    stride, span = lane_stride(values, head_dim), lane_stride(values, block)
    given = (inputs, starts, operands, at + 16, n_head, head_dim, given_row, stride, whole)
    made = (inputs, starts, operands, at + 16 + problems, n_head, head_dim, row, stride, whole)
    first, last = window[0], window[1]
    if operands[at] != BATCH:
        first, last = 0 * block, block
    return given, made, whole_tiles(block), stride, span, first, last


@inlined
def problems_at(inputs, starts, p, n_head):
    """Heads of documents that go on to position p."""
    return (inputs[starts + p + 1] - inputs[starts + p]) * n_head


@inlined
def last_position(inputs, starts, n_head, problem, first, last):
    """One past the last position to which `problem` goes on."""
    end = first + 1
    while end < last and problems_at(inputs, starts, end, n_head) > problem:
        end += 1
    return end


@jit
def softmax_rows(values, scores, span, first, last, room, factor):
    """Rows `first` to last - 1 of scores become weights, lane by lane, of 2^(factor score).

    Row p has p + 1 of them; those from there up to `room` become 0.
    """
    size, zero = lanes(values), zeros(values)
    for p in range(first, last):
        row = scores + p * span
        end = row + (p + 1) * size
        largest = load(values, row)
        for i in range(row + size, end, size):
            largest = maximum(largest, load(values, i))
        total = splat(values, 0)
        for i in range(row, end, size):
            e = exp2((load(values, i) - largest) * factor)
            store(values, i, e)
            total = total + e
        inverse = 1.0 / total
        for i in range(row, end, size):
            store(values, i, load(values, i) * inverse)
        for i in range(end, row + room * size, size):
            store(values, i, zero)


def make_attend(product, rows):
    """The weights of `rows` positions from p on, and the sums of values that they make.

    Those that are not from `first` to end - 1 are only there to fill a tile.
    """

    @jit
    def attend(values, q, k, v, weights, result, p, first, end, stride, span, width, factor):
        size, upper, row = lanes(values), p + rows, weights + p * span
        product(
            values, q + p * stride, stride, size, values, k, stride, size,
            values, row, span, rows, upper, width,
        )  # fmt: skip
        softmax_rows(values, weights, span, max(p, first), min(upper, end), upper, factor)
        product(
            values, row, span, size, values, v, size, stride,
            values, result + p * stride, stride, rows, width, upper,
        )  # fmt: skip

    return attend


attend_tile, attend_row = make_attend(lane_product, LANE_COLUMNS), make_attend(lane_row_product, 1)


# ds = w (dw - sum(w dw)) scale, over dw
@jit
def softmax_rows_backward(values, grads, weights, dweights, span, first, last, count, scale):
    size = lanes(values)
    for row in range(first * span, last * span, span):
        mean = splat(values, 0)
        for i in range(row, row + count * size, size):
            mean = fma(load(values, weights + i), load(grads, dweights + i), mean)
        for i in range(row, row + count * size, size):
            ds = load(values, weights + i) * (load(grads, dweights + i) - mean) * scale
            store(grads, dweights + i, ds)


def make_attention(size):
    """The two kernels for heads whose columns move in squares of `size`."""
    rows_to_lanes, lanes_to_rows = make_moves(size)

    # operands: rows, n_head, head_dim, q, k, v, slot of the starts, block, whether vectors are
    # whole, then in lanes q, k and v (groups x block rows of `stride`), the weights (groups x
    # block rows of `span`), out (block rows of `stride`), where block is that of whole tiles;
    # elements from a row of q, k and v to the next, the number of problems, and the offset of
    # every problem in those rows and in rows of out
    @jit
    def attention_forward(values, operands, inputs, out, at, window):
        given, made, block, stride, span, first, last = geometry(
            values, operands, inputs, at, window
        )
        starts, n_head, width = given[1], given[4], whole_tiles(given[5])
        size = lanes(values)
        factor = values.dtype.type(LOG2_E / math.sqrt(given[5]))
        begin = first - first % LANE_COLUMNS
        for problem in range(0, problems_at(inputs, starts, first, n_head), size):
            group = problem // size * block
            end = last_position(inputs, starts, n_head, problem, first, last)
            q, k, v = (
                operands[at + 9] + group * stride,
                operands[at + 10] + group * stride,
                operands[at + 11] + group * stride,
            )
            rows = operands[at + 3], operands[at + 4], operands[at + 5]
            rows_to_lanes(values, rows, given, problem, first, end, values, (q, k, v))
            weights, result = operands[at + 12] + group * span, operands[at + 13]
            # Sampling goes on by one position. Gradients want whole tiles, and the first position.
            if first > 0 and last - first == 1:
                attend_row(
                    values, q, k, v, weights, result, first, first, end, stride, span, width, factor
                )
            else:
                for p in range(begin, end, LANE_COLUMNS):
                    attend_tile(
                        values, q, k, v, weights, result, p, first, end, stride, span, width, factor
                    )
            lanes_to_rows(values, (result,), made, problem, first, end, values, (out,), 1)

    # dw = dout v^T, dv = w^T dout, dq = ds k, dk = ds^T q
    # scratch: in lanes dq, dk and dv, then dw, which ds overwrites, and dout
    @jit
    def attention_backward(values, grads, operands, inputs, out, at, back, window):
        given, made, block, stride, span, first, last = geometry(
            values, operands, inputs, at, window
        )
        starts, n_head, width = given[1], given[4], whole_tiles(given[5])
        size = lanes(values)
        scale = values.dtype.type(1 / math.sqrt(given[5]))
        begin = first - first % LANE_COLUMNS
        for problem in range(0, problems_at(inputs, starts, first, n_head), size):
            group = problem // size * block
            end = last_position(inputs, starts, n_head, problem, first, last)
            q, k, v = (
                operands[at + 9] + group * stride,
                operands[at + 10] + group * stride,
                operands[at + 11] + group * stride,
            )
            weights = operands[at + 12] + group * span
            dq, dk, dv, dweights, dout = (
                operands[back + 5],
                operands[back + 6],
                operands[back + 7],
                operands[back + 8],
                operands[back + 9],
            )
            rows_to_lanes(grads, (operands[back + 1],), made, problem, first, end, grads, (dout,))
            for p in range(begin, end, LANE_COLUMNS):
                upper = p + LANE_COLUMNS
                row = dweights + p * span
                lane_product(
                    grads, dout + p * stride, stride, size, values, v, stride, size,
                    grads, row, span, LANE_COLUMNS, upper, width,
                )  # fmt: skip
                softmax_rows_backward(
                    values, grads, weights, dweights, span, p, min(upper, end), upper, scale
                )
                lane_product(
                    grads, row, span, size, values, k, size, stride,
                    grads, dq + p * stride, stride, LANE_COLUMNS, width, upper,
                )  # fmt: skip
            # Every position passes a gradient to the keys and values of those before it.
            for s in range(begin, end, LANE_COLUMNS):
                rest = whole_tiles(end) - s
                corner = s * span + s * size
                lane_product(
                    grads, dweights + corner, size, span, values, q + s * stride, size, stride,
                    grads, dk + s * stride, stride, LANE_COLUMNS, width, rest,
                )  # fmt: skip
                lane_product(
                    values, weights + corner, size, span, grads, dout + s * stride, size, stride,
                    grads, dv + s * stride, stride, LANE_COLUMNS, width, rest,
                )  # fmt: skip
            rows = operands[back + 2], operands[back + 3], operands[back + 4]
            lanes_to_rows(
                grads, (dq, dk, dv), given, problem, first, end, grads, rows, operands[back]
            )

    return attention_forward, attention_backward


@jit
def move_document(values, operands, at, power, source, target, positions):
    """Give document `target` the keys and values that `source` has at the first `positions`.

    For the attention whose squares are 2 ** power columns wide.
    """
    n_head, head_dim, block = operands[at + 1], operands[at + 2], whole_tiles(operands[at + 7])
    stride = lane_stride(values, head_dim)
    for head in range(n_head):
        x = lane_place(values, source * n_head + head, power, block * stride)
        out = lane_place(values, target * n_head + head, power, block * stride)
        for lane in (operands[at + 10], operands[at + 11]):
            copy_lane(values, lane + x, lane + out, positions * stride)
