"""A sum of very many terms that are all alike: one term, and where the others read their inputs.

Term i reads input begin + i, for each of a few begins. So the sum is a function of one term, mapped
over windows of the array of all inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from tapegpt.functions.source import Graph
from tapegpt.functions.steps import Step
from tapegpt.kernels.layout import OPCODE, OPCODE_BITS
from tapegpt.kernels.op import place
from tapegpt.kernels.ops.scalar import reduce, strided
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.registry import OPERATIONS, opcode
from tapegpt.tape.types import TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

Ids = NDArray[np.int64]


class Windows(NamedTuple):
    """The graph of one term, and where the windows of its inputs begin."""

    term: Graph
    begins: tuple[int, ...]
    terms: int


def windows_of(tape: Tape, inputs: Ids, output: int) -> Windows:
    """The terms of an output that is a sum; TapeError where they are not all alike."""
    if (np.diff(inputs) != 1).any():
        _refuse("so many inputs must be nodes one after the other, as `variables` gives them")
    return _Reader(tape, inputs).windows(output)


class _Reader:
    """Looks at a node of all terms at once: ids[i] is that of term i."""

    def __init__(self, tape: Tape, inputs: Ids) -> None:
        self._tape = tape
        self._arrays = tape._replay_arrays()
        self._outs = self._arrays.records[:, 1].astype(np.int64)
        self._first, self._size = int(inputs[0]), len(inputs)
        self._steps: list[Step] = []
        self._begins: dict[int, int] = {}  # numbers of nodes, by where their window begins
        self._constants: dict[int, float] = {}
        self._numbers: dict[tuple[int, int, int], tuple[Ids, int]] = {}  # of nodes known

    def windows(self, output: int) -> Windows:
        terms = self._terms(output)
        root = self._number(terms)
        if root in self._constants or not self._begins:
            _refuse("the terms do not depend on the inputs")
        nodes = tuple(self._begins.values())
        graph = Graph(nodes, (root,), tuple(self._steps), self._constants)
        return Windows(graph, tuple(self._begins), len(terms))

    def _terms(self, output: int) -> Ids:
        record = int(np.searchsorted(self._outs, output, side="right")) - 1
        code, out, at, _ = self._arrays.records[record].tolist() if record >= 0 else (-1,) * 4
        if code & OPCODE != opcode(reduce.SUM) or out != output:
            _refuse("with so many inputs the output must be a sum, as `tape.sum` records it")
        operands = self._arrays.operands
        begin, count = (at + place(reduce.Args, name) for name in ("nodes", "length"))
        return operands[begin : begin + int(operands[count])]

    def _number(self, ids: Ids) -> int:
        """The node of one term's graph that stands for these."""
        key = (int(ids[0]), int(ids[-1]), int(ids[len(ids) // 2]))
        if key in self._numbers and np.array_equal(self._numbers[key][0], ids):
            return self._numbers[key][1]
        if self._are_inputs(ids):
            number = self._window(ids)
        elif (found := self._made(ids)) is not None:
            formula, operands = found
            numbers = tuple(self._number(given) for given in operands)
            number = self._new()
            if all(operand in self._constants for operand in numbers):
                self._constants[number] = self._same_value(ids)
            else:
                self._steps.append(Step(formula, (number,), numbers))
        else:
            number = self._new()
            self._constants[number] = self._same_value(ids)
        self._numbers[key] = ids, number
        return number

    def _new(self) -> int:
        return len(self._steps) + len(self._begins) + len(self._constants)

    def _are_inputs(self, ids: Ids) -> bool:
        return bool(((ids >= self._first) & (ids < self._first + self._size)).all())

    def _window(self, ids: Ids) -> int:
        if (np.diff(ids) != 1).any():
            _refuse("each term must read the input after the one that the term before it reads")
        begin = int(ids[0]) - self._first
        if begin not in self._begins:
            self._begins[begin] = self._new()
        return self._begins[begin]

    def _same_value(self, ids: Ids) -> float:
        # Computed by now, as all records are once a value is asked for.
        self._tape.value(int(ids[-1]))
        values = self._tape.values[ids]
        if (values != values[0]).any():
            _refuse("a number that is no input is not the same in all terms")
        return float(values[0])

    def _made(self, ids: Ids) -> tuple[Formula, list[Ids]] | None:
        """The formula that made these nodes and its operands; None of leaves."""
        records = np.searchsorted(self._outs, ids, side="right") - 1
        rows = self._arrays.records[np.maximum(records, 0)].astype(np.int64)
        codes, distances = rows[:, 0] & OPCODE, rows[:, 0] >> OPCODE_BITS
        operation: Any = OPERATIONS[int(codes[0])]
        inside = ids - rows[:, 1]
        count = self._arrays.operands[rows[0, 2]] if operation is strided.STRIDED else 1
        if (records < 0).any() or (inside >= count).any():
            return None
        if (codes != codes[0]).any():
            _refuse("the terms are not made by the same operations")
        if operation is strided.STRIDED and (records == records[0]).all():
            return self._strided(int(rows[0, 2]), inside)
        if not isinstance(operation, Formula):
            _refuse(f"the terms hold {operation.name}, not operations of one number or two alone")
        operands = [rows[:, 2], rows[:, 3]] if operation.second else [rows[:, 2]]
        if operation.goes_on:
            operands.append(ids - distances)
        return operation, operands

    def _strided(self, at: int, inside: Ids) -> tuple[Formula, list[Ids]]:
        listed = self._arrays.operands[at : at + len(strided.Args._fields)].tolist()
        arguments = strided.Args(*listed)
        formula = strided.ROWS[arguments.formula]
        row, column = np.divmod(inside, arguments.length)
        a = arguments.a + row * arguments.a_row + column * arguments.a_step
        b = arguments.b + row * arguments.b_row + column * arguments.b_step
        return formula, [a, b] if formula.second else [a]


def _refuse(problem: str) -> NoReturn:
    raise TapeError(f"function: {problem}; or record what is done to one row, and map that")
