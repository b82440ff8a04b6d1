"""The switch of scalar operations: one kernel that replays a stretch of their records.

Generated as flat source from the formulas and inlined by hand, so to speak: as calls they would
take more time to compile than all the rest, and as inlined functions ten times as long.
"""

import math
import re
import textwrap
from functools import cache

import numpy as np

from tapegpt.kernels.compile.indirect_call import read_record
from tapegpt.kernels.compile.jit import inlined, jit_made
from tapegpt.kernels.layout import OPCODE, OPCODE_BITS
from tapegpt.kernels.op import ListOp, generated
from tapegpt.kernels.ops.scalar.dot import DOT, DOT_RUN
from tapegpt.kernels.ops.scalar.formulas import FORMULAS, SCOPE, Formula
from tapegpt.kernels.ops.scalar.lookup import LOOKUP
from tapegpt.kernels.ops.scalar.reduce import SOFTMAX, SUM

# Those with one result first. The place in SCALAR_OPS is the opcode.
LISTED = (SUM, DOT, DOT_RUN, LOOKUP, SOFTMAX)
SCALAR_OPS: tuple[Formula | ListOp, ...] = (*FORMULAS, *LISTED)
# What most small graphs are made of. A switch of these alone is compiled much sooner.
COMMON_NAMES = {
    "add",
    "sub",
    "mul",
    "multiply_add",
    "div",
    "neg",
    "scale",
    "pow",
    "exp",
    "log",
    "relu",
    "tanh",
}
COMMON = frozenset(
    code for code, operation in enumerate(SCALAR_OPS) if operation.name in COMMON_NAMES
)
FIRST_SEVERAL = len(SCALAR_OPS) - sum(operation.several for operation in LISTED)


@inlined
def vanishes(dout):
    """Whether a gradient is 0. The reverse sweep asks, so that operations with one result never
    see one.

    What the root does not depend on has gradient 0 and passes nothing on, however steep it is: 0
    times infinity is 0 here. A subnormal gradient is passed on: a steep slope may make it normal.
    """
    return dout == 0


@inlined
def finite(values, x):
    """Whether a number is finite. The compiler would take x - x for 0, whatever x is."""
    return not math.isnan(x * values.dtype.type(0))


PLACES = {
    "a": "values[a]",
    "b": "values[b]",
    "c": "values[b]",
    "s": "values[out - (code >> OPCODE_BITS)]",
    "out": "values[out]",
    "zero": "values.dtype.type(0)",
    "one": "values.dtype.type(1)",
}


def in_place(expression: str) -> str:
    """An expression of a formula on what lies at the nodes a, b and out."""
    return re.sub(r"\b(a|b|c|s|out|zero|one)\b", lambda name: PLACES[name[0]], expression)


def forward_lines(formula: Formula) -> str:
    return f"values[out] = {in_place(formula.out)}"


def backward_lines(formula: Formula) -> str:
    lines = []
    if formula.da:
        lines += [f"da = {in_place(formula.da)}", "grads[a] += da"]
    if formula.db:
        lines.append(f"grads[b] += {in_place(formula.db)}")
    if formula.goes_on:
        lines.append("grads[out - (code >> OPCODE_BITS)] += dout")
    if formula.when and lines:
        lines = [f"if {in_place(formula.when)}:", *(f"    {line}" for line in lines)]
    return "\n".join(lines or ["pass"])


FORWARD = """
def scalars_forward(values, grads, records, operands, inputs, i, end):
    while i < end:
        code, out, a, b = read_record(records, i)
{adjacent}
        i += 1
        node, at = np.int64(out), np.int64(a)
{others}
        else:
            return i - 1
    return i
"""

FORWARD_ADJACENT = """
if {opcode} == {code}:
    while i < end:
        code, out, a, b = read_record(records, i)
        if {opcode} != {code}:
            break
{lines}
        i += 1
    continue
"""

BACKWARD = """
def scalars_backward(values, grads, records, operands, inputs, i, begin):
    while i >= begin:
        code, out, a, b = read_record(records, i)
{adjacent}
        if code >= FIRST_CALLED:
            break
        i -= 1
        node, at, dout = np.int64(out), np.int64(a), grads[out]
        if code < FIRST_SEVERAL and vanishes(dout):
            continue
{others}
    return i
"""

