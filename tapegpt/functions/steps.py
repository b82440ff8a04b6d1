"""The records between some nodes and some others, one scalar operation with one result a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tapegpt.kernels.layout import OPCODE, OPCODE_BITS
from tapegpt.kernels.ops.scalar import dot, lookup, reduce, strided
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.tape.types import TapeError

# More would take minutes to compile.
MOST_STEPS = 20_000


class Step(NamedTuple):
    """One operation: a formula, or the name of one with any number of operands.

    sum: a + b + ...; dot: pairs, a0, b0, a1, b1, ...; max; softmax, with as many results.
    """

    operation: Formula | str
    results: tuple[int, ...]
    operands: tuple[int, ...]


Reader = Callable[[np.ndarray, int, int], Iterator[Step]]


def steps_between(
    arrays: TapeArrays, inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[list[Step], list[int]]:
    """The steps that compute outputs from inputs, in order, and the nodes that are constants.

    A result that does not depend on the inputs is a constant too. Raises `TapeError` where there
    are too many steps to compile.
    """
    dependent, wanted = set(inputs), set(outputs)
    made: list[Step] = []
    for step in _steps(arrays):
        # What is computed of an input itself does not count: it is given.
        if dependent.intersection(step.operands) and not dependent.issuperset(step.results):
            dependent.update(step.results)
            made.append(step)
    live: list[Step] = []
    for step in reversed(made):
        if wanted.intersection(step.results):
            wanted.update(step.operands)
            live.append(step)
    if len(live) > MOST_STEPS:
        raise TapeError(
            f"function: {len(live)} operations lie between, at most {MOST_STEPS} can be compiled:"
            " record what is done to one row, and map that"
        )
    return live[::-1], sorted(wanted - dependent)


def _steps(arrays: TapeArrays) -> Iterator[Step]:
    for code, out, a, b in arrays.records.tolist():
        operation = OPERATIONS[code & OPCODE]
        if isinstance(operation, Formula):
            operands = (a, b) if operation.second else (a,)
            if operation.goes_on:
                operands = (*operands, out - (code >> OPCODE_BITS))
            yield Step(operation, (out,), operands)
        elif operation is lookup.LOOKUP:
            count, base, slot, stride = _listed(arrays.operands, a, 4)
            found = base + int(arrays.inputs[slot]) * stride
            yield from (Step("sum", (out + i,), (found + i,)) for i in range(count))
        elif operation in READERS:
            yield from READERS[operation](arrays.operands, out, a)


def _sum(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    yield Step("sum", (out,), _listed(operands, at + 1, int(operands[at])))


def _max(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    yield Step("max", (out,), _listed(operands, at + 1, int(operands[at])))


def _softmax(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    count = int(operands[at])
    yield Step("softmax", tuple(range(out, out + count)), _listed(operands, at + 1, count))


def _dot(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    count = int(operands[at])
    a, b = (_listed(operands, begin, count) for begin in (at + 1, at + 1 + count))
    yield Step("dot", (out,), _alternating(a, b))


def _dot_run(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    count, a, b = _listed(operands, at, 3)
    yield Step("dot", (out,), _alternating(range(a, a + count), range(b, b + count)))


def _dot_rows(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    rows, count, b = _listed(operands, at, 3)
    for row, a in enumerate(_listed(operands, at + 3, rows)):
        yield Step("dot", (out + row,), _alternating(range(a, a + count), range(b, b + count)))


def _dot_columns(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    columns, count, a = _listed(operands, at, 3)
    starts = _listed(operands, at + 3, count)
    for column in range(columns):
        b = [start + column for start in starts]
        yield Step("dot", (out + column,), _alternating(range(a, a + count), b))


def _strided(operands: np.ndarray, out: int, at: int) -> Iterator[Step]:
    arguments = strided.Args(*_listed(operands, at, len(strided.Args._fields)))
    formula = strided.ROWS[arguments.formula]
    for number in range(arguments.results):
        row, column = divmod(number, arguments.length)
        a = arguments.a + row * arguments.a_row + column * arguments.a_step
        b = arguments.b + row * arguments.b_row + column * arguments.b_step
        yield Step(formula, (out + number,), (a, b) if formula.second else (a,))


def _listed(operands: np.ndarray, begin: int, count: int) -> tuple[int, ...]:
    return tuple(operands[begin : begin + count].tolist())


def _alternating(a: Iterable[int], b: Iterable[int]) -> tuple[int, ...]:
    return tuple(node for pair in zip(a, b, strict=True) for node in pair)


READERS: dict[object, Reader] = {
    reduce.SUM: _sum,
    reduce.MAX: _max,
    reduce.SOFTMAX: _softmax,
    dot.DOT: _dot,
    dot.DOT_RUN: _dot_run,
    dot.DOT_ROWS: _dot_rows,
    dot.DOT_COLUMNS: _dot_columns,
    strided.STRIDED: _strided,
}
