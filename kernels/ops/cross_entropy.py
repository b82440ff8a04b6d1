"""loss = sum over rows r of weights[r] (ln sum(e^logits[r]) - logits[r, target[r]]): a scalar.

logits: (R, C); target[r] = inputs[targets + r]; weights: (R,).

dlogits[r] = weights[r] (softmax(logits[r]) - onehot(target[r])) dloss
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Room, Rows, ScalarNode, Size, Slot, readers
from tapegpt.kernels.ops.elementwise import add_to, array_sum
from tapegpt.kernels.ops.softmax import padding, row_exponentials, row_maximum
from tapegpt.kernels.simd import FEW
from tapegpt.kernels.simd.math import log


class Args(NamedTuple):
    rows: Rows
    width: Size
    logits: Differentiable
    targets: Slot
    weights: ScalarNode  # (R,)
    exponentials: Room  # (R, C): e^(logits - the largest of the row)
    totals: Room  # (R,): sums of them
    margins: Room  # (R,): the largest logit less that of the target


args, grads_of = readers(Args)


@jit
def cross_entropy_forward(values, operands, inputs, out, at, batch_range):
    count, width, logits, slot, weights, exponentials, totals, margins = args(operands, at)
    row = row_stride(values, width)
    first, last = row_range(count, batch_range)
    end, outside = padding(values, width)
    # Separate loops: exponentials do not wait for maxima, nor sums for exponentials.
    for r in range(first, last):
        values[margins + r] = row_maximum(values, logits + r * row, end, outside)
    for r in range(first, last):
        begin, largest = logits + r * row, values[margins + r]
        row_exponentials(values, begin, exponentials + r * row, end, outside, largest)
        values[margins + r] = largest - values[begin + inputs[slot + r]]
    columns = padded(values, width)
    if columns > FEW * simd.lanes(values):
        for r in range(first, last):
            begin = exponentials + r * row
            values[totals + r] = array_sum(values, begin, begin + columns)
    else:
        nothing = simd.tile_zeros(values, simd.four(values), 1)
        for r in range(first, last, simd.four(values)):
            rows, sums = simd.row_offsets(r, last, row, simd.four(values)), nothing
            for i in range(exponentials, exponentials + columns, simd.lanes(values)):
                sums = sums + simd.tile_load(nothing, values, i, rows)
            simd.store_part(
                values, totals + r, simd.tile_row_sums(sums), min(simd.four(values), last - r)
            )
    whole = 0.0  # float64, see FEW
    for begin in range(first, last, FEW * simd.lanes(values)):
        loss = simd.splat(values, 0)
        for r in range(begin, min(begin + FEW * simd.lanes(values), last), simd.lanes(values)):
            losses = log(simd.load(values, totals + r)) + simd.load(values, margins + r)
            weighted = losses * simd.load(values, weights + r)
            loss = loss + simd.keep_first(weighted, last - r, values.dtype.type(0))
        whole += simd.sum_lanes(loss)
    values[out] = whole


@jit
def cross_entropy_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    row = row_stride(values, a.width)
    first, last = row_range(a.rows, batch_range)
    for r in range(first, last):
        begin, end = r * row, (r + 1) * row
        weight = values[a.weights + r] * grads[out]
        scale = weight / values[a.totals + r]
        for i in range(begin, end, simd.lanes(values)):
            passed = simd.load(values, a.exponentials + i) * scale
            add_to(grads, g.dlogits + i, passed, g.overwrite_dlogits)
        grads[g.dlogits + begin + inputs[a.targets + r]] -= weight


CROSS_ENTROPY = ArrayOp("cross_entropy", Args, cross_entropy_forward, cross_entropy_backward)
