"""The vocabulary for scalar nodes by the thousand, as arrays of their ids."""

from array import array
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels.layout import FARTHEST_SUM, OPCODE, OPCODE_BITS
from tapegpt.kernels.op import ListOp
from tapegpt.kernels.ops.scalar import dot, lookup, reduce, strided
from tapegpt.kernels.ops.topk import TOPK, TopkArgs
from tapegpt.kernels.registry import OPERATIONS, opcode
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import BINARY, MULTIPLY_ADD, UNARY, Handle
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.spacing import consecutive, evenly_spaced
from tapegpt.tape.types import Floats, Ids, Input, TapeError

# Those of which many can be one record, and their places there.
STRIDED = {formula.name: place for place, formula in enumerate(strided.ROWS)}

HANDLES = (Handle, int, np.integer)  # what there may be in a list of nodes

# Terms of a record of many dot products, at most: in float32 each sum goes from first to last.
LONGEST_TOGETHER = 1024


# Whether each opcode's operation has several results.
SEVERAL = np.array([operation.several for operation in OPERATIONS])


class BulkOperations(Leaves):
    """Operations on arrays of ids of scalar nodes; their results are such arrays."""

    @alone
    def values_of(self, nodes: ArrayLike) -> Floats:
        """The values of scalar nodes, in the shape of the array of their ids."""
        given = self._on_tape(self._ids(nodes))
        self._evaluate()
        return self.values[given]

    @alone
    def grads_of(self, nodes: ArrayLike) -> Floats:
        """The gradient of the last backward's root with respect to scalar nodes, likewise."""
        return self.grads[self._on_tape(self._ids(nodes))]

    @alone
    def set_values(self, nodes: ArrayLike, values: ArrayLike) -> None:
        """Change many scalar leaves: as `set_value` of each, in one call.

        nodes: their ids. values: in the shape of the ids, or one number for all.
        """
        given, numbers = self._leaves(self._ids(nodes)), self._floats(values)
        if numbers.shape not in ((), given.shape):
            raise TapeError(
                f"set_values: ids of the shape {given.shape}, values of {numbers.shape}"
            )
        if given.size:
            self._compute_anew(int(given.min()))
            self.values[given] = numbers

    def _leaves(self, ids: Ids) -> Ids:
        """Ids of scalar leaves, checked."""
        suspects = self._are_results(self._on_tape(ids))
        if self._shapes:
            starts = np.array(list(self._shapes))
            ends = starts + np.array([self.extents[node] for node in self._shapes])
            before = np.searchsorted(starts, ids, side="right") - 1
            suspects |= (before >= 0) & (ids < ends[before])
        for node in ids[suspects].tolist():
            self._scalar(self._leaf(node))
        return ids

    def _are_results(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these nodes a record of scalar operations computes."""
        rows = self._record_rows()
        if not len(rows):
            return np.zeros(ids.shape, bool)
        before = np.searchsorted(rows[:, 1], ids, side="right") - 1
        outs, results = rows[before, 1].astype(np.int64), np.ones(ids.shape, np.int64)
        several = SEVERAL[rows[before, 0] & OPCODE]
        results[several] = np.array(self._operands)[rows[before, 2][several]]
        found: NDArray[np.bool_] = (before >= 0) & (ids < outs + results)
        return found

    @alone
    def elementwise(
        self, name: str, a: ArrayLike, b: ArrayLike | None = None, separate: bool = False
    ) -> Ids:
        """One scalar operation for every id in an array, or pair of ids in two of one shape.

        name: that of a method for one or two scalars. `b` of scale and pow holds the ids of
        constant nodes. An id may be that of a node made in this same call, if it comes before.
        Returns the new ids, in the shape of the arrays.

        They are a single record, faster to replay, where the ids permit it: for add, mul, sub, div,
        scale, exp and relu, if every row (along the last axis) of an array holds consecutive ids or
        one id throughout, the rows begin evenly spaced, and no id is that of a node made in this
        same call. All of them may run backwards: so do the new ids then. separate: a record for
        each, whatever the ids are.
        """
        code, left, right = self._pairs(name, a, b)
        if not separate and (made := self._together(name, left, right)) is not None:
            return made
        return self._record_pairs(code, left, right)

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
            return self.elementwise(
                "add", before, self.elementwise("mul", left, right, separate=True), separate=True
            )
        return self._record_pairs(MULTIPLY_ADD | distances << OPCODE_BITS, left, right)

    def _together(self, name: str, left: Ids, right: Ids) -> Ids | None:
        """A single record for all pairs of ids, or None where they do not permit it."""
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
        return None

    def _pairs(self, name: str, a: ArrayLike, b: ArrayLike | None) -> tuple[int, Ids, Ids]:
        """The opcode and the operands of `elementwise`, checked."""
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
    def _take_nodes(self, first: ArrayLike, which: Input, index: int, stride: int) -> Ids:
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
            raise TapeError(f"take reaches node {last} of a tape of {self._size} nodes")
        bases, count = given.ravel(), 1
        if bases.size > 1 and (np.diff(bases) == 1).all():
            bases, count = bases[:1], bases.size
        arguments = lookup.Args(count, bases, which.slot + row, stride)
        return self._record_many(lookup.LOOKUP, arguments, count).reshape(given.shape)

    @all_or_nothing
    def _topk_nodes(self, nodes: ArrayLike, k: int) -> Input:
        """Which k of a run of consecutive nodes are the largest."""
        given = self._on_tape(self._ids(nodes)).ravel().tolist()
        k = self._count(k, "nodes")
        if k > len(given) or not consecutive(given):
            raise TapeError(f"topk wants at least {k} nodes with consecutive ids")
        which = self._new_input(array("q", [0]) * k, 1, len(given), k)
        room = self._auxiliary(self._stride(len(given)))
        self._append(TOPK, room, TopkArgs(1, len(given), given[0], k, which.slot))
        return which

    @alone
    def sums(self, nodes: ArrayLike) -> Ids:
        """The sum of every row of ids, (rows, terms): one record each."""
        rows = self._rows_of_ids(nodes)
        return self._record_many(reduce.SUM, reduce.Args(rows.shape[1], rows)).ravel()

    @alone
    def _softmax_rows(self, nodes: ArrayLike) -> Ids:
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
