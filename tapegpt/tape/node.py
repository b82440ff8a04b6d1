"""Handles with operators, so that a graph reads like its formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapegpt.tape.types import Floats, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape


class Node:
    """A scalar node of a tape: `(a * b + a).backward()`.

    Operators take another handle of the same tape, or a number. Every operator records.
    `float` and `int` give the value; a handle is no index, for that would be its id.
    """

    __slots__ = ("id", "tape")

    def __init__(self, tape: Tape, node: int) -> None:
        self.tape = tape
        self.id = node

    # NumPy's scalars and arrays leave arithmetic with a handle to the handle.
    __array_ufunc__ = None

    def __float__(self) -> float:
        return float(self.tape.value(self.id))

    def __int__(self) -> int:
        return int(float(self))

    def __repr__(self) -> str:
        return f"Node({self.id}, value={self.value})"

    @property
    def value(self) -> float | Floats:
        """The node's value."""
        return self.tape.value(self.id)

    @property
    def grad(self) -> float | Floats:
        """The gradient of the last backward's root with respect to this node."""
        return self.tape.grad(self.id)

    def backward(self) -> None:
        """Fill in the gradients of this node with respect to all nodes of the tape."""
        self.tape.backward(self.id)

    def __add__(self, other: Node | float) -> Node:
        return self._new(self.tape.add(self.id, self._operand(other)))

    def __mul__(self, other: Node | float) -> Node:
        if isinstance(other, Node):
            return self._new(self.tape.mul(self.id, self._operand(other)))
        return self._new(self.tape.scale(self.id, other))

    def __sub__(self, other: Node | float) -> Node:
        return self._new(self.tape.sub(self.id, self._operand(other)))

    def __truediv__(self, other: Node | float) -> Node:
        return self._new(self.tape.div(self.id, self._operand(other)))

    def __radd__(self, other: float) -> Node:
        return self + other

    def __rmul__(self, other: float) -> Node:
        return self * other

    def __rsub__(self, other: float) -> Node:
        return self._new(self.tape.sub(self._operand(other), self.id))

    def __rtruediv__(self, other: float) -> Node:
        return self._new(self.tape.div(self._operand(other), self.id))

    def __pow__(self, exponent: float) -> Node:
        return self._new(self.tape.pow(self.id, exponent))

    def __neg__(self) -> Node:
        return self._new(self.tape.neg(self.id))

    def exp(self) -> Node:
        """e ** self"""
        return self._new(self.tape.exp(self.id))

    def log(self) -> Node:
        """ln self"""
        return self._new(self.tape.log(self.id))

    def relu(self) -> Node:
        """max(0, self)"""
        return self._new(self.tape.relu(self.id))

    def tanh(self) -> Node:
        """tanh self"""
        return self._new(self.tape.tanh(self.id))

    def softplus(self) -> Node:
        """ln(1 + e ** self)"""
        return self._new(self.tape.softplus(self.id))

    def _operand(self, other: Node | float) -> int:
        if isinstance(other, Node):
            if other.tape is not self.tape:
                raise TapeError("the two nodes lie on different tapes")
            return other.id
        # Checked first: the id of a handle from before a reset might be the constant's.
        self.tape.node(self.id)
        return self.tape.constant(other)

    def _new(self, node: int) -> Node:
        return Node(self.tape, node)
