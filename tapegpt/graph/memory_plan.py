"""Where arrays lie: arrays that are not needed at the same time can share a place in the caches.

Each pass takes and returns a program with the same results, for the programs of fusion.py. What a
recurrence carries is read again for the position after it, so such a program is left as it is.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tapegpt.graph.records import array_records
from tapegpt.kernels.layout import NONE
from tapegpt.kernels.ops.recurrence import PREVIOUS
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import opcode


def mark_overwritten(tape: TapeArrays, num_params: int) -> TapeArrays:
    """Set the `overwrite` bit of an array in the last record to use it.

    The last record that passes an array a gradient is the first to do so.
    """
    operands = tape.operands.copy()
    used: set[int] = set()
    for record in reversed(array_records(tape)):
        if record.operation.backward is None:
            continue
        for bit, array in enumerate(record.arrays(record.operation.differentiable)):
            if array >= num_params and array not in used:
                operands[record.overwrite_place] |= 1 << bit
                used.add(array)
    return tape._replace(operands=operands)


class BufferPool:
    """Buffers for arrays with lifetimes: a buffer is a place where an array was recorded.

    extents: the nodes that every array takes. A buffer serves arrays of one size.
    """

    def __init__(self, extents: Mapping[int, int]) -> None:
        self._extents = extents
        self._held: dict[int, int] = {}
        self._free: dict[int, list[int]] = defaultdict(list)  # by size

    def __contains__(self, array: int) -> bool:
        return array in self._held

    def __getitem__(self, array: int) -> int:
        return self._held[array]

    def acquire(self, array: int) -> int:
        """The buffer of an array from now on: the one it has, or the one freed last."""
        if array not in self._held:
            free = self._free[self._extents[array]]
            self._held[array] = free.pop() if free else array
        return self._held[array]

    def transfer(self, array: int, other: int) -> None:
        """Give the buffer of an array to another, if that has none yet."""
        if other not in self._held:
            self._held[other] = self._held.pop(array)

    def release(self, arrays: Iterable[int]) -> None:
        """Free the buffers of arrays whose lifetime has ended."""
        for array in arrays:
            if array in self._held:
                self._free[self._extents[array]].append(self._held.pop(array))


def share_gradients(tape: TapeArrays, num_params: int, extents: Mapping[int, int]) -> TapeArrays:
    """Let gradients with lifetimes apart share buffers.

    The gradient of an array lives from the last record that uses it back to the one that makes it;
    where that passes none on there is none, which only a linear and what reads it alone allow.
    To be done after mark_overwritten: what lies in a buffer when an array's turn comes is
    another's.
    """
    if _recurs(tape):
        return tape
    operands, pool = tape.operands.copy(), BufferPool(extents)
    records = array_records(tape)
    fixed = {record.out for record in records if record.operation.backward is None}
    for record in reversed(records):
        if record.out in pool:
            operands[record.dout_place] = pool[record.out]
            if record.operation.adds_to:
                added_to = record.argument(record.operation.adds_to)
                if added_to >= num_params:
                    pool.transfer(record.out, added_to)
        for array, place in record.gradient_places():
            if array in fixed:
                operands[place] = NONE
            elif array >= num_params:
                operands[place] = pool.acquire(array)
        pool.release((record.out, *record.arrays(record.operation.gradient_rooms)))
    return tape._replace(operands=operands)


def share_values(tape: TapeArrays, extents: Mapping[int, int], keep: Iterable[int]) -> TapeArrays:
    """Let values with lifetimes apart share buffers, but those to keep.

    What backward kernels read lives on. To be done late: from then on a node may stand for several
    arrays.
    """
    if _recurs(tape):
        return tape
    last_use = _last_uses(tape, extents)
    for array in keep:
        last_use.pop(array, None)
    rows, operands, pool = (
        tape.records.copy(),
        tape.operands.copy(),
        BufferPool(extents),
    )
    for record in array_records(tape):
        read = record.operation.differentiable
        arrays = record.arrays(read)
        for array, name in zip(arrays, read, strict=True):
            if array in last_use:
                operands[record.place(name)] = pool[array]
        if record.out in last_use:
            if record.operation.adds_to:
                added_to = record.argument(record.operation.adds_to)
                if last_use.get(added_to) == record.number:
                    pool.transfer(added_to, record.out)
            rows[record.number, 1] = pool.acquire(record.out)
        pool.release(array for array in arrays if last_use.get(array) == record.number)
    return tape._replace(records=rows, operands=operands)


def _last_uses(tape: TapeArrays, extents: Mapping[int, int]) -> dict[int, int]:
    """The last record to use an array, of those whose values only the forward sweep reads."""
    last_use: dict[int, int] = {}
    for record in array_records(tape):
        reads = record.operation.backward_reads
        for array in record.arrays(record.operation.differentiable):
            if array in last_use:
                last_use[array] = record.number
        for array in record.arrays(tuple(name for name in reads if name != "out")):
            last_use.pop(array, None)
        if record.operation.backward and "out" not in reads and record.out in extents:
            last_use[record.out] = record.number
    return last_use


def _recurs(tape: TapeArrays) -> bool:
    """Whether some arrays are needed once more, for the position after or before."""
    return bool((tape.records[:, 0] == opcode(PREVIOUS)).any())
