"""The tape: record any graph of numbers and arrays, get its gradients.

    tape = Tape()
    a, b = tape.var(3.0), tape.var(2.0)
    c = tape.mul(a, b)
    d = tape.add(c, a)
    tape.backward(d)
    tape.value(d), tape.grad(a)  # 9.0, 3.0

Operations return handles, see handles.py; so many that each would cost more than its operation are
arrays of node ids instead, plain integers, which `tape.node` makes handles of.

An operation is checked and recorded at once, and has been computed by the time anybody can look
at a value: records wait until then, and a run of them is computed in one call, which is what
makes recording cheap. The memory layout is drawn in kernels/layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, overload

from tapegpt.optim.methods import Optimizers
from tapegpt.renamed import HidesOldNames, OldName
from tapegpt.tape.arrays import ArrayOperations
from tapegpt.tape.block import BlockOperations
from tapegpt.tape.counted import CountedOperations
from tapegpt.tape.derivatives import Derivatives
from tapegpt.tape.handles import Array, Node, Scalar
from tapegpt.tape.pointwise import Pointwise
from tapegpt.tape.recurrence import Recurrence
from tapegpt.tape.scalars import ScalarOperations
from tapegpt.tape.types import Batch, Ids, Input, Mark, TapeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapegpt.drawing.listing import Recorded
    from tapegpt.functions.row_function import RowFunction, SumFunction

__all__ = ["Array", "Batch", "Input", "Mark", "Scalar", "Tape", "TapeError"]


class Tape(
    Optimizers,
    Derivatives,
    Pointwise,
    ScalarOperations,
    ArrayOperations,
    BlockOperations,
    CountedOperations,
    Recurrence,
    metaclass=HidesOldNames,
):
    """An append-only tape of float32 or float64 nodes.

    Raises TapeError, a ValueError, for every misuse; the tape is then as it was before the call.
    """

    record = OldName("elementwise", lambda tape: partial(tape.elementwise, separate=True))
    runs = OldName("elementwise", lambda tape: tape.elementwise)
    softmax_of = OldName("softmax", lambda tape: tape._softmax_of)
    softmaxes = OldName("softmax", lambda tape: tape._softmax_rows)
    lookup = OldName("take", lambda tape: tape._take_nodes)
    largest = OldName("topk", lambda tape: tape._topk_nodes)
    gathered_linear = OldName("sparse_linear", lambda tape: tape.sparse_linear)
    previous = OldName("scan", lambda tape: tape._previous)
    carry = OldName("scan", lambda tape: tape._carry)
    replay_arrays = OldName("internal", lambda tape: tape._replay_arrays)
    stride = OldName("internal", lambda tape: tape._stride)
    declared_batch = OldName("internal", lambda tape: tape._declared_batch)
    end_parameters = OldName("internal", lambda tape: tape._end_parameters)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *dir(type(self))})

    @overload
    def node(self, node: Scalar | int) -> Scalar: ...
    @overload
    def node(self, node: Array) -> Array: ...
    def node(self, node: Node) -> Scalar | Array:
        """The handle of a node, such as one of the ids that `variables` returns."""
        plain = self._any(node)
        return self._array_handle(plain) if plain in self._shapes else self._scalar_handle(plain)

    @overload
    def function(  # type: ignore[overload-overlap]  # an array of one id is an index too
        self,
        inputs: Ids,
        outputs: Node | Sequence[Node] | Ids,
        dtype: str | None = None,
        threads: int = 1,
    ) -> RowFunction | SumFunction: ...
    @overload
    def function(
        self,
        inputs: Node | Sequence[Node],
        outputs: Node | Sequence[Node] | Ids,
        dtype: str | None = None,
        threads: int = 1,
    ) -> RowFunction: ...
    def function(
        self,
        inputs: Node | Sequence[Node] | Ids,
        outputs: Node | Sequence[Node] | Ids,
        dtype: str | None = None,
        threads: int = 1,
    ) -> RowFunction | SumFunction:
        """A recorded scalar graph as one compiled function of arrays, evaluated row by row.

            x, y = tape.var(1.0), tape.var(2.0)
            f = tape.function([x, y], x * y + x)
            f(a, b)                  # a * b + a, for arrays of one shape
            f.value_and_grad(a, b)   # (a * b + a, (b + 1, a))

        inputs, outputs: scalar nodes, one or a list. What does not depend on the inputs is a
        constant, as it is now: other leaves, the choices of `lookup` and `largest`, and what array
        operations give. dtype: the tape's own, unless named. threads: how many share the rows.

        Of more than a thousand inputs in an array of ids, as `variables` gives it, the output must
        be a sum of terms that are all alike; the function takes one array of all inputs.

        Raises TapeError for nodes that are no scalars, and for a graph too large to compile.
        """
        from tapegpt.functions.row_function import row_function

        return row_function(self, inputs, outputs, dtype, threads)

    def __repr__(self) -> str:
        count = len(self._replay_arrays().records)
        return f"Tape({self.dtype.name!r}, {len(self)} nodes, {count} records)"

    def records(self) -> Iterator[Recorded]:
        """The operations in order: each its name, its result, what it reads, its arguments."""
        from tapegpt.drawing import listing

        return listing.records(self)

    def listing(self) -> str:
        """A line for every operation, with its value; of very many, the first and the last."""
        from tapegpt.drawing import listing

        return listing.listing(self)

    def to_dot(self) -> str:
        """The graph in Graphviz's language, folded by operation where it has very many nodes."""
        from tapegpt.drawing.dot import dot_of
        from tapegpt.drawing.graph import graph_of

        return dot_of(graph_of(self))

    def _repr_svg_(self) -> str:
        """The graph as a picture, which notebooks show: each node with its value and gradient."""
        from tapegpt.drawing.graph import graph_of
        from tapegpt.drawing.svg import svg_of

        return svg_of(graph_of(self))
