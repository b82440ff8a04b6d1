"""Opcodes by the names of operations, and what is declared of them, for tests that read records."""

from tapegpt.kernels.op import Kind, fields_of_kind, place
from tapegpt.kernels.registry import OPERATIONS, array_op


def all_named(name: str) -> list[int]:
    """The opcodes of all variants of an operation."""
    found = [code for code, operation in enumerate(OPERATIONS) if operation.name == name]
    assert found, name
    return found


def named(name: str, variant: int = 0) -> int:
    """The opcode of an operation."""
    return all_named(name)[variant]


def _places(opcode: int, kind: Kind) -> tuple[int, ...]:
    operation = array_op(opcode)
    if operation is None:
        return ()
    return tuple(place(operation.args, name) for name in fields_of_kind(operation.args, kind))


def differentiable(opcode: int) -> tuple[int, ...]:
    """Places in the argument list of what a gradient is passed to."""
    return _places(opcode, Kind.DIFFERENTIABLE)


def gradient_rooms(opcode: int) -> tuple[int, ...]:
    """Places of what has a gradient that is room for the kernel."""
    return _places(opcode, Kind.GRADIENT_ROOM)


def has_gradients(opcode: int) -> bool:
    """Whether records have a list for the reverse sweep."""
    return array_op(opcode) is not None


SEVERAL = [code for code, operation in enumerate(OPERATIONS) if operation.several]
