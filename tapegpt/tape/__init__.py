"""The tape: record any graph of numbers and arrays, get its gradients.

    tape = Tape()
    a, b = tape.var(3.0), tape.var(2.0)
    c = tape.mul(a, b)
    d = tape.add(c, a)
    tape.backward(d)
    tape.value(d), tape.grad(a)  # 9.0, 3.0

Node ids are plain ints. An id that an array operation returned stands for the whole array.
`tape.node(id)` wraps an id in a handle with operators.

An operation is checked and recorded at once, and has been computed by the time anybody can look
at a value: records wait until then, and a run of them is computed in one call, which is what
makes recording cheap. The memory layout is drawn in kernels/layout.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from tapegpt.tape.arrays import ArrayOperations
from tapegpt.tape.block import BlockOperations
from tapegpt.tape.node import Node
from tapegpt.tape.recurrence import Recurrence
from tapegpt.tape.scalars import ScalarOperations
from tapegpt.tape.types import Batch, Input, Mark, Number, TapeError

if TYPE_CHECKING:
    from tapegpt.functions.row_function import RowFunction

__all__ = ["Batch", "Input", "Mark", "Node", "Tape", "TapeError"]


class Tape(ScalarOperations, ArrayOperations, BlockOperations, Recurrence):
    """An append-only tape of float32 or float64 nodes.

    Raises TapeError, a ValueError, for every misuse; the tape is then as it was before the call.
    """

    def node(self, node: int) -> Node:
        """A handle with operators for a scalar node."""
        return Node(self, self._scalar(node))

    def add(self, a: int, b: int) -> int:
        """a + b, of two scalars or of two arrays of one shape."""
        return self.add_arrays(a, b) if self._is_array(a) else super().add(a, b)

    def scale(self, a: int, factor: Number) -> int:
        """factor a, of a scalar or an array, for a number that is not a node."""
        return self.scale_array(a, factor) if self._is_array(a) else super().scale(a, factor)

    def relu(self, a: int) -> int:
        """max(0, a), of a scalar or an array."""
        return self.relu_array(a) if self._is_array(a) else super().relu(a)

    def function(
        self,
        inputs: ArrayLike,
        outputs: ArrayLike,
        dtype: str | None = None,
        threads: int = 1,
    ) -> RowFunction:
        """A recorded scalar graph as one compiled function of arrays, evaluated row by row.

            x, y = tape.node(tape.var(1.0)), tape.node(tape.var(2.0))
            f = tape.function([x, y], x * y + x)
            f(a, b)                  # a * b + a, for arrays of one shape
            f.value_and_grad(a, b)   # (a * b + a, (b + 1, a))

        inputs, outputs: scalar nodes, one or a list. Other leaves, and the choices of `lookup` and
        `largest`, are constants, as they are now. dtype: the tape's own, unless named. threads:
        how many share the rows. Raises TapeError where array operations lie between.
        """
        from tapegpt.functions.row_function import row_function

        return row_function(self, inputs, outputs, dtype, threads)
