"""Handles with operators, so that a graph reads like its formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapegpt.tape.types import Floats, Number, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape


class Node:
    """A scalar node of a tape: `(a * b + a).backward()`.

    Operators record. They take another handle of the same tape, a number, or a NumPy array, for
    whose elements they record one by one. `float` and `int` give the value; a handle is no index,
    for that would be its id. Every use raises TapeError once `reset` has forgotten the node.
    """

    __slots__ = ("generation", "id", "tape")

    def __init__(self, tape: Tape, node: int) -> None:
        self.tape = tape
        self.id = node
        self.generation = tape.generation

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(float(self))

    def __repr__(self) -> str:
        try:
            return f"Node({self.id}, value={self.value})"
        except TapeError:
            return f"Node({self.id}, forgotten)"

    @property
    def value(self) -> float | Floats:
        """The node's value."""
        return self.tape.value(self._checked())

    @property
    def grad(self) -> float | Floats:
        """The gradient of the last backward's root with respect to this node."""
        return self.tape.grad(self._checked())

    def backward(self) -> None:
        """Fill in the gradients of this node with respect to all nodes of the tape."""
        self.tape.backward(self._checked())

    def __add__(self, other: Node | Number) -> Node:
        right = self._operand(other)
        return NotImplemented if right is None else Node(self.tape, self.tape.add(self.id, right))

    def __mul__(self, other: Node | Number) -> Node:
        if isinstance(other, Node):
            return Node(self.tape, self.tape.mul(self.id, self._handle(other)))
        if _has_elements(other):
            return NotImplemented
        return Node(self.tape, self.tape.scale(self._checked(), other))

    def __sub__(self, other: Node | Number) -> Node:
        right = self._operand(other)
        return NotImplemented if right is None else Node(self.tape, self.tape.sub(self.id, right))

    def __truediv__(self, other: Node | Number) -> Node:
        right = self._operand(other)
        return NotImplemented if right is None else Node(self.tape, self.tape.div(self.id, right))

    def __radd__(self, other: Number) -> Node:
        return self + other

    def __rmul__(self, other: Number) -> Node:
        return self * other

    def __rsub__(self, other: Number) -> Node:
        left = self._operand(other)
        return NotImplemented if left is None else Node(self.tape, self.tape.sub(left, self.id))

    def __rtruediv__(self, other: Number) -> Node:
        left = self._operand(other)
        return NotImplemented if left is None else Node(self.tape, self.tape.div(left, self.id))

    def __pow__(self, exponent: Number) -> Node:
        if _has_elements(exponent):
            return NotImplemented
        return Node(self.tape, self.tape.pow(self._checked(), exponent))

    def __neg__(self) -> Node:
        return Node(self.tape, self.tape.neg(self._checked()))

    def exp(self) -> Node:
        """e ** self"""
        return Node(self.tape, self.tape.exp(self._checked()))

    def log(self) -> Node:
        """ln self"""
        return Node(self.tape, self.tape.log(self._checked()))

    def relu(self) -> Node:
        """max(0, self)"""
        return Node(self.tape, self.tape.relu(self._checked()))

    def tanh(self) -> Node:
        """tanh self"""
        return Node(self.tape, self.tape.tanh(self._checked()))

    def softplus(self) -> Node:
        """ln(1 + e ** self)"""
        return Node(self.tape, self.tape.softplus(self._checked()))

    def _operand(self, other: Node | Number) -> int | None:
        """The id of a second operand; None for an array, which NumPy then goes through."""
        if isinstance(other, Node):
            return self._handle(other)
        if _has_elements(other):
            return None
        # Checked first: a constant that nothing uses would stay on the tape.
        self._checked()
        return self.tape.constant(other)

    def _handle(self, other: Node) -> int:
        """The id of another handle, both checked."""
        tape = self.tape
        if other.tape is not tape:
            raise TapeError("the two nodes lie on different tapes")
        if not self.generation == other.generation == tape.generation:
            self._checked()
            other._checked()
        return other.id

    def _checked(self) -> int:
        """The id of a node that is still on the tape."""
        if self.generation != self.tape.generation:
            self.tape._any(self)
        return self.id


def _has_elements(operand: object) -> bool:
    return isinstance(operand, np.ndarray) and (operand.ndim > 0 or operand.dtype == object)
