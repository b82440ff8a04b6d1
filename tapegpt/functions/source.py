"""The source of a function over rows: loads, steps forward, steps back, stores.

A value is v and its node, a gradient g and its node; x0, x1, ... are the arrays of inputs, y0, ...
those of outputs, d0, ... those of the inputs' gradients, s0, ... those of seeds.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tapegpt.functions.steps import Step
from tapegpt.kernels.ops.scalar.formulas import Formula, names_in
from tapegpt.kernels.ops.scalar.of_vectors import chosen_where, vector_expression

HEAD = """
def kernel(begin, end, steps, {arguments}):
    for i0 in range(begin, end, {block} * simd.lanes(x0)):
"""
FEW_STEPS = 100  # so few that compiling them twice does not matter
NAMES = r"\b(v|g|da|c|most|each|left|mean|i)(\d*)\b(?! *\()"


@dataclass(frozen=True)
class Graph:
    """The steps from inputs to outputs, and the numbers that they use.

    guarded: no step passes on anything but 0 of a gradient of 0, whatever its operands are.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]
    constants: Mapping[int, float]
    guarded: bool = False

    @property
    def vectors(self) -> int:
        """How many go side by side: while one waits for a result, another goes on."""
        return 2 if len(self.steps) <= FEW_STEPS else 1


@dataclass(frozen=True)
class Wanted:
    """What a function gives beside each other.

    values: the outputs. gradients: of the sum of the outputs with respect to the inputs. seeded:
    each output counts as much as a row of the seeds says. added: the inputs, by number, whose
    gradients are added to what is there, after the others have been written.
    """

    values: bool
    gradients: bool
    seeded: bool = False
    added: tuple[int, ...] = ()


def source_of(graph: Graph, wanted: Wanted) -> str:
    """The source of `kernel(begin, end, steps, *x, *y, *d, *s)`, of whole blocks of rows.

    steps[j] is 1, or 0 where all rows of input j are one vector of the same number.
    """
    inputs, outputs = range(len(graph.inputs)), range(len(graph.outputs))
    arguments = [f"x{j}" for j in inputs]
    arguments += [f"y{j}" for j in outputs if wanted.values]
    arguments += [f"d{j}" for j in inputs if wanted.gradients]
    arguments += [f"s{j}" for j in outputs if wanted.seeded]
    lines = [f"v{node} = simd.load(x{j}, i * steps[{j}])" for j, node in enumerate(graph.inputs)]
    lines += forward_lines(graph)
    if wanted.gradients:
        lines += _gradient_lines(graph, wanted)
    if wanted.values:
        for j, node in enumerate(graph.outputs):
            lines.append(f"simd.store(y{j}, i, {vector_of(graph, node)})")
    body = [f"i{u} = i0 + {u} * simd.lanes(x0)" for u in range(1, graph.vectors)]
    for line in shared_calls(lines):
        body += [numbered(line, u) for u in range(graph.vectors)]
    head = HEAD.format(arguments=", ".join(arguments), block=graph.vectors)
    return head + "".join(f"        {line}\n" for line in body)


def numbered(line: str, number: int) -> str:
    """The line for one of the vectors side by side: names of its own."""
    return re.sub(
        NAMES, lambda name: f"{name[0]}{number}" if name[0] == "i" else f"{name[0]}_{number}", line
    )


def shared_calls(lines: Sequence[str]) -> Iterator[str]:
    """The lines, where a function that is called twice on the same values is called once."""
    trees = [ast.parse(line) for line in lines]
    calls = Counter(
        ast.unparse(node) for tree in trees for node in ast.walk(tree) if _is_of_values(node)
    )
    names: dict[str, str] = {}
    for tree in trees:
        sharing = _Sharing(calls, names)
        line = ast.unparse(sharing.visit(tree))
        yield from sharing.lines
        yield line


