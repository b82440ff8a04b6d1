"""What is done to a recorded program before it is replayed many times.

Each pass takes and returns a `Machine` whose results are the same, but for the rounding of sums
that join_linears takes in another order. They are for programs in which every array but the
parameters is used by array operations, and none twice by one record; weights and tables are
parameters, what a recurrence carries is used after it too, and attention alone takes what the
linears before it give, which read no padding of gradients.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from tapegpt.kernels import op
from tapegpt.kernels.ops.product.matmul import RELU
from tapegpt.kernels.program import Machine

# Places in the argument list of a linear.
N_OUT, X, W, PANEL, ACTIVATION, ACTIVATION_OF_X = 2, 3, 4, 6, 7, 8

# Places in that of attention: those of q, k and v, and of how they lie in rows.
Q, GIVEN_ROW, PROBLEMS, OFFSETS = 3, 14, 15, 16

# Places in the list for the reverse sweep, see records.py.
FRESH, DOUT, DX = 0, 1, 2

# Operations that add something to an array, as its number in DIFFERENTIABLE: the gradient of their
# result is its own, and where nobody else needs the array they can add to it in place.
ADDED_TO = {**dict.fromkeys(op.LINEARS, 1), op.GATHERED_LINEAR: 1, op.DROPOUT: 1, op.ARRAY_ADD: 0}

# Whose values are still needed when the forward sweep is over: operands, as places in the argument
# list, and results.
OPERANDS_NEEDED = {
    **dict.fromkeys(op.LINEARS, (3,)),
    op.GATHERED_LINEAR: (3,),
    op.ARRAY_RELU: (2,),
    op.TOPK: (2,),
}
RESULT_NEEDED = {op.RMSNORM, op.ARRAY_SOFTMAX}


def fuse_relu(machine: Machine) -> Machine:
    """Leave out the ReLUs between two linears that nobody else listens to.

    The first linear then writes what the ReLU would have written. The second passes it a gradient
    only where that is positive.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for i, record in enumerate(machine.records):
        for place in op.DIFFERENTIABLE.get(int(record[0]), ()):
            users[int(machine.operands[int(record[2]) + place])].append(i)
    records, operands = machine.records.copy(), machine.operands.copy()
    kept = np.ones(len(records), bool)
    for before in np.flatnonzero(np.isin(records[:, 0], [*op.LINEARS])):
        match users[int(records[before, 1])]:
            case [relu] if records[relu, 0] == op.ARRAY_RELU:
                match users[int(records[relu, 1])]:
                    case [after] if _is_linear_of(machine, after, int(records[relu, 1])):
                        operands[records[before, 2] + ACTIVATION] = RELU
                        operands[records[after, 2] + ACTIVATION_OF_X] = RELU
                        records[before, 1] = records[relu, 1]
                        operands[records[before, 3] + DOUT] = records[relu, 1]
                        kept[relu] = False
    return machine._replace(records=records[kept], operands=operands)


def _is_linear_of(machine: Machine, i: int, x: int) -> bool:
    opcode, _, at, _ = machine.records[i].tolist()
    return bool(opcode in op.LINEARS and machine.operands[at + X] == x)


def mark_overwritten(machine: Machine, num_params: int) -> Machine:
    """Set the bits of `fresh` in every record that is the last to use an array.

    The last record to use an array is the first to pass it a gradient.
    """
    operands = machine.operands.copy()
    used: set[int] = set()
    for opcode, _, at, back in machine.records[::-1].tolist():
        for bit, place in enumerate(op.DIFFERENTIABLE.get(opcode, ())):
            node = int(operands[at + place])
            if node >= num_params and node not in used:
                operands[back + FRESH] |= 1 << bit
                used.add(node)
    return machine._replace(operands=operands)


class Places:
    """Where arrays lie that are not all needed at once: where they were recorded, or where another
    of the same size was until then.
    """

    def __init__(self, extents: Mapping[int, int]) -> None:
        self._extents = extents
        self._taken: dict[int, int] = {}
        self._left: dict[int, list[int]] = defaultdict(list)  # by size

    def __contains__(self, array: int) -> bool:
        return array in self._taken

    def __getitem__(self, array: int) -> int:
        return self._taken[array]

    def take(self, array: int) -> int:
        """The place of an array from now on: the one it has, or the one left last, still cached."""
        if array not in self._taken:
            left = self._left[self._extents[array]]
            self._taken[array] = left.pop() if left else array
        return self._taken[array]

    def hand_on(self, array: int, other: int) -> None:
        """Give the place of an array to another, if that has none yet."""
        if other not in self._taken:
            self._taken[other] = self._taken.pop(array)

    def leave(self, arrays: Iterable[int]) -> None:
        for array in arrays:
            if array in self._taken:
                self._left[self._extents[array]].append(self._taken.pop(array))


def share_gradients(machine: Machine, num_params: int, extents: Mapping[int, int]) -> Machine:
    """Let gradients that are not needed at the same time lie in the same place: in the caches.

    The gradient of an array is needed from the last record that uses it back to the one that makes
    it. extents: how many nodes every array takes. To be done after mark_overwritten, for what lies
    there when an array's turn comes is another's.
    """
    if _recurs(machine):
        return machine
    operands, places = machine.operands.copy(), Places(extents)
    for opcode, out, at, back in machine.records[::-1].tolist():
        if opcode not in op.DIFFERENTIABLE:
            continue
        arrays = [int(operands[at + place]) for place in op.DIFFERENTIABLE[opcode]]
        scratch = [int(operands[at + place]) for place in op.SCRATCH.get(opcode, ())]
        if out in places:
            operands[back + DOUT] = places[out]
            if opcode in ADDED_TO and arrays[ADDED_TO[opcode]] >= num_params:
                places.hand_on(out, arrays[ADDED_TO[opcode]])
        for i, array in enumerate((*arrays, *scratch)):
            if array >= num_params:
                operands[back + DX + i] = places.take(array)
        places.leave((out, *scratch))
    return machine._replace(operands=operands)


