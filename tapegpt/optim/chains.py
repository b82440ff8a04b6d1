"""Chains of elementwise records that become one record, for the steps of an optimizer.

Each record is a pass over memory: its result is written, and read again, and so is its gradient.
In a chain only the last result is: what lies between is computed in registers, and computed again
in the reverse sweep. That pays where arrays do not fit in the cache, and costs kernels that are
compiled for the chain alone, so small arrays are left as they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.functions.one_pass import backward_of, one_pass
from tapegpt.functions.registered import registered
from tapegpt.functions.source import Graph
from tapegpt.functions.steps import Step
from tapegpt.graph.records import Record
from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.op import ArrayOp, kinds, with_gradients
from tapegpt.kernels.ops import elementwise
from tapegpt.kernels.ops.array.pointwise import POINTWISE
from tapegpt.kernels.ops.scalar.formulas import FORMULAS, Formula
from tapegpt.kernels.registry import OPERATIONS, opcode
from tapegpt.optim.packing import Packing
from tapegpt.tape.types import Ids, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

# What a chain must save: bytes of values and gradients that are neither written nor read.
LEAST_SAVED = 1 << 20
MOST_STEPS = 32  # more would take long to compile, and more registers than there are
# Exponents are compiled in. A power with any other, which may be one of many, is in no chain.
EXPONENTS = frozenset({-2.0, -1.0, -0.5, 0.5, 1.5, 2.0, 3.0, 4.0})

OPERATION_OF = {
    **POINTWISE,
    "add": elementwise.ADD,
    "scale": elementwise.SCALE,
    "relu": elementwise.RELU,
}
FORMULA_OF: dict[object, Formula] = {
    operation: formula
    for formula in FORMULAS
    for operation in {POINTWISE.get(formula.name), OPERATION_OF.get(formula.name)}
    if operation is not None
}


class Program(NamedTuple):
    """A tape's records, what they read, and which nodes are left without a gradient."""

    records: NDArray[np.uint32]  # (count, 4)
    operands: Ids  # of all records
    without_gradient: frozenset[int] = frozenset()
    # Numbers that kernels were compiled for: nodes, and their values.
    numbers: tuple[tuple[int, float], ...] = ()


class Link(NamedTuple):
    """A record that a chain may have."""

    record: Record
    formula: Formula
    operands: tuple[int, ...]


def fuse_chains(tape: Tape, packing: Packing, end: int) -> Program:
    """The program of the records 0 to end - 1, with a record for each chain that is worth it.

    A chain has one result, and nobody else reads what lies between.
    """
    program = Program(tape._record_rows()[:end].copy(), np.array(tape._operands, np.int64))
    is_fixed = cache(partial(_is_fixed, tape, packing))
    links = _links(tape, is_fixed, program)
    records, operands = program.records, program.operands.tolist()
    kept = np.ones(len(records), bool)
    without_gradient: set[int] = set()
    numbers: dict[int, float] = {}
    for chain in _chains(links, _read_elsewhere(tape, program, links)):
        last = chain[-1]
        if _saved(tape, last.record.out, len(chain) - 1) < LEAST_SAVED:
            continue
        between = {link.record.out for link in chain}
        given = [node for link in chain for node in link.operands if node not in between]
        arrays = [node for node in dict.fromkeys(given) if node in tape._shapes]
        passes = [not is_fixed(node) for node in arrays]
        if not any(passes):
            continue
        exponents = {
            link.operands[1]: float(tape.values[link.operands[1]])
            for link in chain
            if link.formula.name == "pow"
        }
        scalars = [
            node
            for node in dict.fromkeys(given)
            if node not in tape._shapes and node not in exponents
        ]
        operation = _operation(_described(chain, arrays, scalars, exponents), tuple(passes))
        shape = tape._shapes[last.record.out]
        arguments = operation.args(shape.rows, shape.width, *arrays, *scalars)
        at = len(operands)
        operands += arguments
        back = len(operands)
        operands += [0, last.record.out]
        operands += [arguments[place] for place in with_gradients(operation.args)]
        records[last.record.number] = opcode(operation), last.record.out, at, back
        kept[[link.record.number for link in chain[:-1]]] = False
        numbers |= exponents
        without_gradient |= between - {last.record.out}
        without_gradient |= {*scalars, *exponents}
        without_gradient |= {
            x for x, is_passed in zip(arrays, passes, strict=True) if not is_passed
        }
    return Program(
        records[kept],
        np.array(operands, np.int64),
        frozenset(without_gradient),
        tuple(numbers.items()),
    )


def _saved(tape: Tape, array: int, count: int) -> int:
    """Bytes of the values and gradients of so many arrays like this one."""
    return 2 * tape.extents[array] * tape.dtype.itemsize * count


