"""What handles of scalars and of arrays have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels.ops.scalar.formulas import FORMULAS
from tapegpt.kernels.registry import CODES
from tapegpt.tape.types import Number, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape
    from tapegpt.tape.handles.array import Array
    from tapegpt.tape.handles.scalar import Scalar

UNARY = {formula.name: CODES[formula] for formula in FORMULAS if not formula.second}
BINARY = {
    formula.name: CODES[formula] for formula in FORMULAS if formula.second and not formula.goes_on
}
OF_A_CONSTANT = {CODES[formula] for formula in FORMULAS if formula.second == "c"}
(MULTIPLY_ADD,) = (CODES[formula] for formula in FORMULAS if formula.goes_on)

H = TypeVar("H", "Scalar", "Array")  # what an operation takes is what it gives

new = object.__new__


Node = Union["Handle", SupportsIndex]  # a handle, or the id of a node
Operand = Union["Handle", Number, ArrayLike]


class Generation:
    """The time between two resets of a tape, in which a handle was made."""

    __slots__ = ("number", "tape")

    def __init__(self, tape: Any, number: int) -> None:
        self.tape: Tape = tape
        self.number = number


class Handle:
    """A node of a tape, a scalar or an array. Tapes make them."""

    __slots__ = ("generation", "id")

    generation: Generation
    id: int

    @property
    def tape(self) -> Tape:
        """The tape that the node lies on."""
        return self.generation.tape

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Handle):
            same = self.tape is other.tape
            return same and self.tape._plain(self) == self.tape._plain(other)
        if isinstance(other, Number):
            raise TapeError("== compares nodes: of values ask handle.value == number")
        return NotImplemented

    def __hash__(self) -> int:
        return hash((id(self.tape), self.id))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """A NumPy function of handles, numbers and arrays, element by element of the arrays."""
        if method != "__call__" or kwargs:
            return NotImplemented
        return ufunc(*(as_object(x) if isinstance(x, Handle) else x for x in inputs))


def as_object(handle: Handle) -> NDArray[np.object_]:
    """An array without dimensions that holds a handle."""
    held = np.empty((), object)
    held.fill(handle)
    return held


def has_elements(operand: object) -> bool:
    return isinstance(operand, np.ndarray) and (operand.ndim > 0 or operand.dtype == object)
