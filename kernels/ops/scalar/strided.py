"""Scalar operations on nodes side by side: one record for many of them.

The formulas are those of scalar.py. Operands: results, count, opcode, then first, row and step for
a and for b: element j of row i has its a at the node first + i row + j step. A row has `count`
elements and the step is 1 or 0; the results follow each other. An operation with one operand has it
twice.
"""

from tapegpt.kernels import op
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.simd import (
    keep_first,
    lanes,
    load,
    relu,
    splat,
    store_part,
    sum_lanes,
    where_nonzero,
    where_positive,
)
from tapegpt.kernels.simd.math import exp_any


@inlined
def load_run(values, node, step):
    """Consecutive nodes, or one in every lane."""
    return load(values, node) if step == 1 else splat(values, values[node])


@inlined
def add_run(grads, node, step, value, count):
    """Add to the gradients of as many nodes; the lanes of `value` beyond are 0.

    Where it is one node for all, returns what to add to its gradient, else 0.
    """
    if step == 1:
        store_part(grads, node, load(grads, node) + value, count)
        return grads.dtype.type(0)
    return sum_lanes(value)


@jit
def run_forward(values, operands, inputs, out, at, window):
    results, count, code = operands[at], operands[at + 1], operands[at + 2]
    a_row, a_row_step, a_step = operands[at + 3], operands[at + 4], operands[at + 5]
    b_row, b_row_step, b_step = operands[at + 6], operands[at + 7], operands[at + 8]
    for row in range(out, out + results, count):
        for j in range(0, count, lanes(values)):
            a = load_run(values, a_row + j * a_step, a_step)
            b = load_run(values, b_row + j * b_step, b_step)
            if code == op.ADD:
                result = a + b
            elif code == op.SUB:
                result = a - b
            elif code == op.DIV:
                result = a / b
            elif code == op.EXP:
                result = exp_any(a)
            elif code == op.RELU:
                result = relu(a)
            else:  # MUL or SCALE
                result = a * b
            store_part(values, row + j, result, count - j)
        a_row += a_row_step
        b_row += b_row_step


@jit
def run_backward(values, grads, operands, inputs, out, at, back, window):
    results, count, code = operands[at], operands[at + 1], operands[at + 2]
    a_row, a_row_step, a_step = operands[at + 3], operands[at + 4], operands[at + 5]
    b_row, b_row_step, b_step = operands[at + 6], operands[at + 7], operands[at + 8]
    for row in range(out, out + results, count):
        # float64: a sum of millions in float32 would lose four digits.
        a_total, b_total = 0.0, 0.0
        for j in range(0, count, lanes(values)):
            a_node, b_node = a_row + j * a_step, b_row + j * b_step
            a, b = load_run(values, a_node, a_step), load_run(values, b_node, b_step)
            dout = keep_first(load(grads, row + j), count - j, 0)
            da, db = dout, dout
            if code == op.SUB:
                db = dout * -1.0
            elif code == op.DIV:
                da = dout / b
                db = load(values, row + j) * da * -1.0
            elif code == op.EXP:
                da = load(values, row + j) * dout
            elif code == op.RELU:
                da = where_positive(a, dout)
            elif code != op.ADD:  # MUL or SCALE
                da, db = b * dout, a * dout
            # What the root does not depend on passes nothing on, see vanishes.
            a_total += add_run(grads, a_node, a_step, where_nonzero(dout, da), count - j)
            if code <= op.DIV:  # the others have one operand, or a constant b
                b_total += add_run(grads, b_node, b_step, where_nonzero(dout, db), count - j)
        if a_step == 0:
            grads[a_row] += a_total
        if b_step == 0 and code <= op.DIV:
            grads[b_row] += b_total
        a_row += a_row_step
        b_row += b_row_step
