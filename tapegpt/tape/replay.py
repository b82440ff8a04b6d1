"""The two sweeps over what a tape has recorded, and the values and gradients they give."""

from array import array
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Any, overload

import numpy as np
from numba import typeof, types
from numpy.typing import ArrayLike, NDArray

from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.interpreter import CARRY, PREVIOUS, live_forward_sweep, live_reverse_sweep
from tapegpt.kernels.layout import OPCODE, BatchRange
from tapegpt.kernels.loops.precise_sweep import NEVER, OftenUsed, precise_reverse_sweep
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import kernels_of, load_kernels, new_table
from tapegpt.tape.guards import alone
from tapegpt.tape.handles import Array, Handle, Node, Scalar
from tapegpt.tape.often_used import OFTEN, often_used
from tapegpt.tape.storage import Memory
from tapegpt.tape.types import Floats, Ids, TapeError

RECORD = np.dtype((np.uint32, 4))
FEW = 256  # records


@cache
def compiled_sweep(direction: int, dtype: np.dtype[np.floating]) -> Callable[..., Any]:
    """The code of a sweep, called at once.

    Numba's dispatcher would find it by the types of all that it is given, anew at every call.
    """
    floats = np.zeros(1, dtype)
    pairs, integers = [types.UniTuple(types.int64, 2)] * 3, [types.int64] * 4
    signature = (typeof(new_table()), typeof(floats), typeof(floats), *pairs, *integers)
    sweep: Any = (live_forward_sweep, live_reverse_sweep)[direction]
    sweep.compile(signature)
    entry: Callable[..., Any] = sweep.overloads[signature].entry_point
    return entry


