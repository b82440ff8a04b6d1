"""Causal self-attention over long documents, one head at a time: the same as attention.py.

    w[s] = softmax_s(q[p] . k[s] / sqrt(head_dim)),  out[p] = sum_s w[s] v[s]    (s <= p)

q, k, v, out: (R, H head_dim), laid out as in attention.py; q_heads, k_heads, v_heads: (B H, T, C),
C being head_dim in whole vectors; largest, log_sum: (B H, T).

Nothing T x T is kept. Queries and keys meet in squares of SIDE x SIDE. The forward pass takes the
softmax square by square. It keeps the largest score of every row, and the logarithm of the sum of
all exponentials; the backward pass computes the probabilities again from them (Dao et al. 2022,
FlashAttention). With e = dout . out, row by row:

    dw = dout v^T,  dv = w^T dout,  ds = w (dw - e) / sqrt(head_dim),  dq = ds k,  dk = ds^T q

A head is copied out of its rows first: they lie at no constant distance in a packed batch, and
matrices of its own are all that matmul.py needs. Squares on the diagonal go in strips of STRIP
rows, so that little is computed that a query must not see. When sampling goes on by one position
the copies are the KV cache.
"""

import math
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import BATCH, padded
from tapegpt.kernels.op import (
    ArrayOp,
    Differentiable,
    GradientRoom,
    Room,
    Rows,
    SharedRoom,
    Size,
    Slot,
    readers,
)
from tapegpt.kernels.ops.product.heads import (
    STRIP,
    Head,
    Matrices,
    copy_in,
    copy_out,
    element,
    product,
    scale_rows,
    strips,
    whole_strips,
)
from tapegpt.kernels.ops.product.matmul import transpose
from tapegpt.kernels.ops.product.matrix import Left, Right, Shape
from tapegpt.kernels.simd.math import LOG2_E, exp2, log, quick_exp2

SIDE = 64
LOWEST = -1e30  # below every score


class Args(NamedTuple):
    rows: Rows
    n_head: Size
    head_dim: Size
    q: Differentiable
    k: Differentiable
    v: Differentiable
    starts: Slot
    block: Size  # positions at most
    given_row: Size  # elements from a row of q, k and v to the next
    made_row: Size  # of out
    q_heads: Room
    k_heads: Room
    v_heads: Room
    largest: Room
    log_sum: Room  # to base 2, of the scores less the largest
    forward_room: SharedRoom
    backward_room: GradientRoom


args, grads_of = readers(Args)


