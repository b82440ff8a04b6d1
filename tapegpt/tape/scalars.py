"""The vocabulary for scalar nodes, one operation at a time and many at once."""

from array import array
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels.layout import FARTHEST_SUM, OPCODE_BITS
from tapegpt.kernels.op import ListOp
from tapegpt.kernels.ops.scalar import dot, lookup, reduce, strided
from tapegpt.kernels.ops.topk import TOPK, TopkArgs
from tapegpt.kernels.registry import opcode
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import (
    BINARY,
    MULTIPLY_ADD,
    OF_A_CONSTANT,
    UNARY,
    Array,
    Handle,
    Node,
    Scalar,
)
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.spacing import consecutive, evenly_spaced
from tapegpt.tape.types import Ids, Input, TapeError

OFTEN, USES = 4096, 64  # see _spread
# Those that `runs` makes one record of, and their places there.
STRIDED = {formula.name: place for place, formula in enumerate(strided.ROWS)}

SUM, MAX, SOFTMAX = opcode(reduce.SUM), opcode(reduce.MAX), opcode(reduce.SOFTMAX)
DOT, DOT_RUN = opcode(dot.DOT), opcode(dot.DOT_RUN)

HANDLES = (Handle, int, np.integer)  # what there may be in a list of nodes

# Terms of a record of many dot products, at most: in float32 each sum goes from first to last.
LONGEST_TOGETHER = 1024