def _is_of_values(node: ast.AST) -> bool:
    """Whether it is a call whose operands are values and numbers alone: those never change."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("special."):
        return False
    names = {
        part.id
        for argument in node.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Name)
    }
    return all(name == "special" or name.startswith(("v", "c")) for name in names)


class _Sharing(ast.NodeTransformer):
    def __init__(self, calls: Mapping[str, int], names: dict[str, str]) -> None:
        self._calls, self._names = calls, names
        self.lines: list[str] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        text = ast.unparse(node)
        is_shared = self._calls[text] > 1
        if is_shared and text in self._names:
            return ast.Name(self._names[text])
        self.generic_visit(node)
        if not is_shared:
            return node
        name = self._names[text] = f"c{len(self._names)}"
        self.lines.append(f"{name} = {ast.unparse(node)}")
        return ast.Name(name)


def forward_lines(graph: Graph) -> Iterator[str]:
    """The value v of every node, from those of the inputs."""
    for step in graph.steps:
        operands = [_value(graph, node) for node in step.operands]
        out = f"v{step.results[0]}"
        if isinstance(step.operation, Formula):
            expression = vector_expression(step.operation.out, _places(step.operation, operands))
            yield f"{out} = {expression}"
        elif step.operation == "sum":
            yield f"{out} = {_total(operands)}"
        elif step.operation == "dot":
            pairs = zip(operands[::2], operands[1::2], strict=True)
            yield f"{out} = {_total([f'{a} * {b}' for a, b in pairs])}"
        elif step.operation == "max":
            yield f"{out} = {_largest(operands)}"
        else:
            yield from _softmax(step, operands)


def _softmax(step: Step, operands: list[str]) -> Iterator[str]:
    first = step.results[0]
    yield f"most{first} = {_largest(operands)}"
    for node, a in zip(step.results, operands, strict=True):
        yield f"v{node} = special.exp_any({a} - most{first})"
    total = _total([f"v{node}" for node in step.results])
    yield f"each{first} = 1.0 / ({total})"
    for node in step.results:
        yield f"v{node} = v{node} * each{first}"


def backward_lines(graph: Graph, seeds: Sequence[str]) -> tuple[list[str], set[int]]:
    """The gradient g of every node that has one, from those of the outputs; and which have."""
    gradients = _Gradients(graph)
    lines: list[str] = []
    for node, seed in zip(graph.outputs, seeds, strict=True):
        lines += gradients.add(node, seed)
    for step in reversed(graph.steps):
        if gradients.known.intersection(step.results):
            lines += _passed(graph, step, gradients)
    return lines, gradients.known


def _gradient_lines(graph: Graph, wanted: Wanted) -> Iterator[str]:
    count = len(graph.outputs)
    one = "simd.splat(x0, 1.0)"
    seeds = [f"simd.load(s{j}, i)" if wanted.seeded else one for j in range(count)]
    lines, known = backward_lines(graph, seeds)
    yield from lines
    for j, node in sorted(enumerate(graph.inputs), key=lambda pair: pair[0] in wanted.added):
        total = f"g{node}" if node in known else "simd.splat(x0, 0.0)"
        if j not in wanted.added:
            yield f"simd.store(d{j}, i, {total})"
        elif node in known:
            yield f"simd.store(d{j}, i, simd.load(d{j}, i) + {total})"


class _Gradients:
    """Which gradients have been begun."""

    def __init__(self, graph: Graph) -> None:
        self.known: set[int] = set()
        self._constants = graph.constants

    def add(self, node: int, expression: str) -> Iterator[str]:
        """Add to a gradient that anybody wants."""
        if expression and node not in self._constants:
            begun = f"g{node} + " if node in self.known else ""
            self.known.add(node)
            yield f"g{node} = {begun}{expression}"


def _passed(graph: Graph, step: Step, gradients: _Gradients) -> Iterator[str]:
    """What a step passes back to its operands."""
    operands = [_value(graph, node) for node in step.operands]
    dout = f"g{step.results[0]}"
    if isinstance(step.operation, Formula):
        yield from _formula_passed(graph, step, operands, gradients)
    elif step.operation == "sum":
        for node in step.operands:
            yield from gradients.add(node, dout)
    elif step.operation == "dot":
        for i in range(0, len(operands), 2):
            yield from gradients.add(step.operands[i], f"{operands[i + 1]} * {dout}")
            yield from gradients.add(step.operands[i + 1], f"{operands[i]} * {dout}")
    elif step.operation == "max":
        left = f"left{step.results[0]}"
        yield f"{left} = {dout}"
        for node, value in zip(step.operands, operands, strict=True):
            test = f"special.where_equal({value}, v{step.results[0]}, "
            if node not in graph.constants:
                yield from gradients.add(node, f"{test}{left}, 0.0)")
            yield f"{left} = {test}0.0, {left})"
    else:
        given = [node for node in step.results if node in gradients.known]
        mean = f"mean{step.results[0]}"
        yield f"{mean} = {_total([f'g{node} * v{node}' for node in given])}"
        for node, a in zip(step.results, step.operands, strict=True):
            dy = f"g{node} - {mean}" if node in gradients.known else f"-{mean}"
            yield from gradients.add(a, f"v{node} * ({dy})")


def _formula_passed(
    graph: Graph, step: Step, operands: list[str], gradients: _Gradients
) -> Iterator[str]:
    formula = step.operation
    assert isinstance(formula, Formula)
    out = step.results[0]
    names = {**_places(formula, operands), "out": f"v{out}", "dout": f"g{out}", "da": f"da{out}"}
    wanted = [node not in graph.constants for node in step.operands]
    parts = [(formula.da, step.operands[0], wanted[0])]
    if formula.db:
        parts.append((formula.db, step.operands[1], wanted[1]))
    if formula.goes_on:
        parts.append(("dout", step.operands[2], wanted[2]))
    for place, (part, node, is_wanted) in enumerate(parts):
        needed = is_wanted or (place == 0 and "da" in formula.db and wanted[1])
        if not part or not needed:
            continue
        expression = vector_expression(part, names)
        if formula.when:
            expression = chosen_where(formula.when, names, expression)
        elif is_steep(part) or (graph.guarded and not names_in(part) <= {"dout", "c"}):
            expression = f"simd.where_nonzero(g{out}, {expression})"
        if expression and place == 0:
            yield f"da{out} = {expression}"
            expression = f"da{out}"
        if is_wanted:
            yield from gradients.add(node, expression)


def is_steep(expression: str) -> bool:
    """Whether it may be infinite beside a gradient of 0, which passes 0 on, as on the tape."""
    return any(sign in expression for sign in ("/", "**", "log"))


def _places(formula: Formula, operands: list[str]) -> dict[str, str]:
    """What the operands are called in a formula."""
    return dict(zip(("a", formula.second, "s"), operands, strict=False))


def _value(graph: Graph, node: int) -> str:
    """The name of a value, or a number."""
    if node not in graph.constants:
        return f"v{node}"
    number = graph.constants[node]
    literal = repr(number) if math.isfinite(number) else f"{math.copysign(1, number):g}e999"
    return literal if number >= 0 else f"({literal})"


def vector_of(graph: Graph, node: int, like: str = "x0") -> str:
    """A value as a vector, of the type of the array `like`."""
    value = _value(graph, node)
    return value if node not in graph.constants else f"simd.splat({like}, {value})"


def _total(terms: Sequence[str]) -> str:
    """Their sum, pairwise: exact, and no long chain of additions that wait for each other."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_total(terms[:half])} + {_total(terms[half:])})"


def _largest(terms: Sequence[str]) -> str:
    largest = terms[0]
    for term in terms[1:]:
        largest = f"simd.maximum({largest}, {term})"
    return largest
