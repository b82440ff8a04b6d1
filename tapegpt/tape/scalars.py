"""The vocabulary for scalar nodes, one operation at a time."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from tapegpt.kernels.ops.scalar import dot, reduce
from tapegpt.kernels.registry import opcode
from tapegpt.tape.bulk import BulkOperations
from tapegpt.tape.handles import Array, Node, Scalar
from tapegpt.tape.spacing import consecutive
from tapegpt.tape.types import Ids, TapeError

SUM, MAX, SOFTMAX = opcode(reduce.SUM), opcode(reduce.MAX), opcode(reduce.SOFTMAX)
DOT, DOT_RUN = opcode(dot.DOT), opcode(dot.DOT_RUN)


class ScalarOperations(BulkOperations):
    """Operations whose operands and results are scalar nodes."""

    @overload
    def sum(self, nodes: Array, axis: int) -> Array: ...
    @overload
    def sum(self, nodes: Array | Sequence[Node], axis: None = None) -> Scalar: ...
    def sum(self, nodes: Array | Sequence[Node], axis: int | None = None) -> Any:
        """The sum of a list of scalars, or of an array: of all its elements, or by axis.

        axis: 0 for a row with the sum of every column, 1 for a column with that of every row.
        """
        self._hold()
        try:
            if self._is_array(nodes):
                return self._sum_array(nodes, axis)  # type: ignore[attr-defined]
            given = self._scalars(nodes)  # type: ignore[arg-type]
            return self._scalar_handle(self._listed(SUM, [len(given), *given]))
        finally:
            self._release()

    @overload
    def mean(self, nodes: Array, axis: int) -> Array: ...
    @overload
    def mean(self, nodes: Array | Sequence[Node], axis: None = None) -> Scalar: ...
    def mean(self, nodes: Any, axis: int | None = None) -> Any:
        """The mean of a list of scalars, or of an array, likewise."""
        if isinstance(nodes, (list, tuple)):
            return self.sum(nodes) * (1 / max(1, len(nodes)))
        return self._mean_array(nodes, axis)  # type: ignore[attr-defined]

    @overload
    def max(self, nodes: Array, axis: int) -> Array: ...
    @overload
    def max(self, nodes: Sequence[Node], axis: None = None) -> Scalar: ...
    def max(self, nodes: Any, axis: int | None = None) -> Any:
        """The largest of a list of scalars, or of an array by axis.

        Its gradient goes to the first of equals.
        """
        self._hold()
        try:
            if self._is_array(nodes):
                return self._max_array(nodes, axis)  # type: ignore[attr-defined]
            given = self._scalars(nodes)
            return self._scalar_handle(self._listed(MAX, [len(given), *given]))
        finally:
            self._release()

    @overload
    def softmax(self, nodes: Array) -> Array: ...
    @overload
    def softmax(self, nodes: Ids) -> Ids: ...
    @overload
    def softmax(self, nodes: Sequence[Node]) -> list[Scalar]: ...
    def softmax(self, nodes: Any) -> Any:
        """e^a / (the sum of all e^a), of a list of scalars or of every row of an array.

        Of ids, (terms,) or (rows, terms), it gives ids in their shape, a record for each row.
        """
        if isinstance(nodes, np.ndarray):
            return self._softmax_rows(np.atleast_2d(nodes)).reshape(nodes.shape)
        if isinstance(nodes, (list, tuple, range)):
            return [self._scalar_handle(node) for node in self._softmax_of(nodes)]
        return self._softmax_array(nodes)  # type: ignore[attr-defined]

    def _softmax_of(self, nodes: Sequence[Node]) -> range:
        """As `softmax` of a list of scalars, but consecutive ids."""
        self._hold()
        try:
            given = self._scalars(nodes)
            padding = given[-1:] * (-len(given) % reduce.SOFTMAX_LANES)
            first = self._listed(SOFTMAX, [len(given), *given, *padding], len(given))
            return range(first, self._size)
        finally:
            self._release()

    def _is_array(self, nodes: Any) -> bool:
        return type(nodes) is Array or (type(nodes) is int and nodes in self._shapes)

    def dot(self, a: Sequence[Node], b: Sequence[Node]) -> Scalar:
        """The sum of the products of two lists of scalars, pair by pair."""
        self._hold()
        try:
            left, right = self._scalars(a), self._scalars(b)
            if len(left) != len(right):
                raise TapeError(
                    f"dot wants two lists of one length, not {len(left)} and {len(right)}"
                )
            if consecutive(left) and consecutive(right):
                out = self._listed(DOT_RUN, [len(left), left[0], right[0]])
            else:
                out = self._listed(DOT, [len(left), *left, *right])
            return self._scalar_handle(out)
        finally:
            self._release()

    def _listed(self, code: int, arguments: list[int], results: int = 1) -> int:
        """Record an operation of reduce.py or dot.py; its arguments in their order there."""
        first = self._allocate(results)
        self._records.extend((code, first, len(self._operands), 0))
        self._operands.fromlist(arguments)
        return first

    def _scalars(self, nodes: Sequence[Node]) -> list[int]:
        try:
            generation, size, shapes = self.generation, self._size, self._shapes
            given = [
                node.id
                if type(node) is Scalar and node.generation is generation
                else node
                if type(node) is int and 0 <= node < size and node not in shapes
                else self._scalar(node)
                for node in nodes
            ]
        except TypeError:
            raise TapeError(f"{nodes!r:.60} is not a list of nodes") from None
        if not given:
            raise TapeError("an operation on a list of nodes wants at least one")
        return given
