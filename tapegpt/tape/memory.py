"""What lies on the tape, and replaying it: everything but the vocabulary of operations."""

import operator
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels import records as op
from tapegpt.kernels.dispatch import BACKWARD, FORWARD
from tapegpt.kernels.program import Machine
from tapegpt.kernels.simd import VECTOR_BYTES
from tapegpt.kernels.sweep import forward_sweep, reverse_sweep
from tapegpt.kernels.table import load_kernels

Floats = NDArray[np.floating]
Ids = NDArray[np.int64]
Number = int | float | np.floating | np.integer
Window = tuple[int, int, int, int]  # see kernels/rows.py

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
LARGEST_TAPE = 2**31  # nodes: ids are 32-bit


class TapeError(ValueError):
    """A tape was used in a way that has no meaning; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Input:
    """A run of row numbers that a program reads: token ids, positions, targets."""

    slot: int
    count: int  # or op.BATCH
    below: int  # every number is from 0 to below - 1


class Shape(NamedTuple):
    """Rows and columns of an array node, and the nodes from one row to the next."""

    rows: int  # or op.BATCH
    width: int
    stride: int


class Batch(NamedTuple):
    """The rows of packed documents: as many as the loaded batch has, at most `capacity`."""

    capacity: int
    block: int
    tokens: Input
    positions: Input
    targets: Input
    starts: int  # slot of the first row of every position, block + 1 of them
    weights: int


class Mark(NamedTuple):
    """How far a tape had been recorded."""

    nodes: int
    records: int
    operands: int
    inputs: int


def aligned_zeros(count: int, dtype: np.dtype[np.floating]) -> Floats:
    """float[count], zero, its first element on a 64-byte boundary."""
    raw = np.zeros(count + ALIGNMENT // dtype.itemsize, dtype)
    start = -raw.ctypes.data % ALIGNMENT // dtype.itemsize
    return raw[start : start + count]


class Memory:
    """The arrays of a tape, its leaves, and the two sweeps over its records."""

    def __init__(self, dtype: str = "float64", capacity: int = 1024) -> None:
        if dtype not in ("float32", "float64"):
            raise TapeError(f"dtype {dtype!r} is neither 'float32' nor 'float64'")
        self.dtype: np.dtype[np.floating] = np.dtype(dtype)
        self.lanes = VECTOR_BYTES // self.dtype.itemsize
        self.num_params = 0  # nodes, with padding
        self.values = aligned_zeros(capacity, self.dtype)
        self.grads = aligned_zeros(capacity, self.dtype)
        self.kernels = np.zeros((op.COUNT, 2), np.int64)
        self._size = 0
        self._room = capacity
        self._records = array("I")
        self._operands = array("q")
        self._inputs = array("q")
        self._shapes: dict[int, Shape] = {}
        self._transposed: dict[int, int] = {}  # weights: the node of their transpose
        self._batch: Batch | None = None
        self._called: set[int] = set()  # opcodes on the tape that have a kernel of their own
        self._evaluated = 0  # records whose values have been computed

    def __len__(self) -> int:
        """Nodes on the tape, padding included."""
        return self._size

    @property
    def loaded_batch(self) -> Batch:
        """The batch that was declared."""
        if self._batch is None:
            raise TapeError("the tape has no batch: declare one with tape.batch")
        return self._batch

    def shape(self, node: int) -> tuple[int, ...]:
        """() for a scalar, (rows, width) for an array; a batch array has the rows now loaded."""
        known = self._shapes.get(self._any(node))
        return () if known is None else (self._loaded_rows(known), known.width)

    def value(self, node: int) -> float | Floats:
        """The value of a scalar, or a copy of an array's, (rows, width)."""
        self._evaluate()
        return self._read(self.values, node)

    def grad(self, node: int) -> float | Floats:
        """The gradient of the last `backward`'s root with respect to a node, in its shape."""
        return self._read(self.grads, node)

    def forward(self) -> None:
        """Compute every record again, after leaves or inputs have changed."""
        self._evaluated = 0
        self._evaluate()

    def backward(self, root: int, accumulate: bool = False) -> None:
        """Fill in the gradients of a scalar node with respect to all nodes.

        With accumulate, gradients of the parameters add to what earlier calls left there.
        """
        self._scalar(root)
        self._evaluate()
        self.grads[self.num_params if accumulate else 0 : self._size] = 0
        self.grads[root] = 1
        machine = self._machine()
        # Results appear in the order of their ids: nothing after the root's record can reach it.
        end = int(np.searchsorted(machine.records[:, 1], root, side="right"))
        load_kernels(self.kernels, self.dtype, self._called, BACKWARD)
        reverse_sweep(machine, 0, end, self._window())

    def machine(self, directions: tuple[int, ...]) -> Machine:
        """A copy of the program, for replay on this tape's values and gradients.

        directions: FORWARD, BACKWARD: which kernels to have ready.
        """
        for direction in directions:
            load_kernels(self.kernels, self.dtype, self._called, direction)
        live = self._machine()
        return live._replace(
            records=live.records.copy(), operands=live.operands.copy(), inputs=live.inputs.copy()
        )

    def mark(self) -> Mark:
        """Where the tape now ends, for `reset`."""
        return Mark(self._size, len(self._records) // 4, len(self._operands), len(self._inputs))

    def reset(self, mark: Mark | None = None) -> None:
        """Forget everything recorded after a mark, or all but the parameters."""
        if mark is None:
            mark = Mark(self.num_params, 0, 0, 0)
        if any(then > now for then, now in zip(mark, self.mark(), strict=True)):
            raise TapeError("the mark lies beyond the end of the tape: it is of an earlier tape")
        self._evaluate()
        self.values[mark.nodes : self._size] = 0
        self._size = mark.nodes
        self.num_params = min(self.num_params, mark.nodes)
        del self._records[4 * mark.records :]
        del self._operands[mark.operands :]
        del self._inputs[mark.inputs :]
        self._evaluated = min(self._evaluated, mark.records)
        self._shapes = {node: shape for node, shape in self._shapes.items() if node < mark.nodes}
        self._transposed = {w: t for w, t in self._transposed.items() if t < mark.nodes}
        if self._batch is not None and self._batch.weights >= mark.nodes:
            self._batch = None

    def var(self, value: Number) -> int:
        """A new scalar node."""
        if not isinstance(value, Number):
            raise TapeError(f"{value!r} is not a number; an array is a tape.parameter")
        node = self._allocate(1)
        self.values[node] = value
        return node

    def constant(self, value: Number) -> int:
        """A new scalar node whose gradient nobody wants: a var by another name."""
        return self.var(value)

    def variables(self, values: ArrayLike) -> Ids:
        """One new scalar node for every element of an array; ids in the array's shape."""
        given = self._floats(values)
        first = self._allocate(given.size)
        self.values[first : first + given.size] = given.ravel()
        return np.arange(first, first + given.size).reshape(given.shape)

    def parameter(self, values: ArrayLike) -> int:
        """An array of trained numbers, (rows, width). Parameters come before anything else."""
        self._only_parameters()
        node = self.array(values)
        self.num_params = self._align()
        return node

    def scalar_parameters(self, values: ArrayLike) -> Ids:
        """Trained numbers as scalar nodes, ids in the array's shape; before anything else."""
        self._only_parameters()
        nodes = self.variables(values)
        self.num_params = self._size
        return nodes

    def end_parameters(self) -> None:
        """Pad the parameters to whole vectors, as the optimizer's kernels want them."""
        self._only_parameters()
        self.num_params = self._align()

    def _only_parameters(self) -> None:
        if self._size != self.num_params or self._records:
            raise TapeError("parameters must be recorded first: reset the tape, or record them now")

    def array(self, values: ArrayLike) -> int:
        """A fixed array, (rows, width), or (width,) for one row."""
        given = np.atleast_2d(self._floats(values))
        if given.ndim != 2 or 0 in given.shape:
            raise TapeError(f"an array has rows and columns, not the shape {given.shape}")
        node = self._new_array(given.shape[0], given.shape[1])
        self._view(self.values, node)[:] = given
        return node

    def set_value(self, node: int, value: ArrayLike) -> None:
        """Change a leaf; `forward` then recomputes what depends on it."""
        shape = self.shape(node)
        given = self._floats(value)
        if given.shape != shape:
            raise TapeError(f"node {node} has the shape {shape}, the value given {given.shape}")
        self._evaluate()
        if shape:
            self._view(self.values, node)[:] = given
        else:
            self.values[node] = given

    def _floats(self, values: ArrayLike) -> Floats:
        try:
            given = np.asarray(values)
            if given.dtype.kind not in "fiu":
                raise TypeError
            return given.astype(self.dtype)
        except (TypeError, ValueError):
            raise TapeError(f"not an array of numbers: {values!r:.60}") from None

    def input(self, values: Iterable[int], below: int) -> Input:
        """Row numbers from 0 to below - 1 that a program reads, changed with `set_input`."""
        given = self._row_numbers(values, below)
        slot = len(self._inputs)
        self._inputs.extend(given)
        return Input(slot, len(given), below)

    def set_input(self, which: Input, values: Iterable[int]) -> None:
        """Replace the numbers of an input; `forward` then recomputes what depends on them."""
        given = self._row_numbers(values, which.below)
        if len(given) != which.count or which.slot + which.count > len(self._inputs):
            raise TapeError(f"the input holds {which.count} numbers, not {len(given)}")
        self._evaluate()
        self._inputs[which.slot : which.slot + which.count] = array("q", given)

    def batch(self, capacity: int, block: int, vocab_size: int) -> Batch:
        """Declare the rows of packed documents: at most `capacity`, positions below `block`."""
        if self._batch is not None:
            raise TapeError("a tape has one batch")

        def rows(below: int) -> Input:
            return Input(self.input([0] * capacity, below).slot, op.BATCH, below)

        tokens, positions, targets = rows(vocab_size), rows(block), rows(vocab_size)
        starts = self.input([0] * (block + 1), capacity + 1)
        weights = self._auxiliary(capacity)
        self._batch = Batch(capacity, block, tokens, positions, targets, starts.slot, weights)
        return self._batch

    @staticmethod
    def _row_numbers(values: Iterable[int], below: int) -> list[int]:
        try:
            given = [operator.index(value) for value in values]
        except TypeError:
            raise TapeError(f"not whole numbers: {values!r:.60}") from None
        for number in given:
            if not 0 <= number < below:
                raise TapeError(f"row number {number} is not between 0 and {below - 1}")
        return given

    def _evaluate(self) -> None:
        """Compute the records that have not been computed yet."""
        count = len(self._records) // 4
        if self._evaluated == count:
            return
        load_kernels(self.kernels, self.dtype, self._called, FORWARD)
        forward_sweep(self._machine(), self._evaluated, count, self._window())
        self._evaluated = count

    def _machine(self) -> Machine:
        """The arrays where they lie. The tape cannot record while this is alive."""
        return Machine(
            self.kernels,
            self.values,
            self.grads,
            np.frombuffer(self._records, np.uint32).reshape(-1, 4),
            np.frombuffer(self._operands, np.int64),
            np.frombuffer(self._inputs, np.int64),
        )

    def _window(self) -> Window:
        if self._batch is None:
            return (0, 0, 0, 0)
        block = self._batch.block
        return (0, block, 0, self._inputs[self._batch.starts + block])

    def view(self, node: int) -> Floats:
        """The values of an array leaf where they lie, (rows, width), until the tape grows."""
        self._array(node)
        return self._view(self.values, node)

    def _read(self, source: Floats, node: int) -> float | Floats:
        if self._any(node) in self._shapes:
            return self._view(source, node).copy()
        return float(source[node])

    def _view(self, source: Floats, node: int) -> Floats:
        """An array node's part of values or grads, (rows, width), until the tape grows."""
        shape = self._shapes[node]
        rows = self._loaded_rows(shape)
        run = source[node : node + rows * shape.stride]
        return run.reshape(rows, shape.stride)[:, : shape.width]

    def _loaded_rows(self, shape: Shape) -> int:
        return self._window()[3] if shape.rows == op.BATCH else shape.rows

    def _any(self, node: int) -> int:
        """The id of a scalar or array node, checked."""
        try:
            if 0 <= operator.index(node) < self._size:
                return node
        except TypeError:
            raise TapeError(f"{node!r:.60} is not a node id") from None
        raise TapeError(f"node {node} is not on the tape, which has {self._size} nodes")

    def _scalar(self, node: int) -> int:
        if self._any(node) in self._shapes:
            raise TapeError(f"node {node} is an array where a scalar is wanted")
        return node

    def _array(self, node: int) -> Shape:
        shape = self._shapes.get(self._any(node))
        if shape is None:
            raise TapeError(f"node {node} is a scalar where an array is wanted")
        return shape

    def _capacity(self, rows: int) -> int:
        """Rows to make room for: a batch may have any number up to its capacity."""
        if rows != op.BATCH:
            return rows
        return self.loaded_batch.capacity

    def stride(self, width: int) -> int:
        """Nodes that a row of `width` numbers takes: whole vectors."""
        return -(-width // self.lanes) * self.lanes

    def _allocate(self, count: int) -> int:
        first = self._size
        if first + count > LARGEST_TAPE:
            raise TapeError(f"a tape holds {LARGEST_TAPE} nodes: make the model or batch smaller")
        self._size += count
        if self._size > self._room:
            self._grow()
        return first

    def _align(self) -> int:
        """Move the end of the tape to the next 64-byte boundary, and return it."""
        boundary = ALIGNMENT // self.dtype.itemsize
        self._allocate(-self._size % boundary)
        return self._size

    def _auxiliary(self, count: int) -> int:
        """Aligned nodes that only a kernel uses, zero at first."""
        first = self._align()
        self._allocate(count)
        return first

    def _new_array(self, rows: int, width: int) -> int:
        stride = self.stride(width)
        node = self._auxiliary(self._capacity(rows) * stride)
        self._shapes[node] = Shape(rows, width, stride)
        return node

    def _grow(self) -> None:
        """Make room for every node: the arrays move."""
        self._room = max(self._size, 2 * self._room)
        for name in ("values", "grads"):
            grown = aligned_zeros(self._room, self.dtype)
            old = getattr(self, name)
            grown[: len(old)] = old
            setattr(self, name, grown)

    def _record_list(self, opcode: int, arguments: Iterable[int]) -> int:
        """Record an operation whose result is a scalar, with a list of arguments."""
        out = self._allocate(1)
        self._append(opcode, out, arguments)
        return out

    def _record_array(self, opcode: int, rows: int, width: int, arguments: Iterable[int]) -> int:
        """Record an operation whose result is an array."""
        out = self._new_array(rows, width)
        self._append(opcode, out, arguments)
        return out

    def _append(self, opcode: int, out: int, arguments: Iterable[int]) -> None:
        self._records.extend((opcode, out, len(self._operands), 0))
        self._operands.extend(arguments)
        self._called.add(opcode)
