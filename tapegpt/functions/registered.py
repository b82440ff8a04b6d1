"""Operations that are added while a program runs: their opcodes, and how tapes record them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from tapegpt.kernels.op import ArrayOp
from tapegpt.kernels.registry import OPERATIONS, new_table, register
from tapegpt.tape import Tape
from tapegpt.tape.types import Shape, TapeError

_registering = threading.Lock()


def registered(operation: ArrayOp) -> ArrayOp:
    """The operation, with an opcode."""
    with _registering:
        register(operation)
    return operation


def record(tape: Tape, operation: ArrayOp, shape: Shape, arguments: tuple[Any, ...]) -> Any:
    """Record an operation, on a tape that may be older than it."""
    make_room(tape)
    return tape._record_array(operation, shape, arguments)


def make_room(tape: Tape) -> None:
    """Give a tape's table of kernels room for operations that are newer than the tape."""
    if len(tape.kernels) < len(OPERATIONS):
        table = new_table()
        table[: len(tape.kernels)] = tape.kernels
        tape.kernels = table


def tape_of(name: str, given: Sequence[Any], count: int) -> tuple[Tape, list[int]]:
    """The tape, and the ids of the operands, of handles or of a tape and ids."""
    if given and isinstance(given[0], Tape):
        tape, nodes = given[0], given[1:]
    else:
        nodes = given
        tapes = [node.tape for node in nodes if isinstance(getattr(node, "tape", None), Tape)]
        if len(tapes) != len(nodes) or not tapes:
            raise TapeError(f"{name} wants handles of nodes, or a tape and then ids")
        tape = tapes[0]
    if len(nodes) != count:
        raise TapeError(f"{name} wants {count} operands, not {len(nodes)}")
    return tape, [tape._any(node) for node in nodes]


def arrays_of(name: str, tape: Tape, operands: Sequence[int]) -> list[Shape]:
    """The shapes of operands that must be arrays."""
    shapes = [tape._shapes.get(node) for node in operands]
    if None in shapes:
        raise TapeError(f"{name}: node {operands[shapes.index(None)]} is no array")
    return shapes  # type: ignore[return-value]
