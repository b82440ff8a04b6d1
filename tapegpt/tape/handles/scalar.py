"""Handles of scalar nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from tapegpt.tape.handles.base import BINARY, UNARY, Handle, has_elements, new
from tapegpt.tape.types import Number, TapeError


def _binary(name: str, of_number: str = "") -> Callable[[Scalar, Scalar | Number], Scalar]:
    """The operator that records a scalar operation of two operands.

    of_number: what it records if the second is a number, unless that is the same.
    """
    code, of_number = BINARY[name], of_number or name

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
        if isinstance(other, Handle) or has_elements(other):
            return cast(Scalar, NotImplemented)
        return generation.tape._with_number(of_number, self, other)  # type: ignore[no-any-return]

    return operate


def _reflected(name: str) -> Callable[[Scalar, Number], Scalar]:
    """The operator for a number on the left."""

    def operate(self: Scalar, other: Number) -> Scalar:
        if has_elements(other):
            return cast(Scalar, NotImplemented)
        tape = self.generation.tape
        return tape._with_number(name, self, other, number_first=True)  # type: ignore[no-any-return]

    return operate


def _compared(name: str, swapped: bool = False) -> Callable[[Scalar, Scalar | Number], Scalar]:
    """The operator that records a comparison."""
    plain = _binary(name)

    def operate(self: Scalar, other: Scalar | Number) -> Scalar:
        if not swapped:
            return plain(self, other)
        if isinstance(other, Scalar):
            return plain(other, self)
        if isinstance(other, Handle) or has_elements(other):
            return cast(Scalar, NotImplemented)
        tape = self.generation.tape
        return tape._with_number(name, self, other, number_first=True)  # type: ignore[no-any-return]

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
    __abs__ = _unary("abs", "The size of self; at 0 no gradient passes.")
    __lt__ = _compared("less")
    __le__ = _compared("at_most")
    __gt__ = _compared("less", swapped=True)
    __ge__ = _compared("at_most", swapped=True)
    exp = _unary("exp", "e ** self")
    log = _unary("log", "ln self")
    relu = _unary("relu", "max(0, self)")
    tanh = _unary("tanh", "tanh self")
    sqrt = _unary("sqrt", "The square root of self.")
    sin = _unary("sin", "The sine of self, in radians.")
    cos = _unary("cos", "The cosine of self, in radians.")
    sigmoid = _unary("sigmoid", "1 / (1 + e ** -self)")
    silu = _unary("silu", "self / (1 + e ** -self)")
    erf = _unary("erf", "2 / sqrt(pi) times the integral of e ** -t**2 from 0 to self")
    softplus = _unary("softplus", "ln(1 + e ** self)")

    def __pow__(self, exponent: Scalar | Number) -> Scalar:
        if isinstance(exponent, Scalar):
            return self._to_the(exponent)
        if isinstance(exponent, Handle) or has_elements(exponent):
            return cast(Scalar, NotImplemented)
        return self.generation.tape.pow(self, exponent)

    _to_the = _binary("power")
    __rpow__ = _reflected("power")
