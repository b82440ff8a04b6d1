"""Whether an operation's gradient is that of its values: directional derivatives compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.tape import Tape
from tapegpt.tape.types import TapeError

STEP = 1e-5
TOLERANCE = 1e-6  # of differences of float64 numbers, to their size


def check_gradient(operation: Callable[..., Any], operands: Sequence[NDArray[Any]]) -> None:
    """Raise TapeError where differences disagree with the gradient for an operand.

    The result is weighed at random, its gradient compared along a random direction of each operand,
    in float64.
    """
    rng = np.random.default_rng(0)
    tape = Tape("float64")
    nodes = [tape.parameter(value) for value in operands]
    result = operation(tape, *nodes)
    rows, width = tape.shape(result)
    # A weighted sum of all elements: the trace of w^T y.
    weights = rng.normal(size=(rows, width))
    total = tape.mean(_weighted(tape, result, weights))
    tape.backward(total)
    gradients = [np.array(tape.grad(node)) for node in nodes]
    for place, (node, value, gradient) in enumerate(zip(nodes, operands, gradients, strict=True)):
        direction = rng.normal(size=value.shape)
        ends = []
        for sign in (1, -1):
            tape.set_value(node, value + sign * STEP * direction)
            tape.forward()
            ends.append(float(tape.value(total)))
        tape.set_value(node, value)
        measured, passed = (ends[0] - ends[1]) / (2 * STEP), float((gradient * direction).sum())
        if not abs(measured - passed) <= TOLERANCE * max(1.0, abs(measured), abs(passed)):
            name = getattr(operation, "name", "the operation")
            raise TapeError(
                f"{name}: the gradient for operand {place + 1} is wrong: {passed:.9g} along a"
                f" direction where the values change by {measured:.9g}"
            )


def _weighted(tape: Tape, node: Any, weights: NDArray[np.float64]) -> Any:
    from tapegpt.functions.elementwise import elementwise

    global _product
    if _product is None:
        _product = elementwise(lambda a, b: a * b)
    return _product(tape, node, tape.array(weights * weights.size))


_product: Any = None