def share_values(machine: Machine, extents: Mapping[int, int], keep: Iterable[int]) -> Machine:
    """The same for values that the reverse sweep does not need, nor anybody else but those to keep.

    To be done late: from then on a node may stand for several arrays.
    """
    if _recurs(machine):
        return machine
    last_use = _last_uses(machine, extents)
    for array in keep:
        last_use.pop(array, None)
    records, operands, places = machine.records.copy(), machine.operands.copy(), Places(extents)
    for i, (opcode, out, at, _) in enumerate(records.tolist()):
        arrays = []
        for place in op.DIFFERENTIABLE.get(opcode, ()):
            array = int(operands[at + place])
            arrays.append(array)
            if array in last_use:
                operands[at + place] = places[array]
        if out in last_use:
            if opcode in ADDED_TO and last_use.get(arrays[ADDED_TO[opcode]]) == i:
                places.hand_on(arrays[ADDED_TO[opcode]], out)
            records[i, 1] = places.take(out)
        places.leave(array for array in arrays if last_use.get(array) == i)
    return machine._replace(records=records, operands=operands)


def join_linears(
    machine: Machine, extents: Mapping[int, int], stride: Callable[[int], int], joint: int
) -> Machine:
    """Make one of the three linears that give an attention q, k and v, which nobody else needs.

    Where their weights lie one after the other they are one matrix. stride: elements from one row
    of so many columns to the next. joint: room for a result, see joint_width; it will do for all.
    To be done last.
    """
    records, operands = machine.records.copy(), machine.operands.copy()
    kept = np.ones(len(records), bool)
    linears = [at for opcode, _, at, _ in records.tolist() if opcode in op.LINEARS]
    panels = {int(operands[at + PANEL]) for at in linears}
    for i in _joinable(machine, stride):
        _, _, at, back = records[i].tolist()
        width = int(operands[at + N_OUT])
        operands[at + N_OUT] = 3 * width
        operands[at + PANEL] = max(panels, key=extents.__getitem__)
        # In the reverse sweep the last one comes first.
        operands[back + FRESH] = operands[records[i + 2, 3] + FRESH]
        records[i, 1] = operands[back + DOUT] = joint
        kept[i + 1 : i + 3] = False

        _, _, at, back = records[i + 3].tolist()
        for j in range(3):
            operands[at + Q + j] = operands[back + DX + j] = joint + j * width
        operands[at + GIVEN_ROW] = stride(3 * width)
        offsets = operands[at + OFFSETS : at + OFFSETS + operands[at + PROBLEMS]]
        documents, columns = np.divmod(offsets, stride(width))
        offsets[:] = documents * stride(3 * width) + columns
    return machine._replace(records=records[kept], operands=operands)


def joint_width(machine: Machine, stride: Callable[[int], int]) -> int:
    """Columns of the widest result that join_linears will make."""
    ats = [int(machine.records[i, 2]) for i in _joinable(machine, stride)]
    return max((3 * int(machine.operands[at + N_OUT]) for at in ats), default=0)


def _joinable(machine: Machine, stride: Callable[[int], int]) -> Iterator[int]:
    """The first of three linears and an attention that can be joined."""
    operands = machine.operands
    for i in range(len(machine.records) - 3):
        codes, outs, ats, _ = machine.records[i : i + 4].T.tolist()
        q, k, v, attention = ats
        if not {*codes[:3]} <= op.LINEARS or not op.ATTENTION <= codes[3] < op.CROSS_ENTROPY:
            continue
        n_in, n_out, _, w = operands[q + 1 : q + 5].tolist()
        alike = [operands[[*range(at, at + W), *range(at + W + 1, at + PANEL)]] for at in ats[:3]]
        weights = [int(operands[at + W]) for at in (q, k, v)]
        if (
            all((other == alike[0]).all() for other in alike)
            and operands[attention + Q : attention + Q + 3].tolist() == outs[:3]
            and weights == [w + j * n_out * stride(n_in) for j in range(3)]
        ):
            yield i


def _last_uses(machine: Machine, extents: Mapping[int, int]) -> dict[int, int]:
    """The last record to use an array, of those whose values only the forward sweep needs."""
    last_use: dict[int, int] = {}
    for i, (opcode, out, at, _) in enumerate(machine.records.tolist()):
        for place in op.DIFFERENTIABLE.get(opcode, ()):
            array = int(machine.operands[at + place])
            if array in last_use:
                last_use[array] = i
        for place in OPERANDS_NEEDED.get(opcode, ()):
            last_use.pop(int(machine.operands[at + place]), None)
        if opcode in op.DIFFERENTIABLE and opcode not in RESULT_NEEDED and out in extents:
            last_use[out] = i
    return last_use


def _recurs(machine: Machine) -> bool:
    """Whether some arrays are needed once more, for the position after or before."""
    return bool((machine.records[:, 0] == op.PREVIOUS).any())
