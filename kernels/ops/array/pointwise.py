"""The formulas of scalars on arrays, element by element: out = f(a), f(a, b) or f(a, c).

out: (R, C). An operand of two may be whole, one row for all (x_row 0), one column for all (x_step
0), or one number (both 0). What is passed to such an operand is added up: over the columns a vector
at a time, over the rows in sums of FEW, over all in float64.

The kernels are generated from formulas.py; c is a scalar node to which no gradient passes.
"""

import textwrap
from typing import NamedTuple

from tapegpt.kernels.compile.jit import inlined, jit, jit_made
from tapegpt.kernels.layout import padded, row_range, row_stride
from tapegpt.kernels.op import (
    ArrayOp,
    Differentiable,
    Rows,
    SharedRoom,
    Size,
    generated,
    readers,
)
from tapegpt.kernels.ops.elementwise import ScaleArgs, UnaryArgs, add_to
from tapegpt.kernels.ops.scalar.formulas import FORMULAS
from tapegpt.kernels.ops.scalar.of_vectors import MODULES, chosen_where, vector_expression
from tapegpt.kernels.ops.scalar.strided import load_strided
from tapegpt.kernels.simd import FEW, load, splat, store, sum_lanes
from tapegpt.kernels.simd.special import number_power

# The formulas of vectors where they differ: (out, da).
OF_VECTORS = {
    "relu": ("simd.relu(a)", "simd.where_positive(a, dout)"),
    "pow": ("special.number_power(a, c)", "power_slope(a, c) * dout"),
}
# They have kernels of their own, see elementwise.py.
ELSEWHERE = ("relu", "scale")


class BinaryArgs(NamedTuple):
    rows: Rows
    width: Size
    x: Differentiable
    x_row: Size
    x_step: Size
    y: Differentiable
    y_row: Size
    y_step: Size
    room: SharedRoom  # for two rows of gradients


unary_args, unary_grads = readers(UnaryArgs)
number_args, number_grads = readers(ScaleArgs)
binary_args, binary_grads = readers(BinaryArgs)


@inlined
def power_slope(a, c):
    """The derivative of a ** c: 0 where c is."""
    return number_power(a, c - 1) * c if c != 0 else a * 0.0


@jit
def clear(values, begin, end):
    for i in range(begin, end):
        values[i] = 0


@jit
def add_row(values, room, grads, dx, width, overwrite):
    """Add a row of gradients that lies in the room to dx."""
    for j in range(width):
        grads[dx + j] = values[room + j] + (0 if overwrite else grads[dx + j])


@inlined
def pass_back(values, grads, dx, room, row, step, passed, total, overwrite):
    """Add what one vector passes: to the operand, to its row in the room, or to the total."""
    if step == 0:
        total = total + passed
    elif row == 0:
        store(values, room, load(values, room) + passed)
    else:
        add_to(grads, dx, passed, overwrite)
    return total


FORWARD = """
def {name}_forward(values, operands, inputs, out, at, batch_range):
    p = {kind}_args(operands, at)
    first, last = row_range(p.rows, batch_range)
    row = row_stride(values, p.width)
{number}
    for r in range(first, last):
        for j in range(0, p.width, simd.lanes(values)):
{loads}
            result = simd.keep_first({out}, p.width - j, 0)
            simd.store(values, out + r * row + j, result)
"""

BACKWARD = """
def {name}_backward(values, grads, operands, inputs, out, at, back, batch_range):
    p, g = {kind}_args(operands, at), {kind}_grads(operands, back)
    first, last = row_range(p.rows, batch_range)
    row = row_stride(values, p.width)
{number}
    for r in range(first, last):
        for j in range(0, p.width, simd.lanes(values)):
            i = r * row + j
{loads}
            result = simd.load(values, out + i)
            dout = simd.keep_first(simd.load(grads, g.dout + i), p.width - j, 0)
            da = simd.where_nonzero(dout, {da})
            add_to(grads, g.dx + i, da, g.overwrite_dx)
"""

BINARY_BACKWARD = """
def {name}_backward(values, grads, operands, inputs, out, at, back, batch_range):
    p, g = binary_args(operands, at), binary_grads(operands, back)
    first, last = row_range(p.rows, batch_range)
    row, columns = row_stride(values, p.width), padded(values, p.width)
    x_room, y_room = p.room, p.room + columns
    x_whole, y_whole = 0.0, 0.0
    for begin in range(first, last, FEW):
        clear(values, x_room, y_room + columns)
        for r in range(begin, min(begin + FEW, last)):
            x, dx = p.x + r * p.x_row, g.dx + r * p.x_row
            y, dy = p.y + r * p.y_row, g.dy + r * p.y_row
            x_total, y_total = splat(values, 0), splat(values, 0)
            for j in range(0, p.width, simd.lanes(values)):
                a = load_strided(values, x + j * p.x_step, p.x_step)
                b = load_strided(values, y + j * p.y_step, p.y_step)
                result = load(values, out + r * row + j)
                dout = simd.keep_first(load(grads, g.dout + r * row + j), p.width - j, 0)
{lines}
            if p.x_step == 0:
                total = sum_lanes(x_total)
                if p.x_row == 0:
                    x_whole += total
                else:
                    grads[dx] = total if g.overwrite_dx else grads[dx] + total
            if p.y_step == 0:
                total = sum_lanes(y_total)
                if p.y_row == 0:
                    y_whole += total
                else:
                    grads[dy] = total if g.overwrite_dy else grads[dy] + total
        if p.x_row == 0 and p.x_step == 1:
            add_row(values, x_room, grads, g.dx, p.width, g.overwrite_dx and begin == first)
        if p.y_row == 0 and p.y_step == 1:
            add_row(values, y_room, grads, g.dy, p.width, g.overwrite_dy and begin == first)
    if p.x_row == 0 and p.x_step == 0:
        grads[g.dx] = x_whole + (0 if g.overwrite_dx else grads[g.dx])
    if p.y_row == 0 and p.y_step == 0:
        grads[g.dy] = y_whole + (0 if g.overwrite_dy else grads[g.dy])
"""

