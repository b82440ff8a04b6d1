"""What is done to a recorded program before it is replayed many times.

Each pass takes and returns a `Machine` whose results are the same. They are for programs in which
every array but the parameters is used by array operations, and none twice by one record; weights
and tables are parameters, and what a recurrence carries is used after it too.
"""

from collections import defaultdict

import numpy as np

from tapegpt.kernels import records as op
from tapegpt.kernels.matmul import RELU
from tapegpt.kernels.program import Machine

# The array operands that an operation passes a gradient to, as places in its argument list. The
# kernel can overwrite those gradients; it always adds to the gradients of weights and tables.
DIFFERENTIABLE = {
    op.LINEAR: (3, 6),
    op.RMSNORM: (2,),
    **{op.ATTENTION + i: (3, 4, 5) for i in range(5)},
    op.CROSS_ENTROPY: (2,),
    op.ARRAY_SOFTMAX: (2,),
    op.ARRAY_RELU: (2,),
    op.ARRAY_ADD: (2, 3),
    op.ARRAY_SCALE: (2,),
    op.ARRAY_MEAN: (2,),
    op.GATHERED_LINEAR: (3, 7),
    op.DROPOUT: (2, 6),
    op.PREVIOUS: (2,),
}

# Places in the argument list of a linear.
X, ACTIVATION, ACTIVATION_OF_X = 3, 8, 9


def hoist_constants(machine: Machine) -> tuple[Machine, int]:
    """Move the transposes of parameters to the front: once an update is enough. Returns how many.

    They depend on nothing but parameters.
    """
    constant = machine.records[:, 0] == op.TRANSPOSE
    order = np.argsort(~constant, kind="stable")
    return machine._replace(records=machine.records[order]), int(constant.sum())


def fuse_relu(machine: Machine) -> Machine:
    """Leave out the ReLUs between two linears that nobody else listens to.

    The first linear then writes what the ReLU would have written. The second passes it a gradient
    only where that is positive.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for i, record in enumerate(machine.records):
        for place in DIFFERENTIABLE.get(int(record[0]), ()):
            users[int(machine.operands[int(record[2]) + place])].append(i)
    records, operands = machine.records.copy(), machine.operands.copy()
    kept = np.ones(len(records), bool)
    for before in np.flatnonzero(records[:, 0] == op.LINEAR):
        match users[int(records[before, 1])]:
            case [relu] if records[relu, 0] == op.ARRAY_RELU:
                match users[int(records[relu, 1])]:
                    case [after] if _is_linear_of(machine, after, int(records[relu, 1])):
                        operands[records[before, 2] + ACTIVATION] = RELU
                        operands[records[after, 2] + ACTIVATION_OF_X] = RELU
                        records[before, 1] = records[relu, 1]
                        kept[relu] = False
    return machine._replace(records=records[kept], operands=operands)


def _is_linear_of(machine: Machine, i: int, x: int) -> bool:
    opcode, _, at, _ = machine.records[i].tolist()
    return bool(opcode == op.LINEAR and machine.operands[at + X] == x)


def mark_overwritten(machine: Machine, num_params: int) -> Machine:
    """Set the bits of `fresh` in every record that is the last to use an array.

    The last record to use an array is the first to pass it a gradient.
    """
    records = machine.records.copy()
    used: set[int] = set()
    for record in records[::-1]:
        at = int(record[2])
        for bit, place in enumerate(DIFFERENTIABLE.get(int(record[0]), ())):
            node = int(machine.operands[at + place])
            if node >= num_params and node not in used:
                record[3] |= 1 << bit
                used.add(node)
    return machine._replace(records=records)
