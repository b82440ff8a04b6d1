"""The two sweeps over what a tape has recorded, and the values and gradients they give."""

from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import typeof

from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.program import TapeArrays
from tapegpt.kernels.registry import kernels_of, load_kernels, new_table
from tapegpt.tape.storage import NO_BATCH, Memory, alone
from tapegpt.tape.types import Floats

RECORD = np.dtype((np.uint32, 4))
FEW = 256  # records


@cache
def compiled_sweep(direction: int, dtype: np.dtype[np.floating]) -> Callable[..., Any]:
    """The code of a sweep, called at once.

    Numba's dispatcher would find it by the types of all that it is given, anew at every call: nine
    tenths of what computing a single record takes.
    """
    floats, integers = np.zeros(1, dtype), np.zeros(1, np.int64)
    records = np.zeros((1, 4), np.uint32)
    arrays = TapeArrays(new_table(), floats, floats, records, integers, integers)
    signature = tuple(typeof(argument) for argument in (arrays, 0, 0, NO_BATCH))
    sweep: Any = (forward_sweep, reverse_sweep)[direction]
    sweep.compile(signature)
    entry: Callable[..., Any] = sweep.overloads[signature].entry_point
    return entry


class Replay(Memory):
    """Records are computed when somebody looks at a value: all that are waiting, in one call."""

    def value(self, node: int) -> float | Floats:
        """The value of a scalar, or a copy of an array's, (rows, width).

        The copy cannot be written to, because that would not change the tape: see `set_value`.
        """
        self._acquire()
        try:
            self._evaluate()
            return self._read(self.values, node)
        finally:
            self._release()

    @alone
    def grad(self, node: int) -> float | Floats:
        """The gradient of the last `backward`'s root with respect to a node, in its shape.

        That of an array is a copy that cannot be written to.
        """
        return self._read(self.grads, node)

    @alone
    def forward(self) -> None:
        """Compute every record again, after leaves or inputs have changed."""
        self._evaluated = 0
        self._evaluate()

    @alone
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
        sweep = compiled_sweep(BACKWARD, self.dtype)
        sweep(self._live_arrays(), 0, self._records_until(root), self._batch_range())

    @alone
    def replay_arrays(self) -> TapeArrays:
        """A copy of the program, for replay on this tape's values and gradients.

        Its kernels are those that the tape itself has needed so far, see kernels/registry.py.
        """
        live = self._live_arrays()
        return live._replace(
            records=live.records.copy(), operands=live.operands.copy(), inputs=live.inputs.copy()
        )

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
        sweep = compiled_sweep(FORWARD, self.dtype)
        sweep(self._live_arrays(), self._evaluated, count, self._batch_range())
        self._evaluated = count

    def _load(self, direction: int) -> None:
        """Have the kernels of all records ready to be called."""
        count, first = len(self._records) // 4, self._ready[direction]
        if first == count:
            return
        codes = self._records[4 * first :: 4]
        # NumPy is quicker at many of them.
        used = set(codes if len(codes) < FEW else np.flatnonzero(np.bincount(codes)).tolist())
        if not used <= self._loaded[direction]:
            load_kernels(
                self.kernels, self.dtype, kernels_of(self._live_arrays().records[first:]), direction
            )
            self._loaded[direction].update(used)
        self._ready[direction] = count

    def _live_arrays(self) -> TapeArrays:
        """The arrays where they lie. The tape cannot record while this is alive."""
        return TapeArrays(
            self.kernels,
            self.values,
            self.grads,
            np.frombuffer(self._records, RECORD),
            np.frombuffer(self._operands, np.int64),
            np.frombuffer(self._inputs, np.int64),
        )

    @alone
    def view(self, node: int) -> Floats:
        """The values of an array where they lie, (rows, width): writing there changes the tape.

        Until the tape grows: from then on it is a view of what the tape has left. Nothing computes
        anew before `forward`.
        """
        self._array(node)
        return self._view(self.values, self._any(node))

    def _read(self, source: Floats, node: int) -> float | Floats:
        plain = self._any(node)
        if plain in self._shapes:
            copy = self._view(source, plain).copy()
            copy.setflags(write=False)
            return copy
        return float(source.item(plain))
