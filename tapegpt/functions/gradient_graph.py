"""The gradient of a scalar graph as a graph: the rules of `formulas.py`, recorded on the tape.

What is recorded can be differentiated again, which is how Hessian-vector products come about:
reverse over reverse, without a second engine. (Pearlmutter 1994 has the products.)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any

from tapegpt.functions.source import is_steep
from tapegpt.functions.steps import Step, every_step, steps_between
from tapegpt.kernels.op import ArrayOp
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.tape.handles import Scalar
from tapegpt.tape.types import TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

ONE_OPERAND = ("exp", "log", "tanh", "sqrt", "sin", "cos", "abs", "erf", "softplus")


def gradient_nodes(tape: Tape, root: int, wrt: Sequence[int]) -> list[Scalar]:
    """Nodes whose values are the gradient of the root with respect to these scalar nodes."""
    _refuse_arrays(tape, wrt, root)
    steps, _ = steps_between(tape._replay_arrays(), wrt, [root], most=None)
    found = _Recorded(tape, {*wrt, *(node for step in steps for node in step.results)})
    found.add(root, tape.constant(1.0))
    for step in reversed(steps):
        found.pass_back(step)
    known = found.gradients
    return [known[node] if node in known else tape.constant(0.0) for node in wrt]


def _refuse_arrays(tape: Tape, wrt: Sequence[int], root: int) -> None:
    """Raise TapeError where operations on arrays lie between these nodes and the root."""
    dependent, by_arrays = set(wrt), dict[int, str]()
    for step in every_step(tape._replay_arrays()):
        if dependent.intersection(step.operands):
            results: Sequence[int] = step.results
            name = next((by_arrays[node] for node in step.operands if node in by_arrays), "")
            if isinstance(step.operation, ArrayOp):
                name, (out,) = step.operation.name, step.results
                results = range(out, out + tape.extents.get(out, 1))
            dependent.update(results)
            if name:
                by_arrays.update(dict.fromkeys(results, name))
    if root in by_arrays:
        raise TapeError(
            f"{by_arrays[root]} lies between, an operation on arrays: gradients are recorded of"
            " scalar operations alone"
        )


class _Recorded:
    """Gradients that have been recorded so far, by node."""

    def __init__(self, tape: Tape, wanted: set[int]) -> None:
        self.tape = tape
        self.gradients: dict[int, Scalar] = {}
        self._wanted = wanted
        self._functions: dict[str, Callable[..., Any]] = {
            **{name: getattr(tape, name) for name in ONE_OPERAND},
            "power": lambda a, b: a**b,
            "logistic": lambda values, a, out: tape.sigmoid(a),
            "where": self._where,
            "equal": lambda a, b: tape.equal(self._node(a), self._node(b)),
            "unequal": lambda a, b: 1.0 - tape.equal(self._node(a), self._node(b)),
        }

    def add(self, node: int, gradient: Scalar) -> None:
        """Add to a node's gradient, if anybody wants it."""
        if node in self._wanted:
            before = self.gradients.get(node)
            self.gradients[node] = gradient if before is None else before + gradient

    def pass_back(self, step: Step) -> None:
        """Record what a step passes back to its operands."""
        given = [node for node in step.results if node in self.gradients]
        if not given:
            return
        passed = self._of_formula if isinstance(step.operation, Formula) else self._of_list
        for node, gradient in list(passed(step, given)):
            self.add(node, gradient)

    def _of_formula(self, step: Step, given: Sequence[int]) -> Iterator[tuple[int, Scalar]]:
        formula, (out,) = step.operation, step.results
        assert isinstance(formula, Formula)
        node, dout = self.tape._scalar_handle, self.gradients[out]
        names: dict[str, Any] = {**self._functions, "values": None, "one": 1.0, "zero": 0.0}
        names |= {"out": node(out), "dout": dout, "a": node(step.operands[0])}
        if formula.second:
            names[formula.second] = node(step.operands[1])
        if formula.name == "pow":  # by a number: no gradient is that of the exponent
            names["c"] = names["c"].value
            if names["c"] == 0:
                return

        def recorded(expression: str) -> Scalar:
            gradient: Any = self._node(eval(compiled(expression), names))
            if formula.when and formula.name != "pow":
                gradient = self._where(eval(compiled(formula.when), names), gradient, 0.0)
            elif is_steep(expression):
                gradient = self._where(dout, gradient, 0.0)
            return gradient  # type: ignore[no-any-return]

        if formula.da:
            names["da"] = recorded(formula.da)
            yield step.operands[0], names["da"]
        if formula.db:
            yield step.operands[1], recorded(formula.db)
        if formula.goes_on:
            yield step.operands[2], dout

    def _of_list(self, step: Step, given: Sequence[int]) -> Iterator[tuple[int, Scalar]]:
        tape, node = self.tape, self.tape._scalar_handle
        if step.operation == "softmax":
            pairs = [(self.gradients[y], node(y)) for y in given]
            mean = tape.dot([g for g, _ in pairs], [y for _, y in pairs])
            for y, a in zip(step.results, step.operands, strict=True):
                dy = self.gradients[y] - mean if y in self.gradients else -mean
                yield a, node(y) * dy
            return
        (out,), dout = step.results, self.gradients[step.results[0]]
        if step.operation == "sum":
            yield from ((a, dout) for a in step.operands)
        elif step.operation == "dot":
            for a, b in zip(step.operands[::2], step.operands[1::2], strict=True):
                yield a, node(b) * dout
                yield b, node(a) * dout
        else:  # of equals the first is the largest
            left: Any = dout
            for a in step.operands:
                largest = tape.equal(node(a), node(out))
                yield a, self._where(largest, left, 0.0)
                left = self._where(largest, 0.0, left)

    def _where(self, test: Any, a: Any, b: Any) -> Scalar:
        return self.tape.where(*map(self._node, (test, a, b)))

    def _node(self, given: Any) -> Scalar:
        return given if isinstance(given, Scalar) else self.tape.constant(given)


@cache
def compiled(expression: str) -> CodeType:
    """An expression of a formula, to be evaluated on handles: choices are recorded as such."""
    tree = _Choices().visit(ast.parse(expression, mode="eval"))
    return compile(ast.fix_missing_locations(tree), f"<{expression}>", "eval")


class _Choices(ast.NodeTransformer):
    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return _call("where", node.test, node.body, node.orelse)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        names = {ast.Eq: "equal", ast.NotEq: "unequal"}
        name = names.get(type(node.ops[0]))
        return node if name is None else _call(name, node.left, node.comparators[0])


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
