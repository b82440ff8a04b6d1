"""loss = sum over rows r of weight_r (ln sum(e^logits_r) - logits_r[target_r]): a scalar."""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.ops.elementwise import add_to, array_sum
from tapegpt.kernels.ops.softmax import padding, row_exponentials, row_maximum
from tapegpt.kernels.simd import (
    FEW,
    four,
    keep_first,
    lanes,
    load,
    row_offsets,
    splat,
    store_part,
    sum_lanes,
    tile_add,
    tile_load,
    tile_row_sums,
    tile_zeros,
)
from tapegpt.kernels.simd.math import log


# operands: rows, width, logits, slot of the targets, weights (one node a row), exponentials (like
# the logits), totals and margins (one node a row each), all three kept for backward
@jit
def cross_entropy_forward(values, operands, inputs, out, at, window):
    width, logits, slot = operands[at + 1], operands[at + 2], operands[at + 3]
    weights, exponentials, totals, margins = (
        operands[at + 4], operands[at + 5], operands[at + 6], operands[at + 7],
    )  # fmt: skip
    row = row_stride(values, width)
    first, last = row_range(operands[at], window)
    end, outside = padding(values, width)
    # In loops of their own exponentials do not wait for maxima, nor sums for exponentials.
    for r in range(first, last):
        values[margins + r] = row_maximum(values, logits + r * row, end, outside)
    for r in range(first, last):
        begin, largest = logits + r * row, values[margins + r]
        row_exponentials(values, begin, exponentials + r * row, end, outside, largest)
        values[margins + r] = largest - values[begin + inputs[slot + r]]
    columns = padded(values, width)
    if columns > FEW * lanes(values):
        for r in range(first, last):
            begin = exponentials + r * row
            values[totals + r] = array_sum(values, begin, begin + columns)
    else:
        nothing = tile_zeros(values, four(values), 1)
        for r in range(first, last, four(values)):
            rows, sums = row_offsets(r, last, row, four(values)), nothing
            for i in range(exponentials, exponentials + columns, lanes(values)):
                sums = tile_add(sums, tile_load(nothing, values, i, rows))
            store_part(values, totals + r, tile_row_sums(sums), min(four(values), last - r))
    whole = 0.0  # float64, see FEW
    for begin in range(first, last, FEW * lanes(values)):
        loss = splat(values, 0)
        for r in range(begin, min(begin + FEW * lanes(values), last), lanes(values)):
            losses = log(load(values, totals + r)) + load(values, margins + r)
            weighted = losses * load(values, weights + r)
            loss = loss + keep_first(weighted, last - r, values.dtype.type(0))
        whole += sum_lanes(loss)
    values[out] = whole


# dlogits = weight (softmax(logits) - onehot(target)) dloss
@jit
def cross_entropy_backward(values, grads, operands, inputs, out, at, back, window):
    width, slot = operands[at + 1], operands[at + 3]
    fresh, dlogits = operands[back], operands[back + 2]
    weights, exponentials, totals = operands[at + 4], operands[at + 5], operands[at + 6]
    row = row_stride(values, width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        begin, end = r * row, (r + 1) * row
        weight = values[weights + r] * grads[out]
        scale = weight / values[totals + r]
        for i in range(begin, end, lanes(values)):
            add_to(grads, dlogits + i, load(values, exponentials + i) * scale, fresh & 1)
        grads[dlogits + begin + inputs[slot + r]] -= weight