class ScalarOperations(Leaves):
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
    def softmax(self, nodes: Sequence[Node]) -> list[Scalar]: ...
    def softmax(self, nodes: Any) -> Any:
        """e^a / (the sum of all e^a), of a list of scalars or of every row of an array."""
        if isinstance(nodes, (list, tuple, range)):
            return [self._scalar_handle(node) for node in self.softmax_of(nodes)]
        return self._softmax_array(nodes)  # type: ignore[attr-defined]

    def softmax_of(self, nodes: Sequence[Node]) -> range:
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

    @alone
    def record(self, name: str, a: ArrayLike, b: ArrayLike | None = None) -> Ids:
        """Record one scalar operation for every pair of ids in two arrays of one shape.

        name: that of a method for one or two scalars. `b` of scale and pow holds the ids of
        constant nodes. An id may be that of a node made in this same call, if it comes before.
        A float32 tape has copies of a node that is there thousands of times, see _spread.
        Returns the new ids, in the shape of the arrays.
        """
        code, left, right = self._pairs(name, a, b)
        if self.dtype == np.float32 and left.size > OFTEN:
            left = self._spread(left)
            if b is None:
                right = left
            elif code not in OF_A_CONSTANT:  # which is passed no gradient
                right = self._spread(right)
        return self._record_pairs(code, left, right)

    def _spread(self, ids: Ids) -> Ids:
        """Ids, in which copies stand for a node that is there often.

        In float32 a gradient that is added up one by one, so often, loses digits. A copy is used
        USES times; its gradient then goes to the node, or to a copy of that.
        """
        flat = ids.ravel()
        if flat.max() >= self._size:  # of a node that is made in the same call: ids may not move
            return ids
        spread = flat.copy()
        for node in np.flatnonzero(np.bincount(flat) > OFTEN):
            places = np.flatnonzero(flat == node)
            count = -(-places.size // USES)
            one = np.full(count, self.constant(1.0).id)
            copies = self._record_pairs(BINARY["scale"], self._spread(np.full(count, node)), one)
            spread[places] = np.repeat(copies, USES)[: places.size]
        return spread.reshape(ids.shape)

    def _record_pairs(self, code: int | Ids, left: Ids, right: Ids) -> Ids:
        out = self._allocate(left.size) + np.arange(left.size)
        rows = np.empty((left.size, 4), np.uint32)
        rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = code, out, left.ravel(), right.ravel()
        self._records.frombytes(rows.tobytes())
        return out.reshape(left.shape)

    @alone
    def multiply_adds(self, sums: ArrayLike, a: ArrayLike, b: ArrayLike) -> Ids:
        """Record sum + a * b for the ids in three arrays of one shape: one node each.

        An id may be that of a node made in this same call, if it comes before. Returns
        the new ids, in the shape of the arrays.
        """
        _, before, _ = self._pairs("add", sums, a)
        _, left, right = self._pairs("mul", a, b)
        distances = self._size + np.arange(left.size) - before.ravel()
        if distances.max(initial=0) > FARTHEST_SUM:
            return self.record("add", before, self.record("mul", left, right))
        return self._record_pairs(MULTIPLY_ADD | distances << OPCODE_BITS, left, right)

    @alone
    def runs(self, name: str, a: ArrayLike, b: ArrayLike | None = None) -> Ids:
        """As `record`, but a single record where the ids permit it: faster to replay.

        They do for add, mul, sub, div, scale, exp and relu, if every row (along the last axis) of
        an array holds consecutive ids or one id throughout, the rows begin evenly spaced, and no
        id is that of a node made in this same call. All of them may run backwards: so do the new
        ids then.
        """
        _, left, right = self._pairs(name, a, b)
        if name in STRIDED and left.size > 1 and max(left.max(), right.max()) < self._size:
            # As one row, if that is possible, or from the last element to the first.
            for count, step in product((left.size, left.shape[-1]), (1, -1)):
                rows = [ids.reshape(-1, count)[:, ::step] for ids in (left, right)]
                places = [evenly_spaced(ids) for ids in rows]
                if all(places):
                    arguments = strided.Args(
                        left.size, count, STRIDED[name], *places[0], *places[1]
                    )
                    out = self._record_many(strided.STRIDED, arguments, left.size)
                    return out.reshape(rows[0].shape)[:, ::step].reshape(left.shape)
        return self.record(name, left, None if b is None else right)

    def _pairs(self, name: str, a: ArrayLike, b: ArrayLike | None) -> tuple[int, Ids, Ids]:
        """The opcode and the operands of `record`, checked."""
        known = UNARY if b is None else BINARY
        code = known.get(name) if isinstance(name, str) else None
        if code is None:
            count = "one operand" if b is None else "two operands"
            raise TapeError(f"{name!r} is not a scalar operation with {count}")
        left = self._ids(a)
        right = left if b is None else self._ids(b)
        if left.shape != right.shape:
            raise TapeError(f"operands of shapes {left.shape} and {right.shape} do not pair up")
        out = np.arange(self._size, self._size + left.size)
        for ids in (left, right):
            wrong = (ids.ravel() < 0) | (ids.ravel() >= out)
            if wrong.any():
                raise TapeError(f"node {ids.ravel()[wrong][0]} is not on the tape yet")
        return code, left, right

    @alone
    def lookup(self, first: ArrayLike, which: Input, index: int, stride: int) -> Ids:
        """For every id in `first`, the node r times `stride` ids further on.

        r is element `index` of an input, read whenever the record is replayed. Returns the new
        ids, in the shape of `first`. Consecutive ids take one record.
        """
        given = self._on_tape(self._ids(first))
        stride = self._count(stride, "nodes")
        numbers = self._capacity(self._known(which).count) * which.width
        (row,) = self._row_numbers([index], numbers)
        last = int(given.max(initial=0)) + (which.below - 1) * stride
        if last >= self._size:
            raise TapeError(f"lookup reaches node {last} of a tape of {self._size} nodes")
        bases, count = given.ravel(), 1
        if bases.size > 1 and (np.diff(bases) == 1).all():
            bases, count = bases[:1], bases.size
        arguments = lookup.Args(count, bases, which.slot + row, stride)
        return self._record_many(lookup.LOOKUP, arguments, count).reshape(given.shape)

    @all_or_nothing
    def largest(self, nodes: ArrayLike, k: int) -> Input:
        """Which k of a run of consecutive nodes are the largest, for `lookup`; in their order.

        Of equals the first count. Chosen anew whenever the record is replayed.
        """
        given = self._on_tape(self._ids(nodes)).ravel().tolist()
        k = self._count(k, "nodes")
        if k > len(given) or not consecutive(given):
            raise TapeError(f"largest wants at least {k} nodes with consecutive ids")
        which = self._new_input(array("q", [0]) * k, 1, len(given), k)
        room = self._auxiliary(self.stride(len(given)))
        self._append(TOPK, room, TopkArgs(1, len(given), given[0], k, which.slot))
        return which

    @alone
    def sums(self, nodes: ArrayLike) -> Ids:
        """The sum of every row of ids, (rows, terms): one record each."""
        rows = self._rows_of_ids(nodes)
        return self._record_many(reduce.SUM, reduce.Args(rows.shape[1], rows)).ravel()

    @alone
    def softmaxes(self, nodes: ArrayLike) -> Ids:
        """The softmax of every row of ids, (rows, terms): one record each."""
        rows = self._rows_of_ids(nodes)
        padding = np.repeat(rows[:, -1:], -rows.shape[1] % reduce.SOFTMAX_LANES, axis=1)
        arguments = reduce.Args(rows.shape[1], np.hstack([rows, padding]))
        return self._record_many(reduce.SOFTMAX, arguments, rows.shape[1])

    @alone
    def dots(self, a: ArrayLike, b: ArrayLike) -> Ids:
        """The sum of the products of each row of ids with the other's, (rows, terms).

        One record each. Rows next to each other take one together if they multiply one vector with
        a matrix: all of a's, or of b's, are the vector, consecutive ids; the rows or the columns of
        the other array are the rows of the matrix, consecutive too.
        """
        left, right = self._rows_of_ids(a), self._rows_of_ids(b)
        if left.shape != right.shape:
            raise TapeError(f"operands of shapes {left.shape} and {right.shape} do not pair up")
        runs = [bool((np.diff(ids) == 1).all()) for ids in (left, right)]
        if not any(runs) or (not all(runs) and left.shape[1] > LONGEST_TOGETHER):
            pairs = dot.DotArgs(left.shape[1], np.hstack([left, right]))
            return self._record_many(dot.DOT, pairs).ravel()
        if not all(runs):
            vector, matrix = (left, right) if runs[0] else (right, left)
            together = (np.diff(matrix, axis=0) == 1).all(axis=1)
            return self._record_products(dot.DOT_COLUMNS, vector, matrix, together)
        # The vector is the one that changes less often.
        changes = [np.count_nonzero(np.diff(ids[:, 0])) for ids in (left, right)]
        vector, matrix = (left, right) if changes[0] < changes[1] else (right, left)
        if 2 * (min(changes) + 1) <= len(left) and left.shape[1] <= LONGEST_TOGETHER:
            return self._record_products(dot.DOT_ROWS, vector, matrix, True)
        starts = dot.DotRunArgs(left.shape[1], left[:, 0], right[:, 0])
        return self._record_many(dot.DOT_RUN, starts).ravel()

    @all_or_nothing
    def _record_products(
        self, operation: ListOp, vector: Ids, matrix: Ids, together: NDArray[np.bool_] | bool
    ) -> Ids:
        """Record products of one vector as one, where the rows are `together` with the next."""
        together = together & (np.diff(vector[:, 0]) == 0)
        first, (rows, count) = self._allocate(len(vector)), vector.shape
        bounds = np.flatnonzero(np.concatenate([[True], ~together, [True]])).tolist()
        for begin, end in pairwise(bounds):
            starts = matrix[begin:end, 0] if operation is dot.DOT_ROWS else matrix[begin]
            listed = starts.tolist()
            # To whole vectors of rows, which is how they are read.
            padding = listed[-1:] * (-len(listed) % self.lanes)
            arguments = end - begin, count, int(vector[begin, 0]), listed + padding
            self._append(operation, first + begin, arguments)
        return np.arange(first, first + rows)

    @all_or_nothing
    def _record_many(self, operation: ListOp, arguments: tuple[Any, ...], results: int = 1) -> Ids:
        """Record one operation with so many results for every row of arguments.

        An argument is one number for all, a column of numbers, or the rows of a list.
        """
        # By hand: broadcasting takes longer than the rest of a call.
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        count = len(arrays[0]) if arrays else 1
        width = len(arguments) + sum(array.shape[1] - 1 for array in arrays if array.ndim == 2)
        rows, begin = np.empty((count, width), np.int64), 0
        for argument in arguments:
            if isinstance(argument, np.ndarray) and argument.ndim == 2:
                end = begin + argument.shape[1]
                rows[:, begin:end] = argument
            else:
                end = begin + 1
                rows[:, begin] = argument
            begin = end
        first = self._allocate(count * results)
        out = np.arange(first, first + count * results).reshape(count, results)
        records = np.zeros((count, 4), np.uint32)
        records[:, 0], records[:, 1] = opcode(operation), out[:, 0]
        records[:, 2] = len(self._operands) + width * np.arange(count)
        self._records.frombytes(records.tobytes())
        self._operands.frombytes(rows.tobytes())
        return out

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
        if given.dtype == object and all(isinstance(node, HANDLES) for node in given.flat):
            found = [self._any(node) for node in given.flat]
            return np.array(found, np.int64).reshape(given.shape)
        if given.dtype.kind not in "iu":
            raise TapeError(f"not an array of node ids: {nodes!r:.60}")
        return given.astype(np.int64)