def pays(problems: int, block: int, head_dim: int, lanes: int) -> bool:
    """Whether to take this attention, for so many heads of all documents together.

    Measured on Zen 4: attention.py is quicker where its lanes are filled, up to 256 positions.
    From 512 on its T x T probabilities take too much memory.
    """
    filled = problems / (-(-problems // lanes) * lanes)  # a problem takes a lane there
    if block >= 256:
        return block >= 512 or head_dim >= lanes or filled <= 1 / 2
    return (filled <= 1 / 2 and block >= 64) or (filled <= 1 / 4 and block >= 32)


def rooms(problems: int, block: int, head_dim: int, lanes: int) -> dict[str, int]:
    """How many nodes the rooms of a record take, by the names of Args."""
    columns, positions = -(-head_dim // lanes) * lanes, whole_strips(block)
    squares = 2 * SIDE * SIDE + 2 * SIDE * columns + 3 * SIDE
    heads = dict.fromkeys(("q_heads", "k_heads", "v_heads"), problems * positions * columns)
    rows = dict.fromkeys(("largest", "log_sum"), problems * positions)
    return {
        **heads,
        **rows,
        "forward_room": squares + positions * (columns + 1),
        "backward_room": squares + positions * (4 * columns + 1),
    }


@inlined
def largest_scores(values, scores, keys, best):
    """The largest of `best` and of `keys` scores, lane by lane; in four dependency chains."""
    one, two, three = best, best, best
    for s in range(scores, scores + keys * SIDE, 4 * SIDE):
        best = simd.maximum(best, simd.load(values, s))
        one = simd.maximum(one, simd.load(values, s + SIDE))
        two = simd.maximum(two, simd.load(values, s + 2 * SIDE))
        three = simd.maximum(three, simd.load(values, s + 3 * SIDE))
    return simd.maximum(simd.maximum(best, one), simd.maximum(two, three))


@jit
def attend(values, m, first, length, out, room):
    """out (T, C), largest and log_sum, from the block of `first` on to a whole number of strips.

    A square of scores has a row for every key and a lane for every query.
    """
    size, columns = simd.lanes(values), m.columns
    factor, zero = values.dtype.type(LOG2_E / math.sqrt(m.head_dim)), values.dtype.type(0)
    lowest = values.dtype.type(LOWEST)
    scores = room
    queries_across = scores + SIDE * SIDE
    largest = queries_across + SIDE * columns
    total, rescaled = largest + SIDE, largest + 2 * SIDE
    for i in range(first - first % SIDE, length, SIDE):
        queries, out_i = min(SIDE, length - i), out + i * columns
        transpose(
            Right(values, m.q + i * columns, columns, False), queries, columns, queries_across, SIDE
        )
        for c in range(0, SIDE, size):
            simd.store(values, largest + c, simd.splat(values, lowest))
            simd.store(values, total + c, simd.splat(values, zero))
        for j in range(0, i + queries, SIDE):
            keys = min(SIDE, length - j)
            strip = STRIP if j == i else keys
            # Of the diagonal's keys the queries before see nothing.
            for s in range(0, keys, strip):
                left = Left(values, m.k + (j + s) * columns, columns, 1)
                shape = Shape(strip, m.head_dim, queries - s)
                begin = scores + s * SIDE + s
                product(left, (values, queries_across + s, SIDE), values, begin, SIDE, shape, True)
            for c in range(0, queries, size):
                column, count = scores + c, keys
                if j == i:
                    count = c - c % STRIP + STRIP
                    for s in range(c, count):
                        at = column + s * SIDE
                        simd.store(values, at, simd.keep_from(simd.load(values, at), s - c, lowest))
                before = simd.load(values, largest + c)
                best = largest_scores(values, column, count, before)
                sums = simd.splat(values, zero)
                for s in range(count):
                    at = column + s * SIDE
                    e = quick_exp2((simd.load(values, at) - best) * factor)
                    if j == i:
                        e = simd.keep_from(e, s - c, zero)
                    simd.store(values, at, e)
                    sums = sums + e
                shrunk = exp2((before - best) * factor)
                simd.store(values, largest + c, best)
                simd.store(values, rescaled + c, shrunk)
                simd.store(values, total + c, simd.fma(simd.load(values, total + c), shrunk, sums))
            if j > 0:
                scale_rows(values, out_i, queries, columns, rescaled)
            strip = STRIP if j == i else queries
            for r in range(0, queries, strip):
                depth = r + STRIP if j == i else keys
                left = Left(values, scores + r, 1, SIDE)
                shape = Shape(strip, depth, columns)
                right = (values, m.v + j * columns, columns)
                product(left, right, values, out_i + r * columns, columns, shape, j == 0)
        for c in range(0, queries, size):
            sums = simd.load(values, total + c)
            simd.store(values, rescaled + c, 1.0 / sums)
            simd.store(values, m.largest + i + c, simd.load(values, largest + c))
            simd.store(values, m.log_sum + i + c, log(sums) * LOG2_E)
        scale_rows(values, out_i, queries, columns, rescaled)


@jit
def attend_row(values, m, p, out, room):
    """Row p of out alone; room for a score of every key."""
    size, columns = simd.lanes(values), m.columns
    factor, lowest = values.dtype.type(LOG2_E / math.sqrt(m.head_dim)), values.dtype.type(LOWEST)
    best = simd.splat(values, lowest)
    for s in range(0, p + 1, size):
        scores = simd.tile_zeros(values, size, 1)
        left = simd.row_pointers(values, m.k + s * columns, columns, size)
        right = simd.row_pointers(values, m.q + p * columns, columns, 1)
        for _ in range(0, columns, size):
            scores = simd.tile_outer(scores, left, right)
            left, right = simd.advance(left, size), simd.advance(right, size)
        score = simd.keep_first(simd.tile_row_sums(scores) * factor, p + 1 - s, lowest)
        simd.store(values, room + s, score)
        best = simd.maximum(best, score)
    largest, total = simd.max_lanes(best), simd.splat(values, 0)
    end = (p + size) // size * size
    for s in range(0, end, size):
        e = exp2(simd.load(values, room + s) - largest)
        simd.store(values, room + s, e)
        total = total + e
    inverse = 1 / simd.sum_lanes(total)
    for c in range(0, columns, size):
        # Two dependency chains.
        even, odd, v = simd.splat(values, 0), simd.splat(values, 0), m.v + c
        for s in range(0, end, 2):
            even = simd.fma(
                simd.load(values, v + s * columns), simd.splat(values, values[room + s]), even
            )
            odd = simd.fma(
                simd.load(values, v + (s + 1) * columns),
                simd.splat(values, values[room + s + 1]),
                odd,
            )
        simd.store(values, out + p * columns + c, (even + odd) * inverse)


@inlined
def matrices(values, a, problem):
    """The matrices of a head: heads of documents are numbered document after document."""
    columns, positions = padded(values, a.head_dim), strips(a.block)
    begin = problem * positions * columns
    heads = a.q_heads + begin, a.k_heads + begin, a.v_heads + begin
    row = problem * positions
    return Matrices(*heads, a.largest + row, a.log_sum + row, columns, a.head_dim)


@inlined
def positions_of(a, batch_range):
    """First position and the one after the last."""
    if a.rows != BATCH:
        return 0 * a.block, a.block
    return batch_range.first_position, batch_range.end_position


@inlined
def documents_at(inputs, starts, p):
    """How many documents go on to position p."""
    return inputs[starts + p + 1] - inputs[starts + p]


@inlined
def end_of(inputs, starts, document, first, last):
    """One past the last position to which a document goes on."""
    end = first + 1
    while end < last and documents_at(inputs, starts, end) > document:
        end += 1
    return end


@jit
def forward(values, operands, inputs, out, at, batch_range):
    a = args(operands, at)
    first, last = positions_of(a, batch_range)
    columns = padded(values, a.head_dim)
    made = a.forward_room  # (T, C), and after it room for squares
    room = made + strips(a.block) * columns
    for document in range(documents_at(inputs, a.starts, first)):
        end = end_of(inputs, a.starts, document, first, last)
        for h in range(a.n_head):
            head = Head(inputs, a.starts, document, h * a.head_dim, a.head_dim)
            m = matrices(values, a, document * a.n_head + h)
            copy_in(values, a.q, a.given_row, head, first, end, values, m.q)
            copy_in(values, a.k, a.given_row, head, first, end, values, m.k)
            copy_in(values, a.v, a.given_row, head, first, end, values, m.v)
            if first > 0 and last - first == 1:
                attend_row(values, m, first, made, room)
            else:
                attend(values, m, first, strips(end), made, room)
            copy_out(values, made, head, first, end, values, out, a.made_row, True)


@jit
def attend_backward(values, grads, m, length, made, given, across, room):
    """The gradients dq, dk and dv (T, C), `given`, out of dout and e, `made`.

    A square has a row for every query and a lane for every key. across: room in values for k^T and
    v^T of a block.
    """
    size, columns, d = simd.lanes(values), m.columns, m.head_dim
    factor = values.dtype.type(LOG2_E / math.sqrt(d))
    scale, zero = values.dtype.type(1 / math.sqrt(d)), values.dtype.type(0)
    (dq, dk, dv), (dout, e) = given, made
    w, ds, v_across = room, room + SIDE * SIDE, across + SIDE * columns
    for j in range(0, length, SIDE):
        keys, key_row = min(SIDE, length - j), j * columns
        transpose(Right(values, m.k + key_row, columns, False), keys, columns, across, SIDE)
        transpose(Right(values, m.v + key_row, columns, False), keys, columns, v_across, SIDE)
        for i in range(j, length, SIDE):
            queries, query_row, diagonal = min(SIDE, length - i), i * columns, i == j
            strip = STRIP if diagonal else queries
            for r in range(0, queries, strip):
                seen, row = r + STRIP if diagonal else keys, query_row + r * columns
                square, shape = r * SIDE, Shape(strip, d, seen)
                left = Left(values, m.q + row, columns, 1)
                product(left, (values, across, SIDE), grads, w + square, SIDE, shape, True)
                left = Left(grads, dout + row, columns, 1)
                product(left, (values, v_across, SIDE), grads, ds + square, SIDE, shape, True)
                for query in range(r, r + strip):
                    largest = values[m.largest + i + query]
                    log_sum = simd.splat(values, -values[m.log_sum + i + query])
                    mean = simd.splat(values, -grads[e + i + query] * scale)
                    for c in range(0, seen, size):
                        at = query * SIDE + c
                        score = simd.load(grads, w + at) - largest
                        p = quick_exp2(simd.fma(score, simd.splat(values, factor), log_sum))
                        if diagonal:
                            p = simd.keep_first(p, query + 1 - c, zero)
                        slope = simd.fma(simd.load(grads, ds + at), simd.splat(values, scale), mean)
                        simd.store(grads, w + at, p)
                        simd.store(grads, ds + at, p * slope)
                left, shape = Left(grads, ds + square, SIDE, 1), Shape(strip, seen, columns)
                product(
                    left, (values, m.k + key_row, columns), grads, dq + row, columns, shape, j == 0
                )
            strip = STRIP if diagonal else keys
            for s in range(0, keys, strip):
                before = s if diagonal else 0  # queries that do not see these keys
                shape = Shape(strip, queries - before, columns)
                row, corner = query_row + before * columns, before * SIDE + s
                key = key_row + s * columns
                left, right = Left(grads, w + corner, 1, SIDE), (grads, dout + row, columns)
                product(left, right, grads, dv + key, columns, shape, diagonal)
                left, right = Left(grads, ds + corner, 1, SIDE), (values, m.q + row, columns)
                product(left, right, grads, dk + key, columns, shape, diagonal)


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    first, last = positions_of(a, batch_range)
    columns, positions = padded(values, a.head_dim), strips(a.block)
    dq, matrix = g.dbackward_room, positions * columns
    dk, dv, dout, e = dq + matrix, dq + 2 * matrix, dq + 3 * matrix, dq + 4 * matrix
    for document in range(documents_at(inputs, a.starts, first)):
        end = end_of(inputs, a.starts, document, first, last)
        for h in range(a.n_head):
            head = Head(inputs, a.starts, document, h * a.head_dim, a.head_dim)
            m = matrices(values, a, document * a.n_head + h)
            copy_in(grads, g.dout, a.made_row, head, first, end, grads, dout)
            for p in range(strips(end)):
                sums, x = simd.splat(values, 0), out + element(head, min(p, end - 1), a.made_row)
                for c in range(0, columns, simd.lanes(values)):
                    y = simd.keep_first(
                        simd.load(values, x + c), a.head_dim - c, values.dtype.type(0)
                    )
                    sums = simd.fma(y, simd.load(grads, dout + p * columns + c), sums)
                grads[e + p] = simd.sum_lanes(sums)
            attend_backward(
                values,
                grads,
                m,
                strips(end),
                (dout, e),
                (dq, dk, dv),
                a.forward_room,
                e + positions,
            )
            row = a.given_row
            copy_out(grads, dq, head, first, end, grads, g.dq, row, g.overwrite_dq)
            copy_out(grads, dk, head, first, end, grads, g.dk, row, g.overwrite_dk)
            copy_out(grads, dv, head, first, end, grads, g.dv, row, g.overwrite_dv)


STREAMING_ATTENTION = ArrayOp(
    "streaming_attention", Args, forward, backward, backward_reads=("out",)
)


@jit
def move_streamed(values, operands, at, source, target, positions):
    """Give document `target` the keys and values that `source` has at the first `positions`."""
    a = args(operands, at)
    count = positions * padded(values, a.head_dim)
    for h in range(a.n_head):
        x = matrices(values, a, source * a.n_head + h)
        out = matrices(values, a, target * a.n_head + h)
        for i in range(0, count, simd.lanes(values)):
            simd.store(values, out.k + i, simd.load(values, x.k + i))
            simd.store(values, out.v + i, simd.load(values, x.v + i))
