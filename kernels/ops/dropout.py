"""out = plus + x m CHANCES / kept, where m is 1 with a chance of kept / CHANCES, else 0.

x, plus, out: (R, C). dx = dout m CHANCES / kept; dplus = dout. Where the key is 0 nothing is left
out. What is left out does not depend on the element type or the width of vectors.
"""

from typing import NamedTuple

import numpy as np

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Rows, Size, Slot, readers
from tapegpt.kernels.ops.elementwise import add_to, pass_gradient

# Two words of 64 bits give each of 16 elements 8 bits, six more words the 24 that follow; no vector
# has more elements.
GROUP = 16
CHANCES = 2**32  # so many equally likely numbers an element can draw
EIGHT_BITS = 2**24  # chances of which are as many whole steps need no more than 8 bits

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


@inlined
def mixed(x):
    """64 bits, each of which depends on every bit of x (SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
def dropout_key(seed, document):
    """The key of the random numbers of a sweep that begins with this document of the training."""
    key = mixed(mixed(np.uint64(seed)) + np.uint64(document) * ODD)
    return np.int64((key >> np.uint64(1)) | np.uint64(1))  # 0 would leave nothing out


@inlined
def decided(low, high, kept, bits):
    """The bits of a group after 8 more bits of `kept`, see chosen."""
    for k in range(4):
        draw = low >> np.uint64(GROUP * k)
        bits = (bits | draw) if (kept >> k) & 1 else (bits & draw)
    for k in range(4):
        draw = high >> np.uint64(GROUP * k)
        bits = (bits | draw) if (kept >> (k + 4)) & 1 else (bits & draw)
    return bits


@jit
def finer(word, kept):
    """The bits of a group after the lower 24 bits of `kept`."""
    bits = np.uint64(0)
    for k in range(0, 24, 8):
        low = mixed(word + ODD)
        word = mixed(low + ODD)
        bits = decided(low, word, kept >> k, bits)
    return bits


@inlined
def chosen(key, piece, column, kept):
    """A bit for each element of a vector from `column` on, set with a chance of kept / CHANCES.

    Bit by bit of `kept`, from the lowest: a chance of one half is added to, or halved with, what
    the bits so far have given. The last 8 bits leave few elements that depend on those before.
    """
    low = mixed(key + np.uint64(piece) * ODD)
    high = mixed(low + ODD)
    bits = decided(low, high, kept >> 24, np.uint64(0))
    if kept % EIGHT_BITS != 0:
        open_bits = decided(low, high, kept >> 24, ~np.uint64(0)) & ~bits & np.uint64(0xFFFF)
        if open_bits != 0:
            bits |= open_bits & finer(high, kept)
    return np.int64((bits & np.uint64(0xFFFF)) >> np.uint64(column % GROUP))


@inlined
def masked(x, key, piece, column, kept):
    """x m CHANCES / kept, where m is 1 with a chance of kept / CHANCES, else 0."""
    return simd.keep_chosen(x, chosen(key, piece, column, kept)) * (CHANCES / kept)


class Args(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    kept: Size  # of CHANCES
    key: Slot
    record: Size  # its number: records with one key leave out different elements
    plus: Differentiable


args, grads_of = readers(Args)


@jit
def dropout_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x, kept, slot, record, plus = args(operands, at)
    row, pieces = row_stride(values, width), -(-width // GROUP)
    seed = inputs[slot]
    key = mixed(np.uint64(seed) + np.uint64(record) * ODD)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        for c in range(0, row, simd.lanes(values)):
            i = r * row + c
            number = simd.load(values, x + i)
            if seed != 0 and kept < CHANCES:
                number = masked(number, key, r * pieces + c // GROUP, c, kept)
            simd.store(
                values, out + i, number if plus == NONE else simd.load(values, plus + i) + number
            )


@jit
def dropout_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, _, kept, slot, record, _ = args(operands, at)
    g = grads_of(operands, back)
    row, pieces = row_stride(values, width), -(-width // GROUP)
    seed = inputs[slot]
    key = mixed(np.uint64(seed) + np.uint64(record) * ODD)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        for c in range(0, row, simd.lanes(values)):
            i = r * row + c
            passed = simd.load(grads, g.dout + i)
            if seed != 0 and kept < CHANCES:
                passed = masked(passed, key, r * pieces + c // GROUP, c, kept)
            add_to(grads, g.dx + i, passed, g.overwrite_dx)
    if g.dplus != NONE:
        begin, count = first * row, (last - first) * row
        pass_gradient(grads, g.dplus + begin, g.dout + begin, count, g.overwrite_dplus)


DROPOUT = ArrayOp(
    "dropout", Args, dropout_forward, dropout_backward, adds_to="plus", row_by_row=True
)
