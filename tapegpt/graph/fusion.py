"""Records that become one: a ReLU part of the linear before it, three linears a single one.

Each pass takes and returns a program with the same results, but for the rounding of sums that
join_linears takes in another order. They are for programs in which every array but the parameters
is used by array operations that pass it a gradient, and none twice by one record; weights and
tables are parameters; and attention alone takes what the linears before it give, which read no
padding of gradients.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import numpy as np

from tapegpt.graph.records import Record, array_records
from tapegpt.kernels.ops.attention import ATTENTION
from tapegpt.kernels.ops.elementwise import RELU as ARRAY_RELU
from tapegpt.kernels.ops.linear import LINEAR
from tapegpt.kernels.ops.product.matrix import RELU
from tapegpt.kernels.ops.streaming_attention import STREAMING_ATTENTION
from tapegpt.kernels.program import TapeArrays


def fuse_relu(tape: TapeArrays) -> TapeArrays:
    """Leave out the ReLUs between two linears that nobody else reads.

    The first linear then writes what the ReLU would have written. The second passes it a gradient
    only where that is positive.
    """
    readers: dict[int, list[Record]] = defaultdict(list)
    records = array_records(tape)
    for record in records:
        for array in record.arrays(record.operation.differentiable):
            readers[array].append(record)
    rows, operands = tape.records.copy(), tape.operands.copy()
    kept = np.ones(len(rows), bool)
    for before in records:
        if before.operation is not LINEAR or len(readers[before.out]) != 1:
            continue
        (relu,) = readers[before.out]
        if relu.operation is not ARRAY_RELU or len(readers[relu.out]) != 1:
            continue
        (after,) = readers[relu.out]
        if after.operation is LINEAR and after.argument("x") == relu.out:
            operands[before.place("activation")] = RELU
            operands[after.place("activation_of_x")] = RELU
            rows[before.number, 1] = operands[before.dout_place] = relu.out
            kept[relu.number] = False
    return tape._replace(records=rows[kept], operands=operands)


def join_linears(
    tape: TapeArrays, extents: Mapping[int, int], stride: Callable[[int], int], joint: int
) -> TapeArrays:
    """Make one of the three linears that give an attention q, k and v, which nobody else reads.

    Where their weights lie one after the other they are one matrix. stride: elements from one row
    of so many columns to the next. joint: room for a result, see joint_width; it will do for all.
    To be done last.
    """
    rows, operands = tape.records.copy(), tape.operands.copy()
    kept = np.ones(len(rows), bool)
    linears = [record for record in array_records(tape) if record.operation is LINEAR]
    largest_room = max((x.argument("room") for x in linears), key=extents.__getitem__, default=0)
    for first, last, attention in _joinable(tape, stride):
        width = first.argument("n_out")
        operands[first.place("n_out")] = 3 * width
        operands[first.place("room")] = largest_room
        # In the reverse sweep the last one comes first.
        operands[first.overwrite_place] = operands[last.overwrite_place]
        rows[first.number, 1] = operands[first.dout_place] = joint
        kept[first.number + 1 : last.number + 1] = False

        gradients = [place for _, place in attention.gradient_places()]
        for j, name in enumerate(("q", "k", "v")):
            operands[attention.place(name)] = operands[gradients[j]] = joint + j * width
        operands[attention.place("given_row")] = stride(3 * width)
        if attention.operation is ATTENTION:
            begin = attention.place("offsets")
            offsets = operands[begin : begin + attention.argument("problems")]
            documents, columns = np.divmod(offsets, stride(width))
            offsets[:] = documents * stride(3 * width) + columns
    return tape._replace(records=rows[kept], operands=operands)


def joint_width(tape: TapeArrays, stride: Callable[[int], int]) -> int:
    """Columns of the widest result that join_linears will make."""
    return max((3 * first.argument("n_out") for first, *_ in _joinable(tape, stride)), default=0)


def _joinable(
    tape: TapeArrays, stride: Callable[[int], int]
) -> Iterator[tuple[Record, Record, Record]]:
    """The first and the last of three linears, and an attention, that can be joined."""
    records = array_records(tape)
    for i in range(len(records) - 3):
        *linears, attention = records[i : i + 4]
        if attention.operation not in (ATTENTION, STREAMING_ATTENTION):
            continue
        if any(linear.operation is not LINEAR for linear in linears):
            continue
        if any(b.number != a.number + 1 for a, b in pairwise(records[i : i + 4])):
            continue
        alike = ("rows", "n_in", "n_out", "x", "start")
        matrix = linears[0].argument("n_out") * stride(linears[0].argument("n_in"))
        weights = [linears[0].argument("w") + j * matrix for j in range(3)]
        if (
            all(linear.arrays(alike) == linears[0].arrays(alike) for linear in linears)
            and attention.arrays(("q", "k", "v")) == [linear.out for linear in linears]
            and [linear.argument("w") for linear in linears] == weights
        ):
            yield linears[0], linears[2], attention
