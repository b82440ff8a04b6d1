"""A program for a few rows at a time, with weights packed for it: one text is being sampled."""

from collections.abc import Callable

import numpy as np

from tapegpt.graph.records import array_records
from tapegpt.kernels.layout import NONE
from tapegpt.kernels.ops.linear import LINEAR, PACKED
from tapegpt.kernels.ops.product.packed import MOST_PACKED, packed_size
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import opcode

FEW_ROWS = 3  # at most: weights are read again for each


def with_packed_weights(tape: TapeArrays, lanes: int, room: Callable[[int], int]) -> TapeArrays:
    """The same program with linears for a few rows. To be done last.

    room: allocates so many nodes. Both programs share all arrays but that of records.
    """
    linears = [record for record in array_records(tape) if record.operation is LINEAR]
    sizes = [packed_size(x.argument("n_in"), x.argument("n_out"), lanes) for x in linears]
    if sum(sizes) > MOST_PACKED or not linears:
        return tape
    begins = room(sum(sizes)) + np.cumsum([0, *sizes[:-1]])
    records = tape.records.copy()
    for linear, begin in zip(linears, begins.tolist(), strict=True):
        assert linear.argument("packed") == NONE
        tape.operands[linear.place("packed")] = begin
        records[linear.number, 0] = opcode(LINEAR, PACKED)
    return tape._replace(records=records)
