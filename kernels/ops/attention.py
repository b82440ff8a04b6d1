"""Causal self-attention over a packed batch.

For every document, position p and head, over the same document's positions s <= p:

    w[s] = softmax_s(q[p] . k[s] / sqrt(head_dim)),  out[p] = sum_s w[s] v[s]

q, k, v, out: (R, H head_dim); w: (B H, T, T). Backward:

    dw = dout v^T,  dv = w^T dout,  ds = w (dw - sum(w dw)) / sqrt(head_dim)
    dq = ds k,  dk = ds^T q

Rows are position-major: the rows of position p lie from inputs[starts + p] up to
inputs[starts + p + 1], documents in one order, so document i's row at an earlier position s is
inputs[starts + s] + i.

Every head of every document is a problem of its own, document after document, head after head.
Problems are the lanes of vectors, see lane_batching.py: as many as a vector has lanes form a group.
Of a group, q, k, v and out are matrices of vectors, with a row for each position and a column for
each of the head's; the probabilities are one with a row for p and a column for s.

Sampling goes on by one position after the other: the keys and values of earlier ones are still
there. The tape is the KV cache.
"""

import math
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import BATCH, row_stride
from tapegpt.kernels.op import (
    ArrayOp,
    Differentiable,
    GradientRoom,
    Rest,
    Rows,
    Size,
    Slot,
    readers,
)
from tapegpt.kernels.ops.product.lane_batching import (
    LANE_COLUMNS,
    Heads,
    LaneMatrix,
    Part,
    copy_lane,
    lane_place,
    lane_product,
    lane_row_product,
    make_moves,
    problems_at,
    whole_tiles,
)
from tapegpt.kernels.ops.product.matrix import Shape
from tapegpt.kernels.simd.math import LOG2_E, exp2


class Args(NamedTuple):
    rows: Rows
    n_head: Size
    head_dim: Size
    q: Differentiable
    k: Differentiable
    v: Differentiable
    starts: Slot
    block: Size  # positions at most
    whole: Size  # whether vectors hold whole squares, see Heads
    # In lanes, positions and columns up to whole tiles:
    q_lanes: GradientRoom  # groups x positions rows of vectors
    k_lanes: GradientRoom
    v_lanes: GradientRoom
    probabilities: GradientRoom  # groups x positions rows, a vector for every earlier position
    out_lanes: GradientRoom  # one group
    given_row: Size  # elements from a row of q, k and v to the next
    problems: Size
    offsets: Rest  # of every problem in rows of q, k and v, then in rows of out


args, grads_of = readers(Args)


@inlined
def lane_stride(values, columns):
    """Elements from one row of vectors to the next."""
    return whole_tiles(columns) * simd.lanes(values)


class Geometry(NamedTuple):
    """How the heads of one record lie, and the positions that are to be computed.

    Whole tiles reach beyond these positions on both sides.
    """

    given: Heads  # in rows of q, k and v
    made: Heads  # in rows of out
    block: int
    stride: int  # elements from a position to the next, of q, k, v and out in lanes
    span: int  # of the probabilities
    first: int
    last: int


class Group(NamedTuple):
    """Where one vector's lanes of problems lie: indices of their first position."""

    q: int
    k: int
    v: int
    probabilities: int
    out: int
    stride: int
    span: int
    width: int  # columns of a head, up to whole tiles


@inlined
def geometry(values, operands, inputs, a, batch_range):
    """The Geometry of the attention with the arguments a."""
    row = row_stride(values, a.n_head * a.head_dim)
    stride, span = lane_stride(values, a.head_dim), lane_stride(values, a.block)
    given = Heads(
        inputs, a.starts, operands, a.offsets, a.n_head, a.head_dim, a.given_row, stride, a.whole
    )
    made_offsets = a.offsets + a.problems
    made = Heads(
        inputs, a.starts, operands, made_offsets, a.n_head, a.head_dim, row, stride, a.whole
    )
    first, last = batch_range.first_position, batch_range.end_position
    if a.rows != BATCH:
        first, last = 0 * a.block, a.block
    return Geometry(given, made, whole_tiles(a.block), stride, span, first, last)


