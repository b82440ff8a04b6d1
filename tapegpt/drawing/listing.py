"""The records of a tape with the names of their operations, as a list and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tapegpt.functions.steps import steps_of
from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.op import Kind, kinds
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.registry import OPERATIONS

if TYPE_CHECKING:
    from tapegpt.tape import Tape

SHOWN = 8  # nodes of one operation in a listing
MOST = 60  # nodes of a drawing; longer listings leave out the middle


class Recorded(NamedTuple):
    """One operation: its name, its first result, the nodes it reads, its arguments and results."""

    name: str
    out: int
    nodes: tuple[int, ...]  # each once; of those that pass no gradient none
    arguments: dict[str, int]  # by name; none where the nodes say all
    results: tuple[int, ...]  # scalar nodes, or the id of an array


def records(tape: Tape) -> Iterator[Recorded]:
    """The operations of a tape, in order."""
    arrays = tape._replay_arrays()
    for record in arrays.records.tolist():
        code, out, at, _ = record
        operation: Any = OPERATIONS[code & OPCODE]
        given: dict[str, int] = {}
        if not isinstance(operation, Formula):
            names = [name for name, kind in kinds(operation.args).items() if kind is not Kind.REST]
            given = dict(zip(names, arrays.operands[at : at + len(names)].tolist(), strict=False))
        steps = list(steps_of(arrays.operands, arrays.inputs, *record))
        nodes = dict.fromkeys(node for step in steps for node in step.operands)
        results = tuple(node for step in steps for node in step.results) or (out,)
        yield Recorded(operation.name, out, tuple(nodes), given, results)


def listing(tape: Tape) -> str:
    """A line for every operation: its result, its name, what it reads, and the value."""
    lines = [_line(tape, record) for record in records(tape)]
    if len(lines) > MOST:
        left_out = len(lines) - MOST
        lines[MOST // 2 : -MOST // 2] = [f"... {left_out} more"]
    return "\n".join(lines)


def _line(tape: Tape, record: Recorded) -> str:
    listed = [str(node) for node in record.nodes]
    if len(listed) > SHOWN:
        listed[SHOWN // 2 : -SHOWN // 2] = [f"... {len(listed) - SHOWN} more"]
    nodes = ", ".join(listed)
    shape = tape.shape(record.out) if record.out < len(tape) else ()
    shown = f"{tape.value(record.out):.6g}" if shape == () else f"{shape[0]} x {shape[1]}"
    return f"{record.out:>6} = {record.name}({nodes})  {shown}"
