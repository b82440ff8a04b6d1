"""The machine: replay a stretch of records forward, or backward for the gradients.

Records lie in topological order, so the forward sweep is one loop up and the reverse sweep one
loop down. `window` is the part of the batch that array operations on batch rows cover, see
rows.py. The reverse sweep adds to `grads`: the caller clears what no record overwrites, and seeds
the root.

What lies between PREVIOUS and CARRY is replayed once for every position of the window, first to
last, or back.

Array operations are called by address, one at a time, and so are whole stretches of scalar
operations: a program pays, in compile time, only for what it uses.
"""

import numpy as np

from tapegpt.kernels import op
from tapegpt.kernels.compile.indirect_call import (
    BACKWARD,
    FORWARD,
    call_backward,
    call_forward,
    call_scalars,
    hand,
    read_record,
)
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.ops.recurrence import position_window
from tapegpt.kernels.ops.scalar.dot import (
    dot_backward,
    dot_forward,
    dot_run_backward,
    dot_run_forward,
)
from tapegpt.kernels.ops.scalar.formulas import (
    add_backward,
    add_forward,
    detach_forward,
    div_backward,
    div_forward,
    exp_backward,
    exp_forward,
    log_backward,
    log_forward,
    lookup_backward,
    lookup_forward,
    mul_backward,
    mul_forward,
    neg_backward,
    neg_forward,
    pow_backward,
    pow_forward,
    relu_backward,
    relu_forward,
    scale_backward,
    scale_forward,
    softplus_backward,
    softplus_forward,
    sub_backward,
    sub_forward,
    tanh_backward,
    tanh_forward,
    vanishes,
)
from tapegpt.kernels.ops.scalar.reduce import (
    softmax_backward,
    softmax_forward,
    sum_backward,
    sum_forward,
)


@jit
def scalars_forward(values, grads, records, operands, inputs, i, end):
    """Compute scalar records from i on; returns the first that is not one, or end."""
    while i < end:
        code, out, a, b = read_record(records, i)
        if code == op.ADD:
            i = add_forward(values, records, i, end)
            continue
        if code == op.MUL:
            i = mul_forward(values, records, i, end)
            continue
        i += 1
        node, at = np.int64(out), np.int64(a)
        if code == op.SUB:
            sub_forward(values, out, a, b)
        elif code == op.DIV:
            div_forward(values, out, a, b)
        elif code == op.NEG:
            neg_forward(values, out, a)
        elif code == op.SCALE:
            scale_forward(values, out, a, b)
        elif code == op.POW:
            pow_forward(values, out, a, b)
        elif code == op.EXP:
            exp_forward(values, out, a)
        elif code == op.LOG:
            log_forward(values, out, a)
        elif code == op.RELU:
            relu_forward(values, out, a)
        elif code == op.TANH:
            tanh_forward(values, out, a)
        elif code == op.SOFTPLUS:
            softplus_forward(values, out, a)
        elif code == op.DETACH:
            detach_forward(values, out, a)
        elif code == op.SUM:
            sum_forward(values, operands, node, at)
        elif code == op.DOT:
            dot_forward(values, operands, node, at)
        elif code == op.DOT_RUN:
            dot_run_forward(values, operands, node, at)
        elif code == op.LOOKUP:
            lookup_forward(values, operands, inputs, node, at)
        elif code == op.SOFTMAX:
            softmax_forward(values, operands, node, at)
        else:
            return i - 1
    return i


@jit
def scalars_backward(values, grads, records, operands, inputs, i, begin):
    """Carry gradients back through scalar records from i down; returns the first that is not one,
    or begin - 1.
    """
    while i >= begin:
        code, out, a, b = read_record(records, i)
        if code == op.ADD:
            i = add_backward(values, grads, records, i, begin)
            continue
        if code == op.MUL:
            i = mul_backward(values, grads, records, i, begin)
            continue
        if code >= op.FIRST_CALLED:
            break
        i -= 1
        node, at, dout = np.int64(out), np.int64(a), grads[out]
        if code < op.FIRST_SEVERAL and vanishes(dout):
            continue
        if code == op.SUB:
            sub_backward(grads, dout, a, b)
        elif code == op.DIV:
            div_backward(values, grads, out, dout, a, b)
        elif code == op.NEG:
            neg_backward(grads, dout, a)
        elif code == op.SCALE:
            scale_backward(values, grads, dout, a, b)
        elif code == op.POW:
            pow_backward(values, grads, dout, a, b)
        elif code == op.EXP:
            exp_backward(values, grads, out, dout, a)
        elif code == op.LOG:
            log_backward(values, grads, dout, a)
        elif code == op.RELU:
            relu_backward(values, grads, dout, a)
        elif code == op.TANH:
            tanh_backward(values, grads, out, dout, a)
        elif code == op.SOFTPLUS:
            softplus_backward(values, grads, out, dout, a)
        elif code == op.DETACH:
            pass
        elif code == op.SUM:
            sum_backward(grads, operands, dout, at)
        elif code == op.DOT:
            dot_backward(values, grads, operands, dout, at)
        elif code == op.DOT_RUN:
            dot_run_backward(values, grads, operands, dout, at)
        elif code == op.LOOKUP:
            lookup_backward(grads, operands, inputs, node, at)
        elif code == op.SOFTMAX:
            softmax_backward(values, grads, operands, node, at)
    return i


@inlined
def hand_over(machine):
    """The arrays of a machine, as kernels get them."""
    return (
        machine.kernels,
        hand(machine.values),
        hand(machine.grads),
        hand(machine.records),
        hand(machine.operands),
        hand(machine.inputs),
    )


@jit
def forward_sweep(machine, begin, end, window):
    """Compute the values of records begin to end - 1, in order."""
    kernels, values, grads, records, operands, inputs = hand_over(machine)
    i, previous, here = begin, end, window
    while i < end:
        code, out, at, _ = read_record(records, i)
        if code < op.FIRST_CALLED:
            address = kernels[op.SCALARS, FORWARD]
            i = call_scalars(address, values, grads, records, operands, inputs, i, end)
        elif code == op.CARRY:
            if here[1] < window[1]:
                i, here = previous, position_window(inputs, operands[at], here[1])
            else:
                i, here = i + 1, window
        else:
            # The first time, not back from CARRY.
            if code == op.PREVIOUS and i != previous:
                previous, here = i, position_window(inputs, operands[at + 3], window[0])
            call_forward(kernels[code, FORWARD], values, operands, inputs, out, at, here)
            i += 1


@jit
def reverse_sweep(machine, begin, end, window):
    """Carry gradients from the outputs of records end - 1 down to begin to their operands."""
    kernels, values, grads, records, operands, inputs = hand_over(machine)
    i, carry, here = end - 1, end, window
    while i >= begin:
        code, out, at, back = read_record(records, i)
        if code < op.FIRST_CALLED:
            address = kernels[op.SCALARS, BACKWARD]
            i = call_scalars(address, values, grads, records, operands, inputs, i, begin)
        elif code == op.CARRY:
            carry, here = i, position_window(inputs, operands[at], window[1] - 1)
            i -= 1
        else:
            # topk has none: its result are numbers of columns.
            if kernels[code, BACKWARD] != 0:
                call_backward(
                    kernels[code, BACKWARD],
                    values, grads, operands, inputs, out, at, back, here,
                )  # fmt: skip
            i -= 1
            if code == op.PREVIOUS:
                if here[0] > window[0]:
                    i, here = carry - 1, position_window(inputs, operands[at + 3], here[0] - 1)
                else:
                    here = window