BACKWARD_ADJACENT = """
if {opcode} == {code}:
    while i >= begin:
        code, out, a, b = read_record(records, i)
        if {opcode} != {code}:
            break
        dout = grads[out]
{lines}
        i -= 1
    continue
"""

# Of operations that networks record side by side: one is often followed by others.
FORWARD_ROW = """
while i < end:
    code, out, a, b = read_record(records, i)
    if code != {code}:
        break
{lines}
    i += 1
"""

BACKWARD_ROW = """
while i >= begin:
    code, out, a, b = read_record(records, i)
    if code != {code}:
        break
    dout = grads[out]
    if vanishes(dout):
        break
{lines}
    i -= 1
"""

# Of products: a finite result had finite operands, and 0 times those is 0. Asked first because the
# answer hardly ever changes: which gradients are 0, as of units of a ReLU that are off, is
# mispredicted.
PASSES = "if finite(values, values[out]) or not vanishes(dout):\n"

FORWARD_CALL = "{name}_forward(values, operands, inputs, node, at)"
BACKWARD_CALL = "{name}_backward(values, grads, operands, inputs, node, dout, at)"


def make_switch(codes, template, adjacent_template, row_template, lines_of, call):
    """The source of one direction, for the operations of these codes."""
    adjacent = ""
    others: list[str] = []
    for code in sorted(codes):
        operation = SCALAR_OPS[code]
        if isinstance(operation, Formula):
            lines = lines_of(operation)
        else:
            lines = call.format(name=operation.name)
        if isinstance(operation, Formula) and operation.adjacent:
            if lines_of is backward_lines and not operation.plain:
                lines = PASSES + textwrap.indent(lines, "    ")
            lines = textwrap.indent(lines, 8 * " ")
            opcode = "code & OPCODE" if operation.goes_on else "code"
            adjacent += adjacent_template.format(opcode=opcode, code=code, lines=lines)
        else:
            if isinstance(operation, Formula) and operation.strided:
                body = textwrap.indent(lines, "    ")
                lines = f"{lines}\n{row_template.format(code=code, lines=body)}"
            test = "elif" if others else "if"
            others.append(f"{test} code == {code}:\n" + textwrap.indent(lines, "    "))
    return template.format(
        adjacent=textwrap.indent(adjacent, 8 * " "),
        others=textwrap.indent("\n".join(others), 8 * " "),
    )


names = {
    "np": np,
    "OPCODE": OPCODE,
    "OPCODE_BITS": OPCODE_BITS,
    "read_record": read_record,
    "finite": finite,
    "vanishes": vanishes,
    "FIRST_SEVERAL": FIRST_SEVERAL,
    "FIRST_CALLED": len(SCALAR_OPS),
    **SCOPE,
    **{f"{operation.name}_forward": operation.forward for operation in LISTED},
    **{f"{operation.name}_backward": operation.backward for operation in LISTED},
}


@cache
def switch(prefix, codes):
    """The functions of a switch between the operations of these codes."""
    forward = FORWARD, FORWARD_ADJACENT, FORWARD_ROW, forward_lines, FORWARD_CALL
    backward = BACKWARD, BACKWARD_ADJACENT, BACKWARD_ROW, backward_lines, BACKWARD_CALL
    source = make_switch(codes, *forward) + make_switch(codes, *backward)
    return generated(__name__, source.replace("def scalars_", f"def {prefix}_"), names)


def kernels_of_switch(prefix, codes):
    """Both directions, generated when they are first used."""
    return (
        jit_made(lambda: switch(prefix, codes)[f"{prefix}_forward"]),
        jit_made(lambda: switch(prefix, codes)[f"{prefix}_backward"]),
    )


# Compute scalar records from i on; returns the first that is not one, or end. And carry gradients
# back through scalar records from i down; returns the first that is not one, or begin - 1.
scalars_forward, scalars_backward = kernels_of_switch("scalars", frozenset(range(len(SCALAR_OPS))))
common_forward, common_backward = kernels_of_switch("common", COMMON)
