"""Scalar operations on nodes side by side: one record for many of them, a vector at a time.

Element j of row i has its a at the node a + i a_row + j a_step. A row has `length` elements and a
step is 1 or 0; the results follow each other. The formulas are those of formulas.py.
"""

import textwrap
from typing import NamedTuple

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.op import Column, ListOp, generated, readers
from tapegpt.kernels.ops.scalar.formulas import FORMULAS
from tapegpt.kernels.simd.math import exp_any

# Those with two operands that a gradient passes to come first.
ROWS = tuple(sorted((f for f in FORMULAS if f.strided), key=lambda f: not f.db))
WITH_B = sum(bool(formula.db) for formula in ROWS)

# The formulas of vectors where they differ: (out, da).
OF_VECTORS = {"relu": ("simd.relu(a)", "simd.where_positive(a, dout)")}


class Args(NamedTuple):
    results: Column
    length: Column
    formula: Column  # its place in ROWS
    a: Column
    a_row: Column
    a_step: Column
    b: Column  # of an operation with one operand that once more
    b_row: Column
    b_step: Column


args, _ = readers(Args)


@inlined
def load_strided(values, node, step):
    """Consecutive nodes, or one in every lane."""
    return simd.load(values, node) if step == 1 else simd.splat(values, values[node])


@inlined
def add_strided(grads, node, step, value, count):
    """Add to the gradients of as many nodes; the lanes of `value` beyond are 0.

    Where it is one node for all, returns what to add to its gradient, else 0.
    """
    if step == 1:
        simd.store_part(grads, node, simd.load(grads, node) + value, count)
        return grads.dtype.type(0)
    return simd.sum_lanes(value)


FORWARD = """
def strided_forward(values, operands, inputs, out, at, batch_range):
    s = args(operands, at)
    a_row, b_row = s.a, s.b
    for row in range(out, out + s.results, s.length):
        for j in range(0, s.length, simd.lanes(values)):
            a = load_strided(values, a_row + j * s.a_step, s.a_step)
            b = c = load_strided(values, b_row + j * s.b_step, s.b_step)
{branches}
            simd.store_part(values, row + j, result, s.length - j)
        a_row += s.a_row
        b_row += s.b_row
"""

# What the root does not depend on passes nothing on, see vanishes.
BACKWARD = """
def strided_backward(values, grads, operands, inputs, first, at, back, batch_range):
    s = args(operands, at)
    a_row, b_row = s.a, s.b
    for row in range(first, first + s.results, s.length):
        # float64: a sum of millions in float32 would lose four digits.
        a_total, b_total = 0.0, 0.0
        for j in range(0, s.length, simd.lanes(values)):
            a_node, b_node = a_row + j * s.a_step, b_row + j * s.b_step
            a = load_strided(values, a_node, s.a_step)
            b = c = load_strided(values, b_node, s.b_step)
            out = simd.load(values, row + j)
            dout = simd.keep_first(simd.load(grads, row + j), s.length - j, 0)
{branches}
            da, db = simd.where_nonzero(dout, da), simd.where_nonzero(dout, db)
            a_total += add_strided(grads, a_node, s.a_step, da, s.length - j)
            if s.formula < WITH_B:
                b_total += add_strided(grads, b_node, s.b_step, db, s.length - j)
        if s.a_step == 0:
            grads[a_row] += a_total
        if s.b_step == 0 and s.formula < WITH_B:
            grads[b_row] += b_total
        a_row += s.a_row
        b_row += s.b_row
"""


def branches(lines_of):
    """One branch for each formula, the last without a condition."""
    text = ""
    for number, formula in enumerate(ROWS):
        test = "if" if number == 0 else "elif"
        last = number == len(ROWS) - 1
        text += "else:\n" if last else f"{test} s.formula == {number}:\n"
        text += textwrap.indent(lines_of(formula), "    ") + "\n"
    return textwrap.indent(text, 12 * " ")


def forward_lines(formula):
    return f"result = {OF_VECTORS.get(formula.name, [formula.out])[0]}"


def backward_lines(formula):
    da = OF_VECTORS[formula.name][1] if formula.name in OF_VECTORS else formula.da
    return f"da = {da}\ndb = {formula.db or 'dout'}"


source = FORWARD.format(branches=branches(forward_lines))
source += BACKWARD.format(branches=branches(backward_lines))
names = {
    "simd": simd,
    "exp": exp_any,
    "args": args,
    "load_strided": load_strided,
    "add_strided": add_strided,
    "WITH_B": WITH_B,
}
made = generated(__name__, source, names)
strided_forward, strided_backward = jit(made["strided_forward"]), jit(made["strided_backward"])

STRIDED = ListOp("strided", Args, strided_forward, strided_backward, several=True, by_address=True)
