"""An operation on arrays of one shape, element by element: a graph of numbers in one pass each way.

x0, x1, ... are the arrays, s0, s1, ... scalars beside them, to which no gradient passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tapegpt.functions.source import (
    Graph,
    backward_lines,
    forward_lines,
    shared_calls,
    vector_of,
)
from tapegpt.kernels.compile.jit import jit_source
from tapegpt.kernels.layout import row_stride
from tapegpt.kernels.op import Array, ArrayOp, Differentiable, Rows, ScalarNode, Size, readers
from tapegpt.kernels.ops.elementwise import element_range
from tapegpt.kernels.ops.scalar.of_vectors import MODULES

FORWARD = """
def {name}_forward(values, operands, inputs, out, at, batch_range):
    a = args(operands, at)
    begin, end = element_range(values, a.rows, a.width, batch_range)
{scalars}
    for i in range(begin, end, simd.lanes(values)):
{lines}
"""

BACKWARD = """
def {name}_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    begin, end = element_range(values, a.rows, a.width, batch_range)
{scalars}
    for i in range(begin, end, simd.lanes(values)):
{lines}
"""

CLEAR_PADDING = """
    row = row_stride(values, a.width)
    for r in range(begin, end, row):
        for i in range(r + a.width, r + row):
"""


class Backward(NamedTuple):
    """The lines of a reverse sweep, and the gradient of every input: "" for none."""

    lines: list[str]
    gradients: list[str]


def backward_of(graph: Graph, arrays: int | None = None) -> Backward:
    """What follows from a graph whose first `arrays` inputs are arrays, all unless given."""
    lines = [*loads(graph, arrays), *_without(forward_lines(graph), graph.outputs[0])]
    passed, known = backward_lines(graph, ["simd.load(grads, g.dout + i)"])
    lines += passed
    if graph.outputs[0] not in graph.inputs and graph.outputs[0] not in graph.constants:
        lines.insert(0, f"v{graph.outputs[0]} = simd.load(values, out + i)")
    return Backward(lines, [f"g{node}" if node in known else "" for node in graph.inputs])


def one_pass(
    name: str,
    graph: Graph,
    backward: Backward,
    *,
    clean: bool,
    passes: Sequence[bool] = (),
    scalars: int = 0,
    identity: tuple[object, ...] = (),
) -> ArrayOp:
    """The operation of a graph whose inputs are arrays, the last of them `scalars` scalars.

    clean: operands of 0 give 0 and finite slopes, so that padding needs no care. passes: which
    arrays a gradient passes to, all unless given.
    """
    arrays = len(graph.inputs) - scalars
    passes = passes or [True] * arrays
    fields: list[tuple[str, Any]] = [("rows", Rows), ("width", Size)]
    fields += [(f"x{j}", Differentiable if passes[j] else Array) for j in range(arrays)]
    fields += [(f"s{j}", ScalarNode) for j in range(scalars)]
    args_type: Any = NamedTuple("Args", fields)  # type: ignore[misc]
    args, grads_of = readers(args_type)
    scope = {
        **MODULES,
        "args": args,
        "grads_of": grads_of,
        "element_range": element_range,
        "row_stride": row_stride,
    }
    beside = [
        f"v{node} = simd.splat(values, values[a.s{j}])"
        for j, node in enumerate(graph.inputs[arrays:])
    ]
    forward = [*loads(graph, arrays), *shared_calls([*forward_lines(graph)])]
    forward.append(f"simd.store(values, out + i, {vector_of(graph, graph.outputs[0], 'values')})")
    source = FORWARD.format(name=name, scalars=_indented(beside, 4), lines=_indented(forward, 8))

    lines = [*shared_calls(backward.lines)]
    differentiable = [j for j in range(arrays) if passes[j]]
    for j in differentiable:
        lines.append(f"dx = {backward.gradients[j] or 'simd.splat(values, 0.0)'}")
        # Written out: each function that Numba inlines takes it milliseconds to compile.
        lines.append(f"if not g.overwrite_dx{j}: dx = simd.load(grads, g.dx{j} + i) + dx")
        lines.append(f"simd.store(grads, g.dx{j} + i, dx)")
    back = BACKWARD.format(name=name, scalars=_indented(beside, 4), lines=_indented(lines, 8))
    if not clean:
        source += CLEAR_PADDING + 12 * " " + "values[out + i] = 0\n"
        back += CLEAR_PADDING
        back += "".join(12 * " " + f"grads[g.dx{j} + i] = 0\n" for j in differentiable)
    return ArrayOp(
        name,
        args_type,
        jit_source(source, f"{name}_forward", scope, identity),
        jit_source(back, f"{name}_backward", scope, identity),
        backward_reads=(*(f"x{j}" for j in range(arrays)), "out"),
        row_by_row=True,
    )


def loads(graph: Graph, count: int | None = None) -> list[str]:
    """The lines that load the first `count` inputs of a graph."""
    return [
        f"v{node} = simd.load(values, a.x{j} + i)" for j, node in enumerate(graph.inputs[:count])
    ]


def _without(lines: Any, node: int) -> list[str]:
    """The lines but for that which computes a node, which has been loaded."""
    return [line for line in lines if not line.startswith(f"v{node} = ")]


def _indented(lines: Sequence[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)