@inlined
def last_position(heads, problem, first, last):
    """One past the last position to which `problem` goes on."""
    end = first + 1
    while end < last and problems_at(heads, end) > problem:
        end += 1
    return end


@jit
def softmax_rows(values, scores, span, first, last, room, factor):
    """Rows `first` to last - 1 of scores become probabilities, of 2^(factor score), in every lane.

    Row p has p + 1 of them. Elements p + 1 to room - 1 become 0.
    """
    size, zero = simd.lanes(values), simd.zeros(values)
    for p in range(first, last):
        row = scores + p * span
        end = row + (p + 1) * size
        largest = simd.load(values, row)
        for i in range(row + size, end, size):
            largest = simd.maximum(largest, simd.load(values, i))
        total = simd.splat(values, 0)
        for i in range(row, end, size):
            e = exp2((simd.load(values, i) - largest) * factor)
            simd.store(values, i, e)
            total = total + e
        inverse = 1.0 / total
        for i in range(row, end, size):
            simd.store(values, i, simd.load(values, i) * inverse)
        for i in range(end, row + room * size, size):
            simd.store(values, i, zero)


def make_attend(product, rows):
    """Probabilities of `rows` positions from p on, and the sums of values weighted by them.

    Positions outside of first to end - 1 only fill up a tile.
    """

    @jit
    def attend(values, group, p, first, end, factor):
        stride, span, size, upper = group.stride, group.span, simd.lanes(values), p + rows
        queries = LaneMatrix(values, group.q + p * stride, stride, size)
        keys = LaneMatrix(values, group.k, size, stride)
        scores = LaneMatrix(values, group.probabilities + p * span, span, size)
        product(queries, keys, scores, Shape(rows, group.width, upper))
        softmax_rows(
            values, group.probabilities, span, max(p, first), min(upper, end), upper, factor
        )
        sums = LaneMatrix(values, group.out + p * stride, stride, size)
        given = LaneMatrix(values, group.v, stride, size)
        product(scores, given, sums, Shape(rows, upper, group.width))

    return attend


attend_tile, attend_row = make_attend(lane_product, LANE_COLUMNS), make_attend(lane_row_product, 1)


# ds = w (dw - sum(w dw)) scale, in place of dw
@jit
def softmax_rows_backward(values, grads, w, dw, span, rows, count, scale):
    size = simd.lanes(values)
    for row in range(0, rows * span, span):
        mean = simd.splat(values, 0)
        for i in range(row, row + count * size, size):
            mean = simd.fma(simd.load(values, w + i), simd.load(grads, dw + i), mean)
        for i in range(row, row + count * size, size):
            ds = simd.load(values, w + i) * (simd.load(grads, dw + i) - mean) * scale
            simd.store(grads, dw + i, ds)


