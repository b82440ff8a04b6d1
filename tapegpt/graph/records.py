"""The records of a program, as passes see them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.op import DOUT, OVERWRITE, ArrayOp, place, with_gradients
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import OPERATIONS


class Record(NamedTuple):
    """A record of an array operation, its arguments and its list for the reverse sweep."""

    number: int
    operation: ArrayOp
    out: int
    at: int
    back: int
    operands: Any  # of all records

    def argument(self, name: str) -> int:
        """The argument of this name."""
        return int(self.operands[self.place(name)])

    def place(self, name: str) -> int:
        """Where in `operands` an argument lies."""
        return self.at + place(self.operation.args, name)

    def arrays(self, names: tuple[str, ...]) -> list[int]:
        """The arguments of these names."""
        return [self.argument(name) for name in names]

    @property
    def overwrite_place(self) -> int:
        """Where in `operands` the bits lie of gradients that are written here first."""
        return self.back + OVERWRITE

    @property
    def dout_place(self) -> int:
        """Where in `operands` the gradient of the result is named."""
        return self.back + DOUT

    def gradient_places(self) -> Iterator[tuple[int, int]]:
        """(argument, where in `operands` its gradient is named), of all that have one."""
        given = with_gradients(self.operation.args) if self.operation.backward else ()
        for i, argument in enumerate(given):
            yield int(self.operands[self.at + argument]), self.back + 2 + i


def array_records(tape: TapeArrays) -> list[Record]:
    """The records of operations on arrays, in order."""
    found = []
    for number, (code, out, at, back) in enumerate(tape.records.tolist()):
        operation = OPERATIONS[code & OPCODE]
        if isinstance(operation, ArrayOp):
            found.append(Record(number, operation, out, at, back, tape.operands))
    return found
