"""The arrays of a tape, and the two sweeps over what is recorded in them."""

import operator
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, SupportsIndex, TypeVar

import numpy as np

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.layout import BATCH, BatchRange, stride
from tapegpt.kernels.op import ArrayOp, Kind, ListOp, flatten, kinds, with_gradients
from tapegpt.kernels.program import Machine
from tapegpt.kernels.registry import array_op, kernels_of, load_kernels, new_table, opcode
from tapegpt.tape.node import Node
from tapegpt.tape.types import Batch, Floats, Input, Mark, Shape, TapeError

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Memory")

RECORD = np.dtype((np.uint32, 4))
ALIGNMENT = 64  # bytes: a cache line, and the widest vector
LARGEST_TAPE = 2**31  # nodes: ids are 32-bit


def aligned_zeros(count: int, dtype: np.dtype[np.floating]) -> Floats:
    """float[count], zero, its first element on a 64-byte boundary."""
    raw = np.zeros(count + ALIGNMENT // dtype.itemsize, dtype)
    start = -raw.ctypes.data % ALIGNMENT // dtype.itemsize
    return raw[start : start + count]


def all_or_nothing(
    method: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, P], R]:
    """Make a method that records in several parts forget them all if it fails on the way."""

    @wraps(method)
    def call(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        before = self._end()
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            self._truncate(before)
            raise

    return call


class Memory:
    """The arrays of a tape, its leaves, and the two sweeps over its records."""

    def __init__(self, dtype: str = "float64", capacity: int = 1024) -> None:
        if dtype not in ("float32", "float64"):
            raise TapeError(f"dtype {dtype!r} is neither 'float32' nor 'float64'")
        capacity = self._count(capacity, "nodes")
        self.dtype: np.dtype[np.floating] = np.dtype(dtype)
        self._limit = float(np.finfo(self.dtype).max)
        self.lanes = VECTOR_BYTES // self.dtype.itemsize
        self.num_params = 0  # nodes, with padding
        self.values = aligned_zeros(capacity, self.dtype)
        self.grads = aligned_zeros(capacity, self.dtype)
        self.kernels = new_table()
        self._size = 0
        self._records = array("I")
        self._operands = array("q")
        self._inputs = array("q")
        self._known_inputs: set[Input] = set()
        self._marks: set[Mark] = set()
        self._shapes: dict[int, Shape] = {}
        self.extents: dict[int, int] = {}  # how many nodes an array, or room for a kernel, takes
        self._panel: int | None = None  # where matrix products pack what they read
        self._batch: Batch | None = None
        self._recurrence: int | None = None  # the record of a `previous` that waits for its `carry`
        self.generation = 0  # resets so far, which tell handles of forgotten nodes
        # (generation that it ended, nodes kept) of each reset that kept less than all since.
        self._resets: list[tuple[int, int]] = []
        self._evaluated = 0  # records whose values have been computed
        self._ready = [0, 0]  # records whose kernels have been loaded, forward and backward

    def __getstate__(self) -> dict[str, object]:
        # For copies and pickles: the addresses mean nothing in another process.
        return {**self.__dict__, "kernels": np.zeros_like(self.kernels), "_ready": [0, 0]}

    def __copy__(self) -> Self:
        # Two tapes with one list of records would each run into what the other has recorded.
        return deepcopy(self)

    def __len__(self) -> int:
        """Nodes on the tape, padding included."""
        return self._size

    def __bool__(self) -> bool:
        return True

    @property
    def declared_batch(self) -> Batch:
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
        root = self._scalar(root)
        self._evaluate()
        self.grads[self.num_params if accumulate else 0 : self._size] = 0
        self.grads[root] += 1
        self._load(BACKWARD)
        # Nothing after the root's record can reach it.
        reverse_sweep(self._machine(), 0, self._records_until(root), self._batch_range())

    def machine(self) -> Machine:
        """A copy of the program, for replay on this tape's values and gradients.

        Its kernels are those that the tape itself has needed so far, see kernels/registry.py.
        """
        live = self._machine()
        return live._replace(
            records=live.records.copy(), operands=live.operands.copy(), inputs=live.inputs.copy()
        )

    def mark(self) -> Mark:
        """Where the tape now ends, for `reset`."""
        if self._recurrence is not None:
            raise TapeError("mark: carry the rows of the recurrence first")
        mark = self._end()
        self._marks.add(mark)
        return mark

    def reset(self, mark: Mark | None = None) -> None:
        """Forget everything recorded after a mark, or all but the parameters."""
        if mark is None:
            mark = Mark(self.num_params, 0, 0, 0)
        elif not isinstance(mark, Mark) or mark not in self._marks:
            raise TapeError(f"{mark!r:.90} is not a mark of this tape since it was last reset")
        self._truncate(mark)
        while self._resets and self._resets[-1][1] >= mark.nodes:
            self._resets.pop()
        self._resets.append((self.generation, mark.nodes))
        self.generation += 1

    def _survives(self, node: int, generation: int) -> bool:
        """Whether a node that was recorded in a generation outlived all resets since."""
        # What is kept grows from one entry to the next, so the first is the strictest.
        _, kept = self._resets[bisect_left(self._resets, (generation, 0))]
        return node < kept

    def _end(self) -> Mark:
        return Mark(self._size, len(self._records) // 4, len(self._operands), len(self._inputs))

    def _truncate(self, mark: Mark) -> None:
        self.values[mark.nodes : self._size] = 0
        self.grads[mark.nodes : self._size] = 0
        self._size = mark.nodes
        self.num_params = min(self.num_params, mark.nodes)
        del self._records[4 * mark.records :]
        del self._operands[mark.operands :]
        del self._inputs[mark.inputs :]
        self._evaluated = min(self._evaluated, mark.records)
        self._ready = [min(ready, mark.records) for ready in self._ready]
        self._marks = {
            known
            for known in self._marks
            if all(then <= now for then, now in zip(known, mark, strict=True))
        }
        self._known_inputs = {known for known in self._known_inputs if known.slot < mark.inputs}
        self._shapes = {node: shape for node, shape in self._shapes.items() if node < mark.nodes}
        self.extents = {node: n for node, n in self.extents.items() if node < mark.nodes}
        if self._panel is not None and self._panel >= mark.nodes:
            self._panel = None
        if self._batch is not None and self._batch.weights >= mark.nodes:
            self._batch = None
        if self._recurrence is not None and self._recurrence >= mark.records:
            self._recurrence = None

    def _records_until(self, node: int) -> int:
        """How many records there are up to the last whose results begin at a node or before it."""
        # Results appear in the order of their ids. Mostly the last one is wanted.
        records = range(len(self._records) // 4)
        if records and self._records[-3] <= node:
            return len(records)
        return bisect_right(records, node, key=lambda record: self._records[4 * record + 1])

    def _evaluate(self) -> None:
        """Compute the records that have not been computed yet."""
        count = len(self._records) // 4
        if self._evaluated == count:
            return
        self._load(FORWARD)
        forward_sweep(self._machine(), self._evaluated, count, self._batch_range())
        self._evaluated = count

    def _load(self, direction: int) -> None:
        """Have the kernels of all records ready to be called."""
        count = len(self._records) // 4
        if self._ready[direction] < count:
            records = self._machine().records[self._ready[direction] :]
            load_kernels(self.kernels, self.dtype, kernels_of(records), direction)
            self._ready[direction] = count

    def _machine(self) -> Machine:
        """The arrays where they lie. The tape cannot record while this is alive."""
        return Machine(
            self.kernels,
            self.values,
            self.grads,
            np.frombuffer(self._records, RECORD),
            np.frombuffer(self._operands, np.int64),
            np.frombuffer(self._inputs, np.int64),
        )

    def _batch_range(self) -> BatchRange:
        if self._batch is None:
            return BatchRange(0, 0, 0, 0)
        block = self._batch.block
        return BatchRange(0, block, 0, self._inputs[self._batch.starts + block])

    def view(self, node: int) -> Floats:
        """The values of an array leaf where they lie, (rows, width), until the tape grows."""
        self._array(node)
        return self._view(self.values, self._any(node))

    def _read(self, source: Floats, node: int) -> float | Floats:
        plain = self._any(node)
        if plain in self._shapes:
            return self._view(source, plain).copy()
        return float(source[plain])

    def _view(self, source: Floats, node: int) -> Floats:
        """An array node's part of values or grads, (rows, width), until the tape grows."""
        shape = self._shapes[node]
        rows = self._loaded_rows(shape)
        run = source[node : node + rows * shape.stride]
        return run.reshape(rows, shape.stride)[:, : shape.width]

    def _loaded_rows(self, shape: Shape) -> int:
        return self._batch_range().end_row if shape.rows == BATCH else shape.rows

    def _any(self, node: int | Node) -> int:
        """The id of a scalar or array node, checked."""
        if type(node) is not int:
            node = self._plain(node)
        if 0 <= node < self._size:
            return node
        raise TapeError(f"node {node} is not on the tape, which has {self._size} nodes")

    def _plain(self, node: SupportsIndex | Node) -> int:
        """The int that a handle or another kind of integer stands for."""
        if isinstance(node, Node):
            if node.tape is not self:
                raise TapeError(f"the handle of node {node.id} is one of another tape")
            if node.generation != self.generation:
                if not self._survives(node.id, node.generation):
                    raise TapeError(f"node {node.id} of this handle was forgotten by reset")
                node.generation = self.generation
            return node.id
        if isinstance(node, bool):
            raise TapeError(f"{node!r} is not a node id")
        try:
            return operator.index(node)
        except TypeError:
            raise TapeError(f"{node!r:.60} is not a node id") from None

    @staticmethod
    def _count(count: int, what: str) -> int:
        """A whole number from 1, checked."""
        try:
            plain = operator.index(count)
        except TypeError:
            raise TapeError(f"{count!r:.60} is not a number of {what}") from None
        if plain < 1:
            raise TapeError(f"{plain} is not a number of {what}: it is at least 1")
        return plain

    def _is_array(self, node: int) -> bool:
        return self._any(node) in self._shapes

    def _scalar(self, node: int) -> int:
        plain = self._any(node)
        if plain in self._shapes:
            raise TapeError(f"node {plain} is an array where a scalar is wanted")
        return plain

    def _array(self, node: int) -> Shape:
        shape = self._shapes.get(self._any(node))
        if shape is None:
            raise TapeError(f"node {node} is a scalar where an array is wanted")
        return shape

    def _capacity(self, rows: int) -> int:
        """Rows to make room for: a batch may have any number up to its capacity."""
        if rows != BATCH:
            return rows
        return self.declared_batch.documents * self.declared_batch.block

    def stride(self, width: int) -> int:
        """Nodes from one row of `width` numbers to the next."""
        return stride(self._count(width, "columns"), self.lanes)

    def _allocate(self, count: int) -> int:
        first, end = self._size, self._size + count
        if end > LARGEST_TAPE:
            raise TapeError(f"a tape holds {LARGEST_TAPE} nodes: make the model or batch smaller")
        # Vector loads may look beyond the end of an array.
        room = end + ALIGNMENT // self.dtype.itemsize
        if room > len(self.values):
            self._grow(room)
        self._size = end
        return first

    def _align(self) -> int:
        """Move the end of the tape to the next 64-byte boundary, and return it."""
        self._allocate(self._padding())
        return self._size

    def _padding(self) -> int:
        return -self._size % (ALIGNMENT // self.dtype.itemsize)

    def _auxiliary(self, count: int) -> int:
        """Aligned nodes that only a kernel uses, zero at first."""
        padding = self._padding()
        node = self._allocate(padding + count) + padding
        self.extents[node] = count
        return node

    def _new_array(self, rows: int, width: int) -> int:
        shape = Shape(rows, width, self.stride(width))
        node = self._auxiliary(self._capacity(rows) * shape.stride)
        self._shapes[node] = shape
        return node

    def _grow(self, count: int) -> None:
        """Make room for `count` nodes at least: the arrays move."""
        old = len(self.values)
        grown = [aligned_zeros(max(count, 2 * old), self.dtype) for _ in range(2)]
        grown[0][:old], grown[1][:old] = self.values, self.grads
        self.values, self.grads = grown

    def _record_list(self, operation: ListOp | ArrayOp, arguments: tuple[Any, ...]) -> int:
        """Record an operation whose result is a scalar."""
        given = self._with_rooms(operation, arguments)
        out = self._allocate(1)
        self._append(operation, out, given)
        return out

    def _record_array(
        self, operation: ArrayOp, shape: Shape, arguments: tuple[Any, ...], variant: int = 0
    ) -> int:
        """Record an operation whose result is an array of this shape."""
        given = self._with_rooms(operation, arguments)
        out = self._new_array(shape.rows, shape.width)
        self._append(operation, out, given, variant)
        return out

    def _with_rooms(
        self, operation: ListOp | ArrayOp, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The arguments, with nodes in the place of how many nodes are room for the kernels."""
        given = []
        for argument, kind in zip(arguments, kinds(operation.args).values(), strict=True):
            if kind in (Kind.ROOM, Kind.GRADIENT_ROOM):
                given.append(self._auxiliary(argument))
            elif kind is Kind.SHARED_ROOM:
                if self._panel is None or self.extents[self._panel] < argument:
                    self._panel = self._auxiliary(argument)
                given.append(self._panel)
            else:
                given.append(argument)
        return tuple(given)

    def _append(
        self,
        operation: ListOp | ArrayOp,
        out: int,
        arguments: tuple[Any, ...],
        variant: int = 0,
    ) -> None:
        code, at, back = opcode(operation, variant), len(self._operands), 0
        self._operands.extend(flatten(arguments))
        if array_op(code):
            back = len(self._operands)
            gradients = (arguments[place] for place in with_gradients(operation.args))
            self._operands.extend((0, out, *gradients))
        self._records.extend((code, out, at, back))
