"""The interpreter: replay a stretch of records forward, or backward for the gradients.

Records lie in topological order, so the forward sweep is one loop up and the reverse sweep one
loop down. The batch range is the part of the batch that array operations on its rows cover. The
reverse sweep adds to `grads`: the caller clears what no record overwrites, and seeds the root.

What lies between PREVIOUS and CARRY is replayed once for every position of the range, first to
last, or back.

Array operations are called by address, one at a time, and so are whole stretches of scalar
operations: a program pays, in compile time, only for what it uses.
"""

from tapegpt.kernels.compile.indirect_call import (
    BACKWARD,
    FORWARD,
    as_pointer,
    call_backward,
    call_forward,
    call_scalars,
    integers_at,
    read_record,
    records_at,
)
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NOTHING_BACK, OPCODE, BatchRange
from tapegpt.kernels.ops import recurrence
from tapegpt.kernels.ops.recurrence import carry_args, position_range, previous_args
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import FIRST_CALLED, SCALARS, opcode

PREVIOUS, CARRY = opcode(recurrence.PREVIOUS), opcode(recurrence.CARRY)


@inlined
def unpack(tape_arrays):
    """The arrays of a tape, as kernels get them."""
    return (
        tape_arrays.kernels,
        as_pointer(tape_arrays.values),
        as_pointer(tape_arrays.grads),
        as_pointer(tape_arrays.records),
        as_pointer(tape_arrays.operands),
        as_pointer(tape_arrays.inputs),
    )


@jit
def forward_sweep(tape_arrays, begin, end, batch_range):
    """Compute the values of records begin to end - 1, in order."""
    kernels, values, grads, records, operands, inputs = unpack(tape_arrays)
    i, previous, here = begin, end, batch_range
    while i < end:
        code, out, at, _ = read_record(records, i)
        if code & OPCODE < FIRST_CALLED:
            address = kernels[SCALARS, FORWARD]
            i = call_scalars(address, values, grads, records, operands, inputs, i, end)
        elif code == CARRY:
            if here.end_position < batch_range.end_position:
                starts = carry_args(operands, at).starts
                i, here = previous, position_range(inputs, starts, here.end_position)
            else:
                i, here = i + 1, batch_range
        else:
            # The first time, not back from CARRY.
            if code == PREVIOUS and i != previous:
                starts = previous_args(operands, at).starts
                previous, here = i, position_range(inputs, starts, batch_range.first_position)
            call_forward(kernels[code, FORWARD], values, operands, inputs, out, at, here)
            i += 1


@jit
def reverse_sweep(tape_arrays, begin, end, batch_range):
    """Carry gradients from the outputs of records end - 1 down to begin to their operands."""
    kernels, values, grads, records, operands, inputs = unpack(tape_arrays)
    i, carry, here = end - 1, end, batch_range
    while i >= begin:
        code, out, at, back = read_record(records, i)
        if code & OPCODE < FIRST_CALLED:
            address = kernels[SCALARS, BACKWARD]
            i = call_scalars(address, values, grads, records, operands, inputs, i, begin)
        elif code == CARRY:
            starts = carry_args(operands, at).starts
            carry, here = i, position_range(inputs, starts, batch_range.end_position - 1)
            i -= 1
        else:
            # topk has no kernel: it chooses columns, and no gradient passes.
            address = kernels[code, BACKWARD]
            if address != 0 and back != NOTHING_BACK:
                call_backward(address, values, grads, operands, inputs, out, at, back, here)
            i -= 1
            if code == PREVIOUS:
                if here.first_position > batch_range.first_position:
                    starts = previous_args(operands, at).starts
                    i, here = carry - 1, position_range(inputs, starts, here.first_position - 1)
                else:
                    here = batch_range


def make_live_sweep(sweep):
    """A sweep over a tape that is still recorded on.

    Its records, arguments and inputs are each given as a pair: an address, and how many integers
    there are. As arrays they would take longer to hand over than a few records take to compute.
    block, rows: of the batch.
    """

    @jit
    def live_sweep(kernels, values, grads, records, operands, inputs, begin, end, block, rows):
        tape_arrays = TapeArrays(
            kernels,
            values,
            grads,
            records_at(records[0], records[1]),
            integers_at(operands[0], operands[1]),
            integers_at(inputs[0], inputs[1]),
        )
        sweep(tape_arrays, begin, end, BatchRange(0, block, 0, rows))

    return live_sweep


live_forward_sweep, live_reverse_sweep = (
    make_live_sweep(forward_sweep),
    make_live_sweep(reverse_sweep),
)
