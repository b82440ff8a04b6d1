"""Handles: a node of a tape, with operators, so that a graph reads like its formula.

    x, y = tape.var(3.0), tape.var(2.0)
    (x * y + x).backward()
    x.grad  # 3.0

A handle is no number and no index: `float(x)` is the node's value, `x.id` its id. A handle whose
node a `reset` has forgotten raises TapeError, instead of standing for whatever has its id by then.

`==` and `hash` are about the node: two handles are equal if they stand for the same one. Whether
values are equal is asked of values, `x.value == y.value`; `==` with a number raises TapeError.
`bool` of a scalar is that of its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, Union, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tapegpt.kernels.ops.scalar.formulas import FORMULAS
from tapegpt.kernels.registry import CODES
from tapegpt.tape.types import Floats, Number, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

UNARY = {formula.name: CODES[formula] for formula in FORMULAS if not formula.second}
BINARY = {
    formula.name: CODES[formula] for formula in FORMULAS if formula.second and not formula.goes_on
}
(MULTIPLY_ADD,) = (CODES[formula] for formula in FORMULAS if formula.goes_on)

H = TypeVar("H", "Scalar", "Array")  # what an operation takes is what it gives

new = object.__new__


Node = Union["Handle", SupportsIndex]  # a handle, or the id of a node


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
        return ufunc(*(_as_object(x) if isinstance(x, Handle) else x for x in inputs))


def _as_object(handle: Handle) -> NDArray[np.object_]:
    """An array without dimensions that holds a handle."""
    held = np.empty((), object)
    held.fill(handle)
    return held


def _has_elements(operand: object) -> bool:
    return isinstance(operand, np.ndarray) and (operand.ndim > 0 or operand.dtype == object)


def _binary(name: str, of_number: str = "") -> Callable[[Scalar, Scalar | Number], Scalar]:
    """The operator that records a scalar operation of two operands.

    of_number: what it records if the second is a number, unless that is the same.
    """
    code, code_of_number = BINARY[name], BINARY[of_number or name]

    def operate(self: Scalar, other: Scalar | Number) -> Scalar:
        generation = self.generation
        if type(other) is Scalar and other.generation is generation:
            tape = generation.tape
            # See Memory._pending: nothing is called before the record is complete.
            if (
                tape.generation is generation
                and not tape._held
                and (out := tape._size) < tape._room
            ):
                tape._size = out + 1
                pending = tape._pending
                pending += (code, out, self.id, other.id)
                result = new(Scalar)
                result.generation = generation
                result.id = out
                return result
        if isinstance(other, Scalar):
            if other.generation.tape is not generation.tape:
                raise TapeError("the two nodes lie on different tapes")
            return generation.tape._record_scalar(code, self, other)
        if isinstance(other, Handle) or _has_elements(other):
            return cast(Scalar, NotImplemented)
        return generation.tape._with_number(code_of_number, self, other)  # type: ignore[no-any-return]

    return operate


def _reflected(name: str) -> Callable[[Scalar, Number], Scalar]:
    """The operator for a number on the left."""
    code = BINARY[name]

    def operate(self: Scalar, other: Number) -> Scalar:
        if _has_elements(other):
            return cast(Scalar, NotImplemented)
        tape = self.generation.tape
        return tape._with_number(code, self, other, number_first=True)  # type: ignore[no-any-return]

    return operate


def _unary(name: str, meaning: str) -> Callable[[Scalar], Scalar]:
    """The method that records a scalar operation of one operand."""
    code = UNARY[name]

    def operate(self: Scalar) -> Scalar:
        generation = self.generation
        tape = generation.tape
        out = tape._size
        if out < tape._room and not tape._held and tape.generation is generation:
            tape._size = out + 1
            pending = tape._pending
            pending += (code, out, self.id, self.id)
            result = new(Scalar)
            result.generation = generation
            result.id = out
            return result
        return tape._record_scalar(code, self, self)

    operate.__name__, operate.__doc__ = name, meaning
    return operate


class Scalar(Handle):
    """A scalar node: `(a * b + a).backward()`.

    Operators record. They take another handle of the same tape, a number, or a NumPy array, for
    whose elements they record one by one.
    """

    __slots__ = ()

    def __float__(self) -> float:
        return self.value

    def __int__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return self.value != 0

    def __round__(self, digits: int | None = None) -> float:
        return round(self.value, digits)

    def __format__(self, form: str) -> str:
        return format(self.value, form) if form else repr(self)

    def __repr__(self) -> str:
        try:
            return f"Scalar({self.value}, id={self.id})"
        except TapeError:
            return f"Scalar(forgotten, id={self.id})"

    @property
    def value(self) -> float:
        """The node's value. To set it is `set_value`, of a leaf."""
        return self.generation.tape.value(self)

    @value.setter
    def value(self, number: Number) -> None:
        self.generation.tape.set_value(self, number)

    @property
    def grad(self) -> float:
        """The gradient of the last backward's root with respect to this node."""
        return self.generation.tape.grad(self)

    def backward(self) -> None:
        """Fill in the gradients of this node with respect to all nodes of the tape."""
        self.generation.tape.backward(self)

    __add__ = _binary("add")
    __sub__ = _binary("sub")
    __mul__ = _binary("mul", "scale")
    __truediv__ = _binary("div")
    __radd__ = __add__
    __rsub__ = _reflected("sub")
    __rmul__ = __mul__
    __rtruediv__ = _reflected("div")
    __neg__ = _unary("neg", "-self")
    exp = _unary("exp", "e ** self")
    log = _unary("log", "ln self")
    relu = _unary("relu", "max(0, self)")
    tanh = _unary("tanh", "tanh self")
    erf = _unary("erf", "2 / sqrt(pi) times the integral of e ** -t**2 from 0 to self")
    softplus = _unary("softplus", "ln(1 + e ** self)")

    def __pow__(self, exponent: Number) -> Scalar:
        if _has_elements(exponent):
            return cast(Scalar, NotImplemented)
        return self.generation.tape.pow(self, exponent)


class Array(Handle):
    """An array node, (rows, width). `numpy.asarray` of it is its value."""

    __slots__ = ()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Floats:
        return np.array(self.value, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise TapeError("an array is neither true nor false: ask that of its values")

    def __repr__(self) -> str:
        try:
            value = np.array2string(self.value, prefix="Array(", threshold=20)
        except TapeError:
            value = "forgotten"
        return f"Array({value}, id={self.id})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a batch array has the rows now loaded."""
        rows, width = self.generation.tape.shape(self)
        return rows, width

    @property
    def value(self) -> Floats:
        """A copy of the values, (rows, width). To set it is `set_value`, of a leaf."""
        return self.generation.tape.value(self)

    @value.setter
    def value(self, values: Any) -> None:
        self.generation.tape.set_value(self, values)

    @property
    def grad(self) -> Floats:
        """The gradient of the last backward's root with respect to this array, in its shape."""
        return self.generation.tape.grad(self)