def make_attention(size):
    """The two kernels for heads whose columns move in squares of `size`."""
    rows_to_lanes, lanes_to_rows = make_moves(size)

    @jit
    def attention_forward(values, operands, inputs, out, at, batch_range):
        a = args(operands, at)
        g = geometry(values, operands, inputs, a, batch_range)
        first, last, width = g.first, g.last, whole_tiles(a.head_dim)
        factor = values.dtype.type(LOG2_E / math.sqrt(a.head_dim))
        # Sampling goes on by one position. Gradients want whole tiles, and the first position.
        in_tiles = first == 0 or last - first > 1
        for problem in range(0, problems_at(g.given, first), simd.lanes(values)):
            rows = problem // simd.lanes(values) * g.block
            group = Group(
                a.q_lanes + rows * g.stride,
                a.k_lanes + rows * g.stride,
                a.v_lanes + rows * g.stride,
                a.probabilities + rows * g.span,
                a.out_lanes,
                g.stride,
                g.span,
                width,
            )
            end = last_position(g.given, problem, first, last)
            part, lane_arrays = Part(problem, first, end, in_tiles), (group.q, group.k, group.v)
            rows_to_lanes(values, (a.q, a.k, a.v), g.given, part, values, lane_arrays)
            if in_tiles:
                for p in range(first - first % LANE_COLUMNS, end, LANE_COLUMNS):
                    attend_tile(values, group, p, first, end, factor)
            else:
                attend_row(values, group, first, first, end, factor)
            lanes_to_rows(values, (group.out,), g.made, part, values, (out,), 1)

    @jit
    def attention_backward(values, grads, operands, inputs, out, at, back, batch_range):
        a, d = args(operands, at), grads_of(operands, back)
        g = geometry(values, operands, inputs, a, batch_range)
        first, last, stride, span = g.first, g.last, g.stride, g.span
        width, size = whole_tiles(a.head_dim), simd.lanes(values)
        scale = values.dtype.type(1 / math.sqrt(a.head_dim))
        begin = first - first % LANE_COLUMNS
        dq, dk, dv, dw, dout = d.dq_lanes, d.dk_lanes, d.dv_lanes, d.dprobabilities, d.dout_lanes
        for problem in range(0, problems_at(g.given, first), size):
            rows = problem // size * g.block
            q, k = a.q_lanes + rows * stride, a.k_lanes + rows * stride
            v, w = a.v_lanes + rows * stride, a.probabilities + rows * span
            end = last_position(g.given, problem, first, last)
            part = Part(problem, first, end, True)
            rows_to_lanes(grads, (d.dout,), g.made, part, grads, (dout,))
            for p in range(begin, end, LANE_COLUMNS):
                upper = p + LANE_COLUMNS
                row = LaneMatrix(grads, dw + p * span, span, size)
                lane_product(
                    LaneMatrix(grads, dout + p * stride, stride, size),
                    LaneMatrix(values, v, size, stride),
                    row,
                    Shape(LANE_COLUMNS, width, upper),
                )
                w_p, count = w + p * span, min(LANE_COLUMNS, end - p)
                softmax_rows_backward(values, grads, w_p, row.begin, span, count, upper, scale)
                lane_product(
                    row,
                    LaneMatrix(values, k, stride, size),
                    LaneMatrix(grads, dq + p * stride, stride, size),
                    Shape(LANE_COLUMNS, upper, width),
                )
            # Every position passes a gradient to the keys and values of those before it.
            for s in range(begin, end, LANE_COLUMNS):
                shape = Shape(LANE_COLUMNS, whole_tiles(end) - s, width)
                corner = s * span + s * size
                lane_product(
                    LaneMatrix(grads, dw + corner, size, span),
                    LaneMatrix(values, q + s * stride, stride, size),
                    LaneMatrix(grads, dk + s * stride, stride, size),
                    shape,
                )
                lane_product(
                    LaneMatrix(values, w + corner, size, span),
                    LaneMatrix(grads, dout + s * stride, stride, size),
                    LaneMatrix(grads, dv + s * stride, stride, size),
                    shape,
                )
            passed = (d.dq, d.dk, d.dv)
            lanes_to_rows(grads, (dq, dk, dv), g.given, part, grads, passed, d.overwrite)

    return attention_forward, attention_backward


forward, backward = make_attention(1)

# Variant i is for squares of 2^i columns.
ATTENTION = ArrayOp(
    "attention", Args, forward, backward, variants=tuple(make_attention(2**i) for i in range(1, 5))
)


@jit
def move_document(values, operands, at, power, source, target, positions):
    """Give document `target` the keys and values that `source` has at the first `positions`.

    For the attention whose squares are 2 ** power columns wide.
    """
    a = args(operands, at)
    block, stride = whole_tiles(a.block), lane_stride(values, a.head_dim)
    for head in range(a.n_head):
        x = lane_place(values, source * a.n_head + head, power, block * stride)
        out = lane_place(values, target * a.n_head + head, power, block * stride)
        for lane in (a.k_lanes, a.v_lanes):
            copy_lane(values, lane + x, lane + out, positions * stride)
