"""The vocabulary for scalar nodes, one operation at a time and many at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tapegpt.kernels import records as op
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.memory import all_or_nothing
from tapegpt.tape.parts import Ids, Input, Number, TapeError

UNARY = {
    "neg": op.NEG,
    "exp": op.EXP,
    "log": op.LOG,
    "relu": op.RELU,
    "tanh": op.TANH,
    "softplus": op.SOFTPLUS,
    "detach": op.DETACH,
}
BINARY = {
    "add": op.ADD,
    "mul": op.MUL,
    "sub": op.SUB,
    "div": op.DIV,
    "scale": op.SCALE,
    "pow": op.POW,
}


class ScalarOperations(Leaves):
    """Operations whose operands and results are scalar nodes."""

    def add(self, a: int, b: int) -> int:
        """a + b"""
        return self._binary(op.ADD, a, b)

    def mul(self, a: int, b: int) -> int:
        """a b"""
        return self._binary(op.MUL, a, b)

    def sub(self, a: int, b: int) -> int:
        """a - b"""
        return self._binary(op.SUB, a, b)

    def div(self, a: int, b: int) -> int:
        """a / b"""
        return self._binary(op.DIV, a, b)

    def neg(self, a: int) -> int:
        """-a"""
        return self._binary(op.NEG, a, a)

    def scale(self, a: int, factor: Number) -> int:
        """factor a, for a number that is not a node."""
        return self._with_constant(op.SCALE, a, factor)

    def pow(self, a: int, exponent: Number) -> int:
        """a ** exponent, for an exponent that is not a node."""
        return self._with_constant(op.POW, a, exponent)

    def exp(self, a: int) -> int:
        """e ** a"""
        return self._binary(op.EXP, a, a)

    def log(self, a: int) -> int:
        """ln a"""
        return self._binary(op.LOG, a, a)

    def relu(self, a: int) -> int:
        """max(0, a)"""
        return self._binary(op.RELU, a, a)

    def tanh(self, a: int) -> int:
        """tanh a"""
        return self._binary(op.TANH, a, a)

    def softplus(self, a: int) -> int:
        """ln(1 + e ** a)"""
        return self._binary(op.SOFTPLUS, a, a)

    def detach(self, a: int) -> int:
        """a, through which no gradient passes."""
        return self._binary(op.DETACH, a, a)

    def _binary(self, opcode: int, a: int, b: int) -> int:
        left, right = self._scalar(a), self._scalar(b)
        out = self._allocate(1)
        self._records.extend((opcode, out, left, right))
        return out

    def _with_constant(self, opcode: int, a: int, constant: Number) -> int:
        left, number = self._scalar(a), self._number(constant)
        node = self._allocate(2)
        self.values[node] = number
        self._records.extend((opcode, node + 1, left, node))
        return node + 1

    def sum(self, nodes: Sequence[int]) -> int:
        """The sum of scalars."""
        return self._reduce(op.SUM, self._scalars(nodes))

    def max(self, nodes: Sequence[int]) -> int:
        """The largest of scalars; its gradient goes to the first of equals."""
        return self._reduce(op.MAX, self._scalars(nodes))

    def dot(self, a: Sequence[int], b: Sequence[int]) -> int:
        """The sum of the products of two lists of scalars, pair by pair."""
        left, right = self._scalars(a), self._scalars(b)
        if len(left) != len(right):
            raise TapeError(f"dot wants two lists of one length, not {len(left)} and {len(right)}")
        if _consecutive(left) and _consecutive(right):
            return self._record_list(op.DOT_RUN, (len(left), left[0], right[0]))
        return self._record_list(op.DOT, (len(left), *left, *right))

    def _reduce(self, opcode: int, nodes: list[int]) -> int:
        return self._record_list(opcode, (len(nodes), *nodes))

    def _scalars(self, nodes: Sequence[int]) -> list[int]:
        try:
            given = [self._scalar(node) for node in nodes]
        except TypeError:
            raise TapeError(f"{nodes!r:.60} is not a list of node ids") from None
        if not given:
            raise TapeError("an operation on a list of nodes wants at least one")
        return given

    def record(self, name: str, a: ArrayLike, b: ArrayLike | None = None) -> Ids:
        """Record one scalar operation for every pair of ids in two arrays of one shape.

        name: that of a method for one or two scalars. `b` of scale and pow holds the ids of
        constant nodes. An id may be that of a node made in this same call, if it comes before.
        Returns the new ids, in the shape of the arrays.
        """
        opcode = UNARY.get(name) if b is None else BINARY.get(name)
        if opcode is None:
            count = "one operand" if b is None else "two operands"
            raise TapeError(f"{name!r} is not a scalar operation with {count}")
        left = self._ids(a)
        right = left if b is None else self._ids(b)
        if left.shape != right.shape:
            raise TapeError(f"operands of shapes {left.shape} and {right.shape} do not pair up")
        first = self._size
        out = np.arange(first, first + left.size)
        for ids in (left, right):
            wrong = (ids.ravel() < 0) | (ids.ravel() >= out)
            if wrong.any():
                raise TapeError(f"node {ids.ravel()[wrong][0]} is not on the tape yet")
        self._allocate(left.size)
        rows = np.empty((left.size, 4), np.uint32)
        rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = opcode, out, left.ravel(), right.ravel()
        self._records.frombytes(rows.tobytes())
        return out.reshape(left.shape)

    def lookup(self, first: ArrayLike, which: Input, index: int, stride: int) -> Ids:
        """For every id in `first`, the node r times `stride` ids further on.

        r is element `index` of an input, read whenever the record is replayed. Returns the new
        ids, in the shape of `first`.
        """
        given = self._on_tape(self._ids(first))
        stride = self._count(stride, "nodes")
        (row,) = self._row_numbers([index], self._capacity(self._known(which).count))
        last = given.max(initial=0) + (which.below - 1) * stride
        if last >= self._size:
            raise TapeError(f"lookup reaches node {last} of a tape of {self._size} nodes")
        lists = [(node, which.slot + row, stride) for node in given.ravel().tolist()]
        return self._record_lists(op.LOOKUP, lists).reshape(given.shape)

    def sums(self, nodes: ArrayLike) -> Ids:
        """The sum of every row of ids, (rows, terms): one record each."""
        rows = self._rows_of_ids(nodes).tolist()
        return self._record_lists(op.SUM, [(len(row), *row) for row in rows])

    def dots(self, a: ArrayLike, b: ArrayLike) -> Ids:
        """The sum of the products of each row of ids with the other's, (rows, terms)."""
        left, right = self._rows_of_ids(a), self._rows_of_ids(b)
        if left.shape != right.shape:
            raise TapeError(f"operands of shapes {left.shape} and {right.shape} do not pair up")
        count = left.shape[1]
        if (np.diff(left) == 1).all() and (np.diff(right) == 1).all():
            runs = zip(left[:, 0].tolist(), right[:, 0].tolist(), strict=True)
            return self._record_lists(op.DOT_RUN, [(count, *run) for run in runs])
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return self._record_lists(op.DOT, [(count, *x, *y) for x, y in pairs])

    @all_or_nothing
    def _record_lists(self, opcode: int, lists: Sequence[tuple[int, ...]]) -> Ids:
        return np.array([self._record_list(opcode, arguments) for arguments in lists], np.int64)

    def _rows_of_ids(self, nodes: ArrayLike) -> Ids:
        given = self._ids(nodes)
        if given.ndim != 2 or given.size == 0:
            raise TapeError(f"rows of node ids are wanted, not the shape {given.shape}")
        return self._on_tape(given)

    def _on_tape(self, ids: Ids) -> Ids:
        wrong = (ids < 0) | (ids >= self._size)
        if wrong.any():
            node = ids[wrong][0]
            raise TapeError(f"node {node} is not on the tape, which has {self._size} nodes")
        return ids

    def _ids(self, nodes: ArrayLike) -> Ids:
        try:
            given = np.asarray(nodes)
        except ValueError:  # rows of different lengths
            given = np.array(None)
        if given.dtype.kind not in "iu":
            raise TapeError(f"not an array of node ids: {nodes!r:.60}")
        return given.astype(np.int64)


def _consecutive(nodes: list[int]) -> bool:
    return nodes == list(range(nodes[0], nodes[0] + len(nodes)))