def _links(tape: Tape, is_fixed: Callable[[int], bool], program: Program) -> dict[int, Link]:
    """The records that a chain may have, by their results."""
    operations = [OPERATIONS[code] for code in (program.records[:, 0] & OPCODE).tolist()]
    if tape._batch is not None or len(tape._often_used().nodes):
        return {}
    links = {}
    for number, operation in enumerate(operations):
        formula = FORMULA_OF.get(operation)
        if formula is None:
            continue
        assert isinstance(operation, ArrayOp)
        _, out, at, back = program.records[number].tolist()
        if _saved(tape, out, MOST_STEPS) < LEAST_SAVED:
            continue
        record = Record(number, operation, out, at, back, program.operands)
        names = [name for name in kinds(operation.args) if name in ("x", "y", "factor")]
        given = tuple(record.arrays(tuple(names)))
        if all(
            tape._shapes[x] == tape._shapes[out] if x in tape._shapes else is_fixed(x)
            for x in given
        ) and (formula.name != "pow" or tape.values.item(given[1]) in EXPONENTS):
            links[out] = Link(record, formula, given)
    return links


def _is_fixed(tape: Tape, packing: Packing, node: int) -> bool:
    """Whether it is a leaf that the optimizer does not move."""
    try:
        return not packing.moves(tape._leaf(node))
    except TapeError:
        return False


def _read_elsewhere(tape: Tape, program: Program, links: dict[int, Link]) -> set[int]:
    """The arrays that others than these records may read: any number may be part of one."""
    others = np.ones(len(program.operands), bool)
    for link in links.values():
        _, operation, _, at, back, _ = link.record
        others[at : at + len(kinds(operation.args))] = False
        if operation.backward is not None:
            others[back : back + 2 + len(with_gradients(operation.args))] = False
    rest = np.ones(len(program.records), bool)
    rest[[link.record.number for link in links.values()]] = False
    given = [node for link in links.values() for node in link.operands if node not in links]
    read = [program.operands[others], np.array(given, np.int64), *program.records[rest, 2:].T]
    used = np.unique(np.concatenate(read))
    begins = np.array(sorted(links), np.int64)
    ends = begins + np.array([tape.extents[array] for array in begins.tolist()], np.int64)
    is_read = np.searchsorted(used, begins) < np.searchsorted(used, ends)
    return set(begins[is_read].tolist())


def _chains(links: dict[int, Link], elsewhere: set[int]) -> Iterable[list[Link]]:
    """Records with one result, in order, where nobody else reads the results of the others."""
    users: dict[int, set[int]] = defaultdict(set)
    for out, link in links.items():
        for node in link.operands:
            users[node].add(out)
    last: dict[int, int] = {}  # of the chain of each result
    length: Counter[int] = Counter()
    for out in reversed(links):
        ends = {last[user] for user in users[out]}
        only = ends.pop() if len(ends) == 1 and out not in elsewhere else out
        last[out] = only if length[only] < MOST_STEPS else out
        length[last[out]] += 1
    chains: dict[int, list[Link]] = defaultdict(list)
    for out, link in links.items():
        chains[last[out]].append(link)
    return [chain for chain in chains.values() if len(chain) > 1]


class Description(NamedTuple):
    """A chain whatever its nodes are: its operands are numbered, arrays first, results last."""

    arrays: int
    scalars: int
    steps: tuple[tuple[Formula, tuple[int, ...]], ...]
    exponents: tuple[tuple[int, float], ...]


def _described(
    chain: list[Link], arrays: list[int], scalars: list[int], exponents: dict[int, float]
) -> Description:
    results = [link.record.out for link in chain]
    place = {node: i for i, node in enumerate([*arrays, *scalars, *exponents, *results])}
    return Description(
        len(arrays),
        len(scalars),
        tuple((link.formula, tuple(place[x] for x in link.operands)) for link in chain),
        tuple((place[node], value) for node, value in exponents.items()),
    )


@cache
def _operation(chain: Description, passes: tuple[bool, ...]) -> ArrayOp:
    """The operation of all chains that are alike."""
    inputs = chain.arrays + chain.scalars
    first = inputs + len(chain.exponents)
    steps = tuple(
        Step(formula, (first + i,), operands) for i, (formula, operands) in enumerate(chain.steps)
    )
    outputs = (first + len(steps) - 1,)
    graph = Graph(tuple(range(inputs)), outputs, steps, dict(chain.exponents), guarded=True)
    name = "_".join(formula.name for formula, _ in chain.steps[:4])
    backward = backward_of(graph, chain.arrays)
    made = one_pass(name, graph, backward, clean=False, passes=passes, scalars=chain.scalars)
    return registered(made)
