"""Handles: a node of a tape, with operators, so that a graph reads like its formula.

    x, y = tape.var(3.0), tape.var(2.0)
    (x * y + x).backward()
    x.grad  # 3.0

A handle is no number and no index: `float(x)` is the node's value, `x.id` its id. A handle whose
node a `reset` has forgotten raises TapeError, instead of standing for whatever has its id by then.

`==` and `hash` are about the node: two handles are equal if they stand for the same one. Whether
values are equal is asked of values, `x.value == y.value`, or recorded by `tape.equal`; `==` with a
number raises TapeError. `<`, `<=`, `>` and `>=` are about values: they record 1 where the
comparison holds, else 0, and pass no gradient. `bool` of a scalar is that of its value, so
`if x < y` is right for the values that the tape has then.
"""

from tapegpt.tape.handles.array import Array
from tapegpt.tape.handles.base import (
    BINARY,
    MULTIPLY_ADD,
    OF_A_CONSTANT,
    UNARY,
    Generation,
    H,
    Handle,
    Node,
    Operand,
    new,
)
from tapegpt.tape.handles.scalar import Scalar

__all__ = [
    "BINARY",
    "MULTIPLY_ADD",
    "OF_A_CONSTANT",
    "UNARY",
    "Array",
    "Generation",
    "H",
    "Handle",
    "Node",
    "Operand",
    "Scalar",
    "new",
]
