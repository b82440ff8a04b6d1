"""Gradients that no optimizer asks for: those of arrays that stay as they are, such as data."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.graph.records import Record
from tapegpt.kernels.layout import NONE, OPCODE
from tapegpt.kernels.op import ArrayOp, gradient_place
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.optim.packing import Packing
from tapegpt.tape.types import Ids

if TYPE_CHECKING:
    from tapegpt.tape import Tape


class Fixed(NamedTuple):
    """Which arrays products pass no gradient to, and what follows from that."""

    arrays: frozenset[int]
    operands: Ids  # of all records
    clear: NDArray[np.int64]  # see kernels/loops/descent.py


def fixed_arrays(tape: Tape, packing: Packing) -> Fixed:
    """The arrays that no record computes and the optimizer does not move.

    A product with them passes a gradient to its other operand alone: with data that is half of its
    reverse sweep.
    """
    records, operands = tape._record_rows(), np.array(tape._operands, np.int64)
    optional = [
        code
        for code, operation in enumerate(OPERATIONS)
        if isinstance(operation, ArrayOp) and operation.optional
    ]
    codes = records[:, 0] & OPCODE
    arrays = set()
    for number in np.flatnonzero(np.isin(codes, optional)).tolist():
        operation = OPERATIONS[codes[number]]
        assert isinstance(operation, ArrayOp)
        _, out, at, back = records[number].tolist()
        record = Record(number, operation, out, at, back, operands)
        for name in operation.optional:
            array = record.argument(name)
            if not packing.moves(array) and not (records[:, 1] == array).any():
                operands[back + gradient_place(operation.args, name)] = NONE
                arrays.add(array)
    bounds = [0, *(x for a in sorted(arrays) for x in (a, a + tape.extents[a])), len(tape)]
    clear = np.array(list(pairwise(bounds))[::2], np.int64)
    return Fixed(frozenset(arrays), operands, clear)
