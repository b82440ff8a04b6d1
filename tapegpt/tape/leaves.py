"""What operations start from: numbers and arrays, parameters, and the integers that change."""

import operator
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels.layout import BATCH, OPCODE
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import Array, Node, Scalar, new
from tapegpt.tape.replay import Replay
from tapegpt.tape.storage import LARGEST_TAPE
from tapegpt.tape.types import Batch, Floats, Ids, Input, Number, TapeError


class Leaves(Replay):
    """Nodes that no record computes, and inputs."""

    def var(self, value: Number) -> Scalar:
        """A new scalar node."""
        # See Memory._pending: nothing is called from where `_held` is looked at.
        if type(value) is float and -self._limit <= value <= self._limit:
            generation = self.generation
            if not self._held and (node := self._size) < self._room:
                self._size = node + 1
                self.values[node] = value
                result = new(Scalar)
                result.generation = generation
                result.id = node
                return result
        self._hold()
        try:
            number = self._number(value)
            node = self._allocate(1)
            self.values[node] = number
            return self._scalar_handle(node)
        finally:
            self._release()

    def constant(self, value: Number) -> Scalar:
        """A new scalar node whose gradient nobody wants: a var by another name."""
        return self.var(value)

    @alone
    def variables(self, values: ArrayLike) -> Ids:
        """One new scalar node for every element of an array; ids in the array's shape."""
        given = self._floats(values)
        first = self._allocate(given.size)
        self.values[first : first + given.size] = given.ravel()
        return np.arange(first, first + given.size).reshape(given.shape)

    @all_or_nothing
    def parameter(self, values: ArrayLike) -> Array:
        """An array of trained numbers, (rows, width), for the optimizers.

        Those that come before anything else are the first `num_params` nodes of the tape. Later
        ones stay where they were recorded, as the handles and records that name them do.
        """
        first = self._are_first
        node = self.array(values)
        if first:
            self.num_params = self._align()
        else:
            self._late[node.id] = self._size
        return node

    @alone
    def scalar_parameters(self, values: ArrayLike) -> Ids:
        """Trained numbers as scalar nodes, ids in the array's shape; as `parameter`."""
        first = self._are_first
        nodes = self.variables(values)
        if first:
            self.num_params = self._size
        elif nodes.size:
            self._late[int(nodes.flat[0])] = self._size
        return nodes

    @alone
    def _end_parameters(self) -> None:
        """Pad the parameters to whole vectors, as the optimizer's kernels want them."""
        if not self._are_first:
            raise TapeError("end_parameters comes before anything but parameters")
        self.num_params = self._align()

    @property
    def _are_first(self) -> bool:
        """Whether parameters recorded now come before anything else."""
        return self._size == self.num_params and not self._records

    @alone
    def array(self, values: ArrayLike) -> Array:
        """A fixed array, (rows, width), or (width,) for one row."""
        given = np.atleast_2d(self._floats(values))
        if given.ndim != 2 or 0 in given.shape:
            raise TapeError(f"an array has rows and columns, not the shape {given.shape}")
        node = self._new_array(given.shape[0], given.shape[1])
        self._view(self.values, node)[:] = given
        return self._array_handle(node)

    @alone
    def set_value(self, node: Node, value: ArrayLike) -> None:
        """Change a leaf. What depends on it is computed anew when somebody looks at it.

        value: a number, or for an array what `array` takes.
        """
        node, shape = self._leaf(node), self.shape(node)
        given = np.atleast_2d(self._floats(value)) if shape else self._floats(value)
        if given.shape != shape:
            raise TapeError(f"node {node} has the shape {shape}, the value given {given.shape}")
        self._compute_anew(node)
        if shape:
            self._view(self.values, node)[:] = given
        else:
            self.values[node] = given

    def _leaf(self, node: Node) -> int:
        """The id of a node that no operation writes to, checked."""
        node = self._any(node)
        before = self._records_until(node)
        if before > 0:
            opcode, out, at, _ = self._records[4 * before - 4 : 4 * before]
            results = self._operands[at] if OPERATIONS[opcode & OPCODE].several else 1
            if node < out + results:
                raise TapeError(f"node {node} is the result of an operation: set a leaf")
        array = max((array for array in self._shapes if array <= node), default=node)
        if array < node < array + self.extents[array]:
            raise TapeError(f"node {node} is part of the array {array}: set all of that")
        return node

    def _number(self, value: Number | NDArray[Any]) -> np.floating:
        if type(value) is not float:
            if isinstance(value, np.ndarray) and value.ndim == 0:
                value = value[()]
            if not isinstance(value, Number):
                raise TapeError(f"{value!r:.60} is not a number")
        try:
            if -self._limit <= float(value) <= self._limit:
                return self.dtype.type(value)
            # Still finite, where it rounds to the largest.
            with np.errstate(over="ignore"):
                number = self.dtype.type(value)
        except OverflowError:  # an int beyond float64
            number = self.dtype.type(np.inf)
        if np.isinf(number) and (isinstance(value, int) or not np.isinf(value)):
            raise TapeError(f"{value!r:.60} is too large for {self.dtype}")
        return number

    def _floats(self, values: ArrayLike) -> Floats:
        try:
            given = np.asarray(values)
            if given.dtype.kind not in "fiu":
                raise TypeError
            with np.errstate(over="ignore"):
                floats = given.astype(self.dtype)
        except (TypeError, ValueError):
            raise TapeError(f"not an array of numbers: {values!r:.60}") from None
        too_large = np.isinf(floats) & ~np.isinf(given)
        if too_large.any():
            raise TapeError(f"{given[too_large][0]} is too large for {self.dtype}")
        return floats

    @alone
    def input(self, values: Iterable[int], below: int) -> Input:
        """Row numbers from 0 to below - 1 that a program reads, changed with `set_input`."""
        below = self._count(below, "rows")
        if below > LARGEST_TAPE:
            raise TapeError(f"no table has {below} rows: a tape holds {LARGEST_TAPE} nodes")
        given = self._row_numbers(values, below)
        if not given:
            raise TapeError("an input holds at least one number")
        return self._new_input(given, len(given), below)

    @alone
    def set_input(self, which: Input, values: Iterable[int]) -> None:
        """Replace the numbers of an input. What depends on them is then computed anew."""
        self._known(which)
        given = self._row_numbers(values, which.below)
        rows = self._batch_range().end_row if which.count == BATCH else which.count
        count = rows * which.width
        if len(given) != count:
            where = "the batch, as set_lengths says," if which.count == BATCH else "the input"
            raise TapeError(f"{where} holds {count} numbers, not {len(given)}")
        self._evaluated = 0
        self._inputs[which.slot : which.slot + count] = array("q", given)

    def _new_input(self, numbers: Iterable[int], count: int, below: int, width: int = 1) -> Input:
        which = Input(len(self._inputs), count, below, width)
        self._inputs.extend(numbers)
        self._known_inputs[which.slot] = which
        return which

    def _known(self, which: Input) -> Input:
        """An input, checked: a kernel reads wherever it points."""
        if not isinstance(which, Input) or self._known_inputs.get(which.slot) != which:
            raise TapeError(f"{which!r:.60} is not an input of this tape")
        return which

    @all_or_nothing
    def batch(self, sequences: int, positions: int) -> Batch:
        """Make room for the rows of so many sequences, of so many positions at most each.

        Inputs of the batch, and what is computed from them, have a row for every position of every
        sequence: the first of each sequence, then the second of those that have two, and so on.
        There are none until `set_lengths`. A tape has one batch.

            tape.batch(sequences=2, positions=3)
            tokens = tape.batch_input(below=27)
            tape.set_lengths([3, 1])
            tape.set_input(tokens, [5, 9, 6, 7])  # 5 6 7, and 9
        """
        if self._batch is not None:
            raise TapeError("a tape has one batch")
        sequences = self._count(sequences, "sequences")
        positions = self._count(positions, "positions")
        if sequences * positions > LARGEST_TAPE:
            raise TapeError(
                f"a batch of {sequences} sequences of {positions} positions is too large: a tape"
                f" holds {LARGEST_TAPE} numbers"
            )
        weights = self._auxiliary(sequences * positions + self.lanes)
        starts = len(self._inputs)
        self._inputs.extend(array("q", [0]) * (positions + 1))
        self._batch = Batch(sequences, positions, starts, weights)
        return self._batch

    @alone
    def batch_input(self, below: int) -> Input:
        """Row numbers from 0 to below - 1, one for every row of the batch; zeros at first."""
        below, capacity = self._count(below, "rows"), self._declared_batch.capacity
        if len(self._inputs) + capacity > LARGEST_TAPE:
            raise TapeError(
                f"{capacity} more row numbers are too many: a tape holds {LARGEST_TAPE}"
            )
        return self._new_input(array("q", [0]) * capacity, BATCH, below)

    @alone
    def set_lengths(self, lengths: Iterable[int]) -> None:
        """Say how many positions each sequence of the batch has, the longest first.

        The rows are then others: set every input of the batch again. In a loss all weigh the same.
        """
        batch = self._declared_batch
        given = self._whole_numbers(lengths)
        possible = all(1 <= length <= batch.positions for length in given)
        if not possible or len(given) > batch.sequences or given != sorted(given, reverse=True):
            raise TapeError(
                f"the batch has room for {batch.sequences} sequences of {batch.positions}"
                f" positions, the longest first, not for lengths of {given!r:.60}"
            )
        ends = np.bincount(np.array(given, np.int64), minlength=batch.positions + 1)
        alive = ends[:0:-1].cumsum()[::-1]  # sequences longer than each position
        starts = array("q", [0, *alive.cumsum().tolist()])
        self._inputs[batch.starts : batch.starts + len(starts)] = starts
        self.values[batch.weights : batch.weights + starts[-1]] = 1 / max(1, starts[-1])
        self._evaluated = 0

    @staticmethod
    def _whole_numbers(values: Iterable[int]) -> list[int]:
        try:
            return [operator.index(value) for value in values]
        except TypeError:
            raise TapeError(f"not whole numbers: {values!r:.60}") from None

    def _row_numbers(self, values: Iterable[int], below: int) -> list[int]:
        given = self._whole_numbers(values)
        for number in given:
            if not 0 <= number < below:
                raise TapeError(f"row number {number} is not between 0 and {below - 1}")
        return given
