"""What the sweeps of an optimizer leave out.

Results and gradients within chains of elementwise records; gradients that it does not ask for, of
arrays that stay as they are, such as data; and clearing gradients that are overwritten.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.graph.records import Record
from tapegpt.kernels.layout import NONE, NOTHING_BACK, OPCODE
from tapegpt.kernels.op import ArrayOp, Kind, fields_of_kind, gradient_place, with_overwrite
from tapegpt.kernels.ops.recurrence import PREVIOUS
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.optim.chains import Program
from tapegpt.optim.packing import Packing
from tapegpt.tape.types import Floats, Ids

if TYPE_CHECKING:
    from tapegpt.tape import Tape

BACK = 3  # the field of a record


class Fixed(NamedTuple):
    """Which nodes get no gradient, and the program for that."""

    without_gradient: frozenset[int]
    records: NDArray[np.uint32]  # those that are swept, (count, 4)
    operands: Ids  # of all records
    clear: NDArray[np.int64]  # see kernels/loops/descent.py
    numbers: tuple[tuple[int, float], ...]  # for which kernels were compiled: nodes, their values

    def is_of(self, values: Floats) -> bool:
        """Whether the program is that of these values of a tape."""
        return all(values.item(node) == number for node, number in self.numbers)


def fixed_arrays(tape: Tape, packing: Packing, program: Program) -> Fixed:
    """Leave out of the reverse sweep what leads only to arrays that the optimizer does not move.

    An operation whose operands are all fixed is left out: its result is fixed too. A product with
    one fixed operand computes the gradient of the other alone, half of the work.
    """
    records, operands, within, numbers = program
    codes = records[:, 0] & OPCODE
    array_codes = [code for code, op in enumerate(OPERATIONS) if isinstance(op, ArrayOp)]
    known = np.flatnonzero(np.isin(codes, array_codes)).tolist()
    made = set(records[known, 1].tolist())
    fixed = {array for array in tape._shapes if array not in made and not packing.moves(array)}
    without_gradient = set(within)
    for number in known:
        operation = OPERATIONS[codes[number]]
        assert isinstance(operation, ArrayOp)
        _, out, at, back = records[number].tolist()
        record = Record(number, operation, out, at, back, operands)
        names = fields_of_kind(operation.args, Kind.DIFFERENTIABLE, Kind.PARAMETER)
        given = {array for array in record.arrays(names) if array != NONE}
        if given and given <= fixed and out in tape._shapes:
            records[number, BACK] = NOTHING_BACK
            fixed.add(out)
            without_gradient |= {out, *given}
            continue
        for name in operation.optional:
            array = record.argument(name)
            if array in fixed:
                operands[back + gradient_place(operation.args, name)] = NONE
                without_gradient.add(array)
    not_cleared = without_gradient | overwritten(tape, records, operands)
    ends = {node: node + tape.extents.get(node, 1) for node in not_cleared}
    bounds = [0, *(x for node in sorted(ends) for x in (node, ends[node])), len(tape)]
    clear = np.array(list(pairwise(bounds))[::2], np.int64)
    return Fixed(frozenset(without_gradient), records, operands, clear, numbers)


def overwritten(tape: Tape, records: NDArray[np.uint32], operands: Ids) -> set[int]:
    """Let the first record that reaches an array in the reverse sweep overwrite its gradient.

    Returns these arrays, which need no clearing. Returns none if the program has operations on
    scalars or a scan, or if its sweep pauses for nodes that are used often.
    """
    operations = [OPERATIONS[code] for code in (records[:, 0] & OPCODE).tolist()]
    unknown = any(not isinstance(x, ArrayOp) or x is PREVIOUS for x in operations)
    if unknown or len(tape._often_used().nodes):
        return set()
    written: set[int] = set()
    used: set[int] = set()
    for number in range(len(records) - 1, -1, -1):
        operation = operations[number]
        assert isinstance(operation, ArrayOp)
        _, out, at, back = records[number].tolist()
        if back == NOTHING_BACK or operation.backward is None:
            continue
        record = Record(number, operation, out, at, back, operands)
        names = with_overwrite(operation.args)
        given = record.arrays(names)
        for rest in fields_of_kind(operation.args, Kind.REST):
            used.update(operands[record.place(rest) : back].tolist())
        for bit, (name, array) in enumerate(zip(names, given, strict=True)):
            parameter = name in fields_of_kind(operation.args, Kind.PARAMETER)
            if (
                array in tape._shapes
                and array not in used
                and given.count(array) == 1
                and (not parameter or name in operation.overwrites)
            ):
                operands[record.overwrite_place] |= 1 << bit
                written.add(array)
        used.update(given)
    return written