class Replay(Memory):
    """Records are computed when somebody looks at a value: all that are waiting, in one call."""

    # At a generation and number of records.
    _often: tuple[tuple[int, int], OftenUsed] = ((0, 0), NEVER)

    @overload
    def value(self, node: Array) -> Floats: ...
    @overload
    def value(self, node: Scalar | int) -> float: ...
    def value(self, node: Node) -> float | Floats:
        """The value of a scalar, or a copy of an array's, (rows, width).

        The copy cannot be written to, because that would not change the tape: see `set_value`.
        """
        # By hand: each of the calls that this saves costs a tenth of what is left.
        self._acquire()
        self._held += 1
        try:
            records, pending = self._records, self._pending
            if pending:
                records.fromlist(pending)
                pending.clear()
            if 4 * self._evaluated != len(records):
                self._evaluate()
            if type(node) is Scalar and node.generation is self.generation:
                return self.values.item(node.id)
            return self._read(self.values, self._any(node))
        finally:
            self._held -= 1
            self._let_go()

    @overload
    def grad(self, node: Array) -> Floats: ...
    @overload
    def grad(self, node: Scalar | int) -> float: ...
    def grad(self, node: Node) -> float | Floats:
        """The gradient of the last `backward`'s root with respect to a node, in its shape.

        That of an array is a copy that cannot be written to.
        """
        self._hold()
        try:
            plain = self._any(node)
            if plain in self._without_gradient:
                raise TapeError(
                    f"node {plain} is fixed, or within a chain, and an optimizer's steps pass it no"
                    " gradient: call backward first"
                )
            return self._read(self.grads, plain)
        finally:
            self._release()

    @alone
    def forward(self) -> None:
        """Compute every record again, now; `value` and `backward` do so when they have to."""
        self._evaluated = 0
        self._evaluate()

    @alone
    def backward(
        self, root: Handle | int, accumulate: bool = False, seed: ArrayLike | None = None
    ) -> None:
        """Fill in the gradients of a scalar node with respect to all nodes.

        With accumulate, gradients of the parameters add to what earlier calls left there. seed:
        the gradient of the root itself, 1 unless given; of an array it must be given, in its shape:
        then the gradients are those of the sum of the products of its elements with the seed's.
        """
        plain = self._scalar(root) if seed is None else self._any(root)
        given: Any = 1 if seed is None else np.asarray(seed, self.dtype)
        if seed is not None and given.shape != self.shape(plain):
            raise TapeError(
                f"backward: a seed of the shape {given.shape} for a node of {self.shape(plain)}"
            )
        self._evaluate()
        self._without_gradient = frozenset()
        begin = 0
        for first, end in self._parameters() if accumulate else ():
            self.grads[begin:first] = 0
            begin = end
        self.grads[begin : self._size] = 0
        if plain in self._shapes:
            self._view(self.grads, plain)[:] += given
        else:
            self.grads[plain] += given
        self._load(BACKWARD)
        end, often = self._last_to_reach(plain), self._often_used()
        if len(often.nodes):
            batch_range = BatchRange(*map(int, self._batch_range()))
            precise_reverse_sweep(self._live_arrays(), often, end, batch_range)
        else:
            self._sweep(BACKWARD, 0, end)

    @alone
    def _replay_arrays(self) -> TapeArrays:
        """A copy of the program, for replay on this tape's values and gradients.

        Its kernels are those that the tape itself has needed so far, see kernels/registry.py.
        """
        return TapeArrays(
            self.kernels,
            self.values,
            self.grads,
            self._record_rows().copy(),
            np.array(self._operands, np.int64),
            np.array(self._inputs, np.int64),
        )

    def _live_arrays(self) -> TapeArrays:
        """The program where it lies. The tape cannot record while this is alive."""
        return TapeArrays(
            self.kernels,
            self.values,
            self.grads,
            self._record_rows(),
            _integers_of(self._operands),
            _integers_of(self._inputs),
        )

    def _record_rows(self) -> NDArray[np.uint32]:
        """The records where they lie, (count, 4). The tape cannot record while this is alive."""
        return np.frombuffer(self._records, RECORD)

    def _records_until(self, node: int) -> int:
        """How many records there are up to the last whose results begin at a node or before it."""
        # Results appear in the order of their ids. Mostly the last one is wanted.
        records = self._records
        if not records or records[-3] <= node:
            return len(records) // 4
        return bisect_right(range(len(records) // 4), node, key=lambda i: records[4 * i + 1])

    def _last_to_reach(self, node: int) -> int:
        """How many records can pass a node's gradient on: up to its own, or to its scan's end."""
        end = self._records_until(node)
        if PREVIOUS in self._loaded[FORWARD]:
            codes = self._record_rows()[end:, 0] & OPCODE
            marks = np.flatnonzero((codes == PREVIOUS) | (codes == CARRY))
            if marks.size and codes[marks[0]] == CARRY:
                return end + int(marks[0]) + 1
        return end

    def _compute_anew(self, leaf: int) -> None:
        """Take for computed only what cannot depend on a leaf: what was recorded before it."""
        first = 0 if PREVIOUS in self._loaded[FORWARD] else self._records_until(leaf)
        self._evaluated = min(self._evaluated, first)

    def _evaluate(self) -> None:
        """Compute the records that have not been computed yet."""
        count = len(self._records) // 4
        if self._evaluated == count:
            return
        ready = self._ready
        if ready[FORWARD] == count - 1 and self._records[-4] in self._loaded[FORWARD]:
            ready[FORWARD] = count
        elif ready[FORWARD] != count:
            self._load(FORWARD)
        self._sweep(FORWARD, self._evaluated, count)
        self._evaluated = count

    def _often_used(self) -> OftenUsed:
        """The nodes whose gradients have too many terms for this tape's floats."""
        count = len(self._records) // 4
        if self.dtype == np.float64 or count < OFTEN or PREVIOUS in self._loaded[FORWARD]:
            return NEVER
        at = (self.generation.number, count)
        if self._often[0] != at:
            operands = _integers_of(self._operands)
            found = often_used(self._record_rows(), operands, self._size, self._shapes)
            self._often = (at, found)
        return self._often[1]

    def _sweep(self, direction: int, begin: int, end: int) -> None:
        block, rows = 0, 0
        if self._batch is not None:
            _, block, _, rows = self._batch_range()
        sweep = self._sweeps.get(direction)
        if sweep is None:
            sweep = self._sweeps[direction] = compiled_sweep(direction, self.dtype)
        sweep(
            self.kernels,
            self.values,
            self.grads,
            self._records.buffer_info(),
            self._operands.buffer_info(),
            self._inputs.buffer_info(),
            begin,
            end,
            block,
            rows,
        )

    def _load(self, direction: int) -> None:
        """Have the kernels of all records ready to be called."""
        count, first, loaded = (
            len(self._records) // 4,
            self._ready[direction],
            self._loaded[direction],
        )
        if first == count:
            return
        codes = self._records[4 * first :: 4]
        # NumPy is quicker at many of them.
        if len(codes) < FEW:
            used = {code & OPCODE for code in codes}
        else:
            used = set(np.flatnonzero(np.bincount(np.asarray(codes) & OPCODE)).tolist())
        if not used <= loaded:
            load_kernels(
                self.kernels, self.dtype, kernels_of(self._record_rows()[first:]), direction
            )
            loaded.update(used)
        self._ready[direction] = count

    @alone
    def view(self, node: Array) -> Floats:
        """The values of an array where they lie, (rows, width), read-only: see `set_value`.

        Until the tape grows: from then on it is a view of what the tape has left.
        """
        self._array(node)
        view = self._view(self.values, self._any(node))
        view.setflags(write=False)
        return view

    def _read(self, source: Floats, node: int) -> float | Floats:
        if node in self._shapes:
            copy = self._view(source, node).copy()
            copy.setflags(write=False)
            return copy
        return float(source.item(node))


def _integers_of(numbers: "array[int]") -> Ids:
    return np.frombuffer(numbers, np.int64) if numbers else np.zeros(0, np.int64)
