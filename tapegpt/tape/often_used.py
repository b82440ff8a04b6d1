"""Which nodes of a tape have so many uses that a float32 gradient loses digits."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.layout import NONE, OPCODE, OPCODE_BITS
from tapegpt.kernels.loops.precise_sweep import NEVER, OftenUsed
from tapegpt.kernels.op import ListOp, place
from tapegpt.kernels.registry import FIRST_CALLED, OPERATIONS
from tapegpt.tape.handles import MULTIPLY_ADD
from tapegpt.tape.types import Ids, Shape

OFTEN = 4096  # uses
STRETCH = 64  # records from one pause of the sweep to the next, at most


def often_used(
    records: NDArray[np.uint32], operands: Ids, size: int, shapes: Mapping[int, Shape]
) -> OftenUsed:
    """The nodes below size that records, (count, 4), and operands name OFTEN times and more.

    Some of these numbers are sizes and not nodes, but the lengths of lists, which repeat, are left
    out. They may add a node that has fewer uses, which costs time and changes nothing else.
    """
    codes = records[:, 0] & OPCODE
    lists = [code for code in np.unique(codes) if isinstance(OPERATIONS[code], ListOp)]
    operands = _without_lengths(records, operands, lists)
    pairs = records[(codes < FIRST_CALLED) & ~np.isin(codes, lists)]
    code, out, left, right = pairs.astype(np.int64).T
    added = code & OPCODE == MULTIPLY_ADD
    sums = (out - (code >> OPCODE_BITS))[added]
    uses = np.zeros(size, np.int64)
    for named in (left, right, sums, operands):
        uses += np.bincount(named[(named >= 0) & (named < size)], minlength=size)
    found = np.flatnonzero(uses >= OFTEN)
    whole = [
        np.arange(i, i + shapes[i].rows * shapes[i].stride) for i in found.tolist() if i in shapes
    ]
    nodes = np.unique(np.concatenate([found, *whole]))
    # Results lie in the order of their records, and what uses a node comes after it.
    before = np.searchsorted(records[:, 1], nodes, side="right")
    stops = np.union1d(before, np.arange(0, len(records), STRETCH))
    return OftenUsed(nodes, before, stops, np.zeros(len(nodes))) if len(nodes) else NEVER


def _without_lengths(records: NDArray[np.uint32], operands: Ids, lists: Sequence[int]) -> Ids:
    """The operands, with NONE for how long each list is, of records with these opcodes."""
    nodes = operands.copy()
    for code in lists:
        operation = OPERATIONS[code]
        assert isinstance(operation, ListOp)
        begins = records[records[:, 0] & OPCODE == code, 2].astype(np.int64)
        nodes[begins + place(operation.args, "length")] = NONE
    return nodes
