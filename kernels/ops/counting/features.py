"""out[r] = what a table of counts says of the token that follows in row r, see tapegpt/counting.

out: (R, K V + 2 K), of K orders and V tokens: UNIT times the logarithms of how likely each token is
after the last token, after the last two, ..., after the last K; then ln(1 + n) for each order,
where n is how many different tokens have followed that context; then the shares that counts at that
context have of the probabilities, and shorter ones have not.

The table is given by where its arrays lie, six integers in `inputs`: see `CountTable`. The last K
tokens of row r are inputs[tokens + k capacity + r], the nearest first. Counts leave out the fold
inputs[folds + r], of those that are numbered from 1 on. No gradient is passed.
"""

import math
from typing import NamedTuple

from numba import types

from tapegpt.kernels import simd
from tapegpt.kernels.compile.indirect_call import array_at
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Rows, Size, Slot, readers
from tapegpt.kernels.simd.math import log

UNIT = 0.2  # so that what is likely and what is not are some units apart

FIRST, TOKEN, COUNT, LOSSES, FIELDS = 0, 1, 2, 3, 4  # of a node

small_integers_at, floats_at = array_at(types.int32, 1), array_at(types.float64, 1)


class Args(NamedTuple):
    rows: Rows
    width: Size  # K V + 2 K
    orders: Size
    vocab_size: Size
    tokens: Slot
    capacity: Size  # rows from one distance to the next
    folds: Slot
    table: Slot


args, _ = readers(Args)


@inlined
def next_node(nodes, node, token):
    """The node of a gram that goes on with a token, or NONE."""
    low, high = nodes[FIELDS * node + FIRST], nodes[FIELDS * (node + 1) + FIRST]
    end = high
    while low < high:
        middle = (low + high) // 2
        if nodes[FIELDS * middle + TOKEN] < token:
            low = middle + 1
        else:
            high = middle
    return low if low < end and nodes[FIELDS * low + TOKEN] == token else NONE


@inlined
def find_context(nodes, inputs, nearest, capacity, length):
    """The node of the last `length` tokens, or NONE."""
    node = 0
    for k in range(length - 1, -1, -1):
        if node != NONE:
            node = next_node(nodes, node, inputs[nearest + k * capacity])
    return node


@inlined
def count_without(nodes, losses, node, fold):
    """How often a gram counts where a fold is left out."""
    count = nodes[FIELDS * node + COUNT]
    if fold > 0:
        end = nodes[FIELDS * (node + 1) + LOSSES]
        for i in range(nodes[FIELDS * node + LOSSES], end):
            if losses[2 * i] == fold:
                count -= losses[2 * i + 1]
    return count


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, width, orders, vocab_size, tokens, capacity, folds, table = args(operands, at)
    nodes = small_integers_at(inputs[table], inputs[table + 1])
    losses = small_integers_at(inputs[table + 2], inputs[table + 3])
    numbers = floats_at(inputs[table + 4], inputs[table + 5])
    without_context = len(numbers) // (vocab_size + 3 * orders) * vocab_size  # of all folds
    row, number = row_stride(values, width), values.dtype.type
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        fold = inputs[folds + r]
        begin = out + r * row
        spread = begin + orders * vocab_size  # where ln(1 + n) of each order goes
        node = 0
        for order in range(orders):
            here = begin + order * vocab_size
            for x in range(vocab_size):
                values[here + x] = 0
            if node != NONE:
                node = find_context(nodes, inputs, tokens + r, capacity, order + 1)
            total, left, different = 0, 0.0, 0
            if node != NONE:
                three = without_context + 3 * (fold * orders + order)
                end = nodes[FIELDS * (node + 1) + FIRST]
                for i in range(nodes[FIELDS * node + FIRST], end):
                    count = count_without(nodes, losses, i, fold)
                    if count > 0:
                        discount = numbers[three + min(count, 3) - 1]
                        values[here + nodes[FIELDS * i + TOKEN]] = number(count - discount)
                        total, left, different = total + count, left + discount, different + 1
            share, rest = (1.0 / total, left / total) if total > 0 else (0.0, 1.0)
            for x in range(vocab_size):
                shorter = numbers[fold * vocab_size + x]
                if order > 0:
                    shorter = values[here - vocab_size + x]
                values[here + x] = number(values[here + x] * share + shorter * rest)
            values[spread + order] = number(math.log(1.0 + different))
            values[spread + orders + order] = number(1.0 - rest)
        # The last vector reaches beyond the probabilities: what lies there is kept.
        for i in range(0, orders * vocab_size, simd.lanes(values)):
            likely = simd.load(values, begin + i)
            count = orders * vocab_size - i
            simd.store_part(values, begin + i, log(likely) * UNIT, count)
        for i in range(begin + width, begin + row):
            values[i] = 0


FEATURES = ArrayOp("counted_features", Args, forward, None)