PASS = """
d{operand} = simd.where_nonzero(dout, {gradient})
{x}_total = pass_back(
    values, grads, d{x} + j, {x}_room + j, p.{x}_row, p.{x}_step, d{operand}, {x}_total,
    g.overwrite_d{x},
)
"""

NAMES = {"a": "a", "b": "b", "c": "c", "out": "result", "dout": "dout", "da": "da"}


def function_of(source, name):
    names = {
        **MODULES,
        "unary_args": unary_args,
        "unary_grads": unary_grads,
        "number_args": number_args,
        "number_grads": number_grads,
        "binary_args": binary_args,
        "binary_grads": binary_grads,
        "row_range": row_range,
        "row_stride": row_stride,
        "padded": padded,
        "load_strided": load_strided,
        "add_to": add_to,
        "clear": clear,
        "add_row": add_row,
        "pass_back": pass_back,
        "power_slope": power_slope,
        "load": load,
        "splat": splat,
        "sum_lanes": sum_lanes,
        "FEW": FEW,
    }
    return generated(__name__, source, names)[name]


# How the operands of a vector are loaded, and the number of a formula that has one.
LOAD = "a = simd.load(values, p.x + r * row + j)"
LOAD_BOTH = """
a = load_strided(values, p.x + r * p.x_row + j * p.x_step, p.x_step)
b = load_strided(values, p.y + r * p.y_row + j * p.y_step, p.y_step)
"""
NUMBER = "    c = values[p.factor]"

# By the second operand of a formula: how its readers are called, and its arguments.
KINDS = {"": ("unary", UnaryArgs), "b": ("binary", BinaryArgs), "c": ("number", ScaleArgs)}


def forward_function(name, formula):
    """What computes the formula of each element."""
    out = OF_VECTORS[formula.name][0] if formula.name in OF_VECTORS else ""
    source = FORWARD.format(
        name=name,
        kind=KINDS[formula.second][0],
        number=NUMBER if formula.second == "c" else "",
        loads=textwrap.indent(LOAD_BOTH if formula.second == "b" else LOAD, 12 * " "),
        out=out or vector_expression(formula.out, NAMES),
    )
    return function_of(source, f"{name}_forward")


def backward_function(name, formula):
    """What passes the gradient of each element back."""
    if formula.second == "b":
        return function_of(binary_backward(name, formula), f"{name}_backward")
    if formula.name in OF_VECTORS:
        da = OF_VECTORS[formula.name][1]
    else:
        da = vector_expression(formula.da, NAMES)
        da = chosen_where(formula.when, NAMES, da) if formula.when else da
    source = BACKWARD.format(
        name=name,
        kind=KINDS[formula.second][0],
        number=NUMBER if formula.second else "",
        loads=textwrap.indent(LOAD, 12 * " "),
        da=da,
    )
    return function_of(source, f"{name}_backward")


def binary_backward(name, formula):
    """The source of the reverse sweep of a formula of two operands."""
    lines = ""
    for x, operand, gradient in (("x", "a", formula.da), ("y", "b", formula.db)):
        # A mask is passed zeros: it may be that nobody else writes its gradient.
        expression = vector_expression(gradient or "dout * zero", NAMES)
        lines += PASS.format(operand=operand, gradient=expression, x=x)
    return BINARY_BACKWARD.format(name=name, lines=textwrap.indent(lines, 16 * " "))


def operation_of(formula):
    """The operation on arrays that a formula makes."""
    name = f"array_{formula.name}" if formula.name != "add" else "broadcast_add"
    passes = formula.da or formula.db
    return ArrayOp(
        name,
        KINDS[formula.second][1],
        jit_made(lambda: forward_function(name, formula)),
        jit_made(lambda: backward_function(name, formula)) if passes else None,
        backward_reads=("x", "y", "out") if formula.second == "b" else ("x", "out"),
        row_by_row=True,
    )


# By the names of the formulas.
POINTWISE = {
    formula.name: operation_of(formula)
    for formula in FORMULAS
    if formula.name not in ELSEWHERE and not formula.goes_on
}
