"""The records between some nodes and some others, one scalar operation with one result a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tapegpt.kernels.layout import OPCODE, OPCODE_BITS
from tapegpt.kernels.op import ArrayOp, Kind, fields_of_kind, place
from tapegpt.kernels.ops.embedding import EMBED
from tapegpt.kernels.ops.scalar import dot, lookup, reduce, strided
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.tape.types import TapeError

# More would take minutes to compile.
MOST_STEPS = 20_000


class Step(NamedTuple):
    """One operation: a formula, or the name of one with any number of operands; or one on arrays.

    sum: a + b + ...; dot: pairs, a0, b0, a1, b1, ...; max; softmax, with as many results.
    """

    operation: Formula | ArrayOp | str
    results: tuple[int, ...]
    operands: tuple[int, ...]


Reader = Callable[[np.ndarray, int, int], Iterator[Step]]


def steps_between(
    arrays: TapeArrays,
    inputs: Sequence[int],
    outputs: Sequence[int],
    most: int | None = MOST_STEPS,
) -> tuple[list[Step], list[int]]:
    """The steps that compute outputs from inputs, in order, and the nodes that are constants.

    A result that does not depend on the inputs is a constant too. Raises `TapeError` where there
    are more steps than `most`, too many to compile.
    """
    dependent, wanted = set(inputs), set(outputs)
    made: list[Step] = []
    for step in every_step(arrays):
        if isinstance(step.operation, ArrayOp):
            continue
        # What is computed of an input itself does not count: it is given.
        if dependent.intersection(step.operands) and not dependent.issuperset(step.results):
            dependent.update(step.results)
            made.append(step)
    live: list[Step] = []
    for step in reversed(made):
        if wanted.intersection(step.results):
            wanted.update(step.operands)
            live.append(step)
    if most is not None and len(live) > most:
        raise TapeError(
            f"function: {len(live)} operations lie between, at most {most} can be compiled:"
            " record what is done to one row, and map that"
        )
    return live[::-1], sorted(wanted - dependent)


def every_step(arrays: TapeArrays) -> Iterator[Step]:
    """The steps of all records, in order; of operations on arrays the first node of the result."""
    operands, inputs = arrays.operands, arrays.inputs
    for code, out, a, b in arrays.records.tolist():
        yield from steps_of(operands, inputs, code, out, a, b)


def steps_of(
    operands: np.ndarray, inputs: np.ndarray, code: int, out: int, a: int, b: int
) -> Iterator[Step]:
    """The steps of one record."""
    operation = OPERATIONS[code & OPCODE]
    if isinstance(operation, Formula):
        nodes = (a, b) if operation.second else (a,)
        if operation.goes_on:
            nodes = (*nodes, out - (code >> OPCODE_BITS))
        yield Step(operation, (out,), nodes)
    elif operation is lookup.LOOKUP:
        count, base, slot, stride = _listed(operands, a, 4)
        found = base + int(inputs[slot]) * stride
        yield from (Step("sum", (out + i,), (found + i,)) for i in range(count))
    elif operation in READERS:
        yield from READERS[operation](operands, out, a)
    elif isinstance(operation, ArrayOp):
        names = fields_of_kind(operation.args, Kind.DIFFERENTIABLE, Kind.PARAMETER)
        given = [int(operands[a + place(operation.args, name)]) for name in names]
        if operation is EMBED:
            count, pairs = (a + place(EMBED.args, name) for name in ("tables", "pairs"))
            given = operands[pairs : pairs + 2 * int(operands[count]) : 2].tolist()
        yield Step(operation, (out,), tuple(node for node in given if node >= 0))


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
