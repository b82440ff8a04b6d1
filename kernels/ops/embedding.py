"""out[r] = the sum over tables of table[inputs[slot + r]]: token and position embeddings together.

tables: (any rows, C); out: (R, C). dtable[inputs[slot + r]] += dout[r]
"""

from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Rest, Rows, Size, readers


class Args(NamedTuple):
    rows: Rows
    width: Size
    tables: Size
    pairs: Rest  # of a table and its slot


args, grads_of = readers(Args)


@jit
def embed_forward(values, operands, inputs, out, at, batch_range):
    rows, width, count, pairs = args(operands, at)
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(rows, batch_range)
    for r in range(first, last):
        for column in range(0, columns, simd.lanes(values)):
            total = simd.splat(values, 0)
            for i in range(pairs, pairs + 2 * count, 2):
                chosen = operands[i] + inputs[operands[i + 1] + r] * row
                total = total + simd.load(values, chosen + column)
            simd.store(values, out + r * row + column, total)


@jit
def embed_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, count, pairs = args(operands, at)
    row, columns = row_stride(values, width), padded(values, width)
    dout = grads_of(operands, back).dout
    first, last = row_range(rows, batch_range)
    for i in range(pairs, pairs + 2 * count, 2):
        table, slot = operands[i], operands[i + 1]
        for column in range(0, columns, simd.lanes(values)):
            # Rows with one index lie together. Their gradients are summed in a register: loads do
            # not wait for the stores before them.
            passed = simd.splat(values, 0)
            for r in range(first, last):
                passed = passed + simd.load(grads, dout + r * row + column)
                if r + 1 == last or inputs[slot + r + 1] != inputs[slot + r]:
                    dtable = table + inputs[slot + r] * row + column
                    simd.store(grads, dtable, simd.load(grads, dtable) + passed)
                    passed = simd.splat(values, 0)


EMBED = ArrayOp("embed", Args, embed_forward, embed_backward, row_by_row=True)
