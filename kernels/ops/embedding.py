"""out = the sum of one row out of each of some tables: token and position embeddings together."""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.simd import (
    lanes,
    load,
    splat,
    store,
)


# operands: rows, width, count, table_0, slot_0, table_1, slot_1, ... : row r takes row
# inputs[slot_i + r] of table_i. Tables always accumulate.
@jit
def embed_forward(values, operands, inputs, out, at, window):
    width, count = operands[at + 1], operands[at + 2]
    row, columns = row_stride(values, width), padded(values, width)
    first, last = row_range(operands[at], window)
    for r in range(first, last):
        for column in range(0, columns, lanes(values)):
            total = splat(values, 0)
            for i in range(at + 3, at + 3 + 2 * count, 2):
                chosen = operands[i] + inputs[operands[i + 1] + r] * row
                total = total + load(values, chosen + column)
            store(values, out + r * row + column, total)


@jit
def embed_backward(values, grads, operands, inputs, out, at, back, window):
    width, count = operands[at + 1], operands[at + 2]
    row, columns = row_stride(values, width), padded(values, width)
    dout = operands[back + 1]
    first, last = row_range(operands[at], window)
    for i in range(at + 3, at + 3 + 2 * count, 2):
        table, slot = operands[i], operands[i + 1]
        for column in range(0, columns, lanes(values)):
            # Rows of one position lie together: what they pass to its row is added up first, or
            # each would wait for what the one before wrote.
            passed = splat(values, 0)
            for r in range(first, last):
                passed = passed + load(grads, dout + r * row + column)
                if r + 1 == last or inputs[slot + r + 1] != inputs[slot + r]:
                    dtable = table + inputs[slot + r] * row + column
                    store(grads, dtable, load(grads, dtable) + passed)
                    passed = splat(values, 0)
