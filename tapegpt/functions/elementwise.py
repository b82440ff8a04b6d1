"""An operation of one's own on arrays, element by element, from a formula of numbers.

    @elementwise
    def softsign(a):
        return a / (1 + abs(a))

    y = softsign(x)

The formula is recorded once, on a tape of its own, and so is its gradient: both become kernels on
vectors, one pass over memory each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from tapegpt.functions.checking import check_gradient
from tapegpt.functions.one_pass import Backward, backward_of, loads, one_pass
from tapegpt.functions.registered import arrays_of, record, registered, tape_of
from tapegpt.functions.source import Graph, forward_lines, vector_of
from tapegpt.functions.steps import steps_between
from tapegpt.kernels.op import ArrayOp
from tapegpt.tape import Tape
from tapegpt.tape.types import TapeError

# Two, so that a formula that branches on values shows.
POINTS = (0.37, -1.91)


class Elementwise:
    """An operation made by `elementwise`."""

    def __init__(self, formula: Callable[..., Any], check: bool = False) -> None:
        self.formula = formula
        self.name = formula.__name__ if formula.__name__.isidentifier() else "formula"
        self.__doc__ = formula.__doc__
        parameters = inspect.signature(formula).parameters.values()
        if not parameters or any(
            p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
        ):
            raise TapeError(f"{self.name}: a formula takes one operand or more, each by its place")
        self._count = len(parameters)
        self._derivative: Callable[..., Any] | None = None
        self._check = check
        self._operation: ArrayOp | None = None

    def __repr__(self) -> str:
        return f"<elementwise {self.name}, {self._count} operands>"

    def derivative(self, formula: Callable[..., Any]) -> Callable[..., Any]:
        """Take this derivative instead of the formula's own.

        It gets the operands and then the result, and returns the partial derivative for each
        operand: a number for one, a tuple for several.
        """
        if self._operation is not None:
            raise TapeError(f"{self.name}: its derivative comes before its first use")
        self._derivative = formula
        return formula

    def __call__(self, *x: Any) -> Any:
        """Record it on arrays of one shape, or on scalar nodes: handles, or a tape and ids."""
        tape, operands = tape_of(self.name, x, self._count)
        if all(tape.shape(node) == () for node in operands):
            return self._on_scalars(tape, operands)
        shapes = arrays_of(self.name, tape, operands)
        if len(set(shapes)) > 1:
            shown = ", ".join(str(tape.shape(node)) for node in operands)
            raise TapeError(f"{self.name} wants arrays of one shape, not of {shown}")
        operation = self.operation
        if self._check:
            self._check = False  # it is used in the check
            try:
                self.check(*(tape.value(node) for node in operands))
            except TapeError:
                self._check = True
                raise
        arguments = (shapes[0].rows, shapes[0].width, *operands)
        return record(tape, operation, shapes[0], operation.args(*arguments))

    def check(self, *x: Any) -> None:
        """Raise TapeError where the gradient is not that of the values, at these operands."""
        check_gradient(self, [np.atleast_2d(np.asarray(value, float)) for value in x])

    def width_of(self, *widths: int) -> int:
        """The columns of the result, from those of the operands."""
        return widths[0]

    @property
    def operation(self) -> ArrayOp:
        """The operation that tapes record."""
        if self._operation is None:
            self._operation = registered(self._made())
        return self._operation

    def _on_scalars(self, tape: Tape, operands: Sequence[int]) -> Any:
        nodes = [tape.node(node) for node in operands]
        result = self.formula(*nodes)
        if self._derivative is None:
            return result
        # The value of the formula, with the slopes that were given.
        fixed = [tape.node(tape.detach(node)) for node in operands]
        value = tape.node(tape.detach(getattr(result, "id", result)))
        slopes = _listed(self._derivative(*fixed, value))
        for node, constant, slope in zip(nodes, fixed, slopes, strict=True):
            value = value + (node - constant) * slope
        return value

    def _made(self) -> ArrayOp:
        graph, clean = self._recorded(self.formula, self._count, 1)
        if self._derivative is None:
            backward = backward_of(graph)
        else:
            backward = self._given_backward(self._derivative)
        identity = (self.name, self._count)
        return one_pass(self.name, graph, backward, clean=clean, identity=identity)

    def _given_backward(self, derivative: Callable[..., Any]) -> Backward:
        slopes, _ = self._recorded(derivative, self._count + 1, self._count)
        lines = [*loads(slopes, self._count), *forward_lines(slopes)]
        lines.insert(0, f"v{slopes.inputs[-1]} = simd.load(values, out + i)")
        lines.append("dout = simd.load(grads, g.dout + i)")
        gradients = [f"{vector_of(slopes, node, 'values')} * dout" for node in slopes.outputs]
        return Backward(lines, gradients)

    def _recorded(
        self, formula: Callable[..., Any], count: int, results: int
    ) -> tuple[Graph, bool]:
        """A formula's graph, and whether operands of 0 give 0 and finite slopes."""
        graphs = [self._graph(formula, count, results, point) for point in (*POINTS, 0.0)]
        first, second, (_, at_zero) = graphs
        if first[0] != second[0]:
            raise TapeError(
                f"{self.name}: the formula does not do the same to all numbers: a choice is not"
                " made by an if, but by relu, abs, maximum and the like"
            )
        return first[0], at_zero

    def _graph(
        self, formula: Callable[..., Any], count: int, results: int, point: float
    ) -> tuple[Graph, bool]:
        tape = Tape("float64")
        nodes = [tape.node(tape.var(point * (1 + 0.1 * j))) for j in range(count)]
        made = _listed(formula(*nodes))
        if len(made) != results:
            raise TapeError(f"{self.name}: {results} results are wanted, not {len(made)}")
        outputs = [
            node if hasattr(node, "id") else tape.node(tape.constant(float(node))) for node in made
        ]
        inputs, ids = tuple(node.id for node in nodes), tuple(node.id for node in outputs)
        steps, constants = steps_between(tape._replay_arrays(), inputs, ids)
        numbers = {node: float(tape.value(node)) for node in constants}
        graph = Graph(inputs, ids, tuple(steps), numbers)
        clean = all(float(node.value) == 0 for node in outputs)
        if clean:
            tape.backward(ids[0])
            clean = all(np.isfinite(float(tape.grad(node))) for node in inputs)
        return graph, clean


@overload
def elementwise(formula: Callable[..., Any], *, check: bool = False) -> Elementwise: ...
@overload
def elementwise(*, check: bool = False) -> Callable[[Callable[..., Any]], Elementwise]: ...
def elementwise(formula: Callable[..., Any] | None = None, *, check: bool = False) -> Any:
    """Make an operation on arrays, element by element, of a function of scalar handles.

        @elementwise
        def swish(a, beta):
            return a / (1 + (-(a * beta)).exp())

        y = swish(x, b)

    The function is called with handles, and says with their operators and methods what the result
    is; its derivative follows from that, or is given by `@swish.derivative`. Scalar nodes may be
    operands too. check: compare the gradient with differences when it is first used.
    """
    if formula is None:
        return lambda formula: Elementwise(formula, check)
    return Elementwise(formula, check)


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (tuple, list)) else [results]
