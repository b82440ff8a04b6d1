"""The arrays of a tape, and the two sweeps over what is recorded in them."""

import operator
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable
from copy import copy, deepcopy
from threading import RLock
from typing import Any, Self, SupportsIndex

import numpy as np

from tapegpt.counting.table import CountTable
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.layout import BATCH, BatchRange, stride
from tapegpt.kernels.op import ArrayOp, ListOp, rooms_of, with_gradients
from tapegpt.kernels.registry import CODES, new_table
from tapegpt.tape.alignment import ALIGNMENT, aligned_copy, aligned_zeros
from tapegpt.tape.guards import alone
from tapegpt.tape.handles import Array, Generation, Handle, Node, Scalar, new
from tapegpt.tape.types import Batch, Floats, Input, Mark, Shape, TapeError

NO_BATCH = BatchRange(0, 0, 0, 0)
OPENED = ("_acquire", "_let_go", "_held", "_sweeps")  # what no copy has
LARGEST_TAPE = 2**31  # nodes: ids are 32-bit


class Memory:
    """The arrays of a tape, its leaves, and the two sweeps over its records."""

    def __init__(self, dtype: str = "float64", capacity: int = 1024) -> None:
        if dtype not in ("float32", "float64"):
            raise TapeError(f"dtype {dtype!r} is neither 'float32' nor 'float64'")
        capacity = self._count(capacity, "nodes")
        self.dtype: np.dtype[np.floating] = np.dtype(dtype)
        self._limit = float(np.finfo(self.dtype).max)
        self.lanes = VECTOR_BYTES // self.dtype.itemsize
        self.num_params = 0  # nodes, with padding, of the parameters that came first
        self._late: dict[int, int] = {}  # begin and end of parameters recorded later
        self.values = aligned_zeros(capacity, self.dtype)
        self.grads = aligned_zeros(capacity, self.dtype)
        self.kernels = new_table()
        self._size = 0
        self._beyond = ALIGNMENT // self.dtype.itemsize  # nodes that vector loads may look past it
        self._room = min(capacity - self._beyond, LARGEST_TAPE)  # nodes, before the arrays move
        self._records = array("I")
        # Records that have yet to be appended to those, four integers each. Operators put them here
        # without taking the lock, while nobody holds the tape: from where they look at `_held`, and
        # at the generation of their operands, until the record is here they call nothing, and the
        # interpreter changes threads only where something is called.
        self._pending: list[int] = []
        self._operands = array("q")
        self._inputs = array("q")
        # These four grow in the order in which a reset cuts them back.
        self._known_inputs: dict[int, Input] = {}  # by slot
        self._marks: list[Mark] = []
        self._shapes: dict[int, Shape] = {}
        self.extents: dict[int, int] = {}  # how many nodes an array, or room for a kernel, takes
        self._tables: set[CountTable] = set()  # of counts, whose addresses records know
        self._without_gradient: frozenset[int] = frozenset()  # arrays, after an optimizer's steps
        self._panel: int | None = None  # where matrix products pack what they read
        self._batch: Batch | None = None
        self._recurrence: int | None = None  # the record of a scan that is not done
        self.generation = Generation(self, 0)
        # (generation that it ended, nodes kept) of each reset that kept less than all since.
        self._resets: list[tuple[int, int]] = []
        self._key = os.urandom(8)  # what tells tapes apart, in copies and pickles too
        # The generations and nodes of those that this one was copied from, at that time.
        self._copied: dict[bytes, tuple[int, int]] = {}
        self._evaluated = 0  # records whose values have been computed
        self._ready = [0, 0]  # records whose kernels have been loaded, forward and backward
        self._loaded: tuple[set[int], set[int]] = (set(), set())  # the opcodes of those
        self._open()

    def _open(self) -> None:
        lock = RLock()  # for a thread while it changes the tape or has it computed
        self._acquire, self._let_go = lock.acquire, lock.release
        self._held = 0  # methods that hold the tape
        self._sweeps: dict[int, Callable[..., Any]] = {}  # by direction, once they are compiled

    def _hold(self) -> None:
        """Have other threads wait, and all records in their place, until `_release`."""
        self._acquire()
        self._held += 1
        if self._pending:
            self._records.fromlist(self._pending)
            self._pending.clear()

    def _release(self) -> None:
        self._held -= 1
        self._let_go()

    @alone
    def __getstate__(self) -> dict[str, object]:
        # For copies and pickles: addresses and locks mean nothing in another process.
        state = {
            name: copy(value) if isinstance(value, (array, dict, list, np.ndarray)) else value
            for name, value in self.__dict__.items()
            if name not in OPENED
        }
        fresh = {"kernels": np.zeros_like(self.kernels), "_ready": [0, 0]}
        return {**state, **fresh, "_loaded": (set(), set())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.values, self.grads = aligned_copy(self.values), aligned_copy(self.grads)
        self._copied[self._key] = (self.generation.number, self._size)
        self._key = os.urandom(8)
        self._open()

    def __copy__(self) -> Self:
        # Two tapes with one list of records would each run into what the other has recorded.
        return deepcopy(self)

    def __len__(self) -> int:
        """Nodes on the tape, padding included."""
        return self._size

    def __bool__(self) -> bool:
        return True

    @property
    def _declared_batch(self) -> Batch:
        """The batch that was declared."""
        if self._batch is None:
            raise TapeError("the tape has no batch: declare one with tape.batch")
        return self._batch

    def shape(self, node: Node) -> tuple[int, ...]:
        """() for a scalar, (rows, width) for an array; a batch array has the rows now loaded."""
        known = self._shapes.get(self._any(node))
        return () if known is None else (self._loaded_rows(known), known.width)

    @alone
    def mark(self) -> Mark:
        """Where the tape now ends, for `reset`."""
        if self._recurrence is not None:
            raise TapeError("mark: a scan is not done")
        mark = self._end()
        if not self._marks or self._marks[-1] != mark:
            self._marks.append(mark)
        return mark

    @alone
    def reset(self, mark: Mark | None = None) -> None:
        """Forget everything recorded after a mark, or all but the parameters that came first."""
        if mark is None:
            mark = Mark(self.num_params, 0, 0, 0)
        elif not self._is_mark(mark):
            raise TapeError(f"{mark!r:.90} is not a mark of this tape since it was last reset")
        self._truncate(mark)
        while self._resets and self._resets[-1][1] >= mark.nodes:
            self._resets.pop()
        self._resets.append((self.generation.number, mark.nodes))
        self.generation = Generation(self, self.generation.number + 1)

    def _is_mark(self, mark: Mark) -> bool:
        if not isinstance(mark, Mark) or not all(type(place) is int for place in mark):
            return False
        at = bisect_left(self._marks, mark)
        return at < len(self._marks) and self._marks[at] == mark

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
        self._without_gradient = frozenset(x for x in self._without_gradient if x < mark.nodes)
        self._size = mark.nodes
        self.num_params = min(self.num_params, mark.nodes)
        del self._records[4 * mark.records :]
        del self._operands[mark.operands :]
        del self._inputs[mark.inputs :]
        self._evaluated = min(self._evaluated, mark.records)
        self._ready = [min(ready, mark.records) for ready in self._ready]
        while self._marks and _ends_after(self._marks[-1], mark):
            self._marks.pop()
        _cut_back(self._late, mark.nodes)
        _cut_back(self._known_inputs, mark.inputs)
        _cut_back(self._shapes, mark.nodes)
        _cut_back(self.extents, mark.nodes)
        if self._panel is not None and self._panel >= mark.nodes:
            self._panel = None
        if self._batch is not None and self._batch.weights >= mark.nodes:
            self._batch = None
        if self._recurrence is not None and self._recurrence >= mark.records:
            self._recurrence = None

    def _parameters(self) -> list[tuple[int, int]]:
        """Begin and end of every stretch of parameters, padding included."""
        return [(0, self.num_params), *self._late.items()]

    def _batch_range(self) -> BatchRange:
        if self._batch is None:
            return NO_BATCH
        end = self._batch.positions
        return BatchRange(0, end, 0, self._inputs[self._batch.starts + end])

    def _view(self, source: Floats, node: int) -> Floats:
        """An array node's part of values or grads, (rows, width), until the tape grows."""
        shape = self._shapes[node]
        rows = self._loaded_rows(shape)
        run = source[node : node + rows * shape.stride]
        return run.reshape(rows, shape.stride)[:, : shape.width]

    def _loaded_rows(self, shape: Shape) -> int:
        return self._batch_range().end_row if shape.rows == BATCH else shape.rows

    def _scalar_handle(self, node: int) -> Scalar:
        handle = new(Scalar)
        handle.generation, handle.id = self.generation, node
        return handle

    def _array_handle(self, node: int) -> Array:
        handle = new(Array)
        handle.generation, handle.id = self.generation, node
        return handle

    def _any(self, node: Node) -> int:
        """The id of a scalar or array node, checked."""
        if type(node) is not int:
            node = self._plain(node)
        if 0 <= node < self._size:
            return node
        raise TapeError(f"node {node} is not on the tape, which has {self._size} nodes")

    def _plain(self, node: SupportsIndex | Handle) -> int:
        """The int that a handle or another kind of integer stands for."""
        if isinstance(node, Handle):
            generation = node.generation
            if generation is not self.generation:
                own = generation.tape is self
                number = generation.number if own else self._since_copied(node)
                if number < self.generation.number and not self._survives(node.id, number):
                    raise TapeError(f"node {node.id} of this handle was forgotten by reset")
                if own:
                    node.generation = self.generation
            return node.id
        if isinstance(node, bool):
            raise TapeError(f"{node!r} is not a node id")
        try:
            return operator.index(node)
        except TypeError:
            raise TapeError(f"{node!r:.60} is not a node id") from None

    def _since_copied(self, node: Handle) -> int:
        """The generation of a handle of the tape that this one is a copy of.

        Raises TapeError if the node is none that was copied.
        """
        other, number = node.tape, node.generation.number
        copied, end = self._copied.get(other._key, (-1, 0))
        if node.id < end and (number <= copied or other._survives(node.id, copied)):
            return min(number, copied)
        raise TapeError(f"the handle of node {node.id} is one of another tape")

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

    def _scalar(self, node: Node) -> int:
        plain = self._any(node)
        if plain in self._shapes:
            raise TapeError(f"node {plain} is an array where a scalar is wanted")
        return plain

    def _array(self, node: Node) -> Shape:
        shape = self._shapes.get(self._any(node))
        if shape is None:
            raise TapeError(f"node {self._any(node)} is a scalar where an array is wanted")
        return shape

    def _given(self, node: Node) -> tuple[int, Shape]:
        """The id of an array, checked, and its shape."""
        return self._any(node), self._array(node)

    def _capacity(self, rows: int) -> int:
        """Rows to make room for: a batch may have any number up to its capacity."""
        if rows != BATCH:
            return rows
        return self._declared_batch.capacity

    def _stride(self, width: int) -> int:
        """Nodes from one row of `width` numbers to the next."""
        return stride(self._count(width, "columns"), self.lanes)

    def _allocate(self, count: int) -> int:
        first, end = self._size, self._size + count
        if end > LARGEST_TAPE:
            raise TapeError(f"a tape holds {LARGEST_TAPE} nodes: make the model or batch smaller")
        if end > self._room:
            self._grow(end)
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
        shape = Shape(rows, width, self._stride(width))
        node = self._auxiliary(self._capacity(rows) * shape.stride)
        self._shapes[node] = shape
        return node

    def _grow(self, count: int) -> None:
        """Make room for `count` nodes at least: the arrays move."""
        old, count = len(self.values), count + self._beyond
        grown = [aligned_zeros(max(count, 2 * old), self.dtype) for _ in range(2)]
        grown[0][:old], grown[1][:old] = self.values, self.grads
        self.values, self.grads = grown
        self._room = min(len(self.values) - self._beyond, LARGEST_TAPE)

    def _record_number(self, operation: ArrayOp, arguments: tuple[Any, ...]) -> Scalar:
        """Record an operation on arrays whose result is a scalar."""
        given = self._with_rooms(operation, arguments)
        out = self._allocate(1)
        self._append(operation, out, given)
        return self._scalar_handle(out)

    def _record_array(
        self, operation: ArrayOp, shape: Shape, arguments: tuple[Any, ...], variant: int = 0
    ) -> Array:
        """Record an operation whose result is an array of this shape."""
        given = self._with_rooms(operation, arguments)
        out = self._new_array(shape.rows, shape.width)
        self._append(operation, out, given, variant)
        return self._array_handle(out)

    def _with_rooms(self, operation: ArrayOp, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with nodes in the place of how many nodes are room for the kernels."""
        rooms = rooms_of(operation.args)
        if not rooms:
            return arguments
        given = list(arguments)
        for place, shared in rooms:
            count = given[place]
            if not shared:
                given[place] = self._auxiliary(count)
                continue
            if self._panel is None or self.extents[self._panel] < count:
                self._panel = self._auxiliary(count)
            given[place] = self._panel
        return tuple(given)

    def _append(
        self,
        operation: ListOp | ArrayOp,
        out: int,
        arguments: tuple[Any, ...],
        variant: int = 0,
    ) -> None:
        operands = self._operands
        code, at, back = CODES[operation] + variant, len(operands), 0
        if isinstance(arguments[-1], (list, tuple, range)):
            operands.extend([*arguments[:-1], *arguments[-1]])
        else:
            operands.extend(arguments)
        if isinstance(operation, ArrayOp) and operation.backward:
            back = len(operands)
            operands.extend(
                (0, out, *[arguments[place] for place in with_gradients(operation.args)])
            )
        self._records.extend((code, out, at, back))


def _cut_back(known: dict[int, Any], end: int) -> None:
    """Forget the last entries, those from `end` on."""
    while known and next(reversed(known)) >= end:
        known.popitem()


def _ends_after(mark: Mark, other: Mark) -> bool:
    return any(place > end for place, end in zip(mark, other, strict=True))
