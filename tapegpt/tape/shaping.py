"""The vocabulary for arrays as wholes: products, parts, sums over rows or columns."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, overload

from numpy.typing import ArrayLike

from tapegpt.kernels.layout import BATCH
from tapegpt.kernels.ops.array import array_product, reductions, shaping
from tapegpt.kernels.ops.elementwise import MEAN, UnaryArgs
from tapegpt.kernels.ops.product.matmul import matmul_room
from tapegpt.tape.guards import all_or_nothing
from tapegpt.tape.handles import Array, Node
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Ids, Input, Number, Shape, TapeError


class Shaping(Leaves):
    """Operations on arrays whose results have other shapes, and some that are made of several."""

    @all_or_nothing
    def matmul(self, x: Node, y: Node) -> Array:
        """x y, of matrices (rows, n) and (n, columns)."""
        (x, left), (y, right) = self._given(x), self._given(y)
        self._of_fixed_rows("matmul", y)
        if left.width != right.rows:
            raise TapeError(f"matmul: {self.shape(x)} and {self.shape(y)} do not match")
        rows, n_in, n_out = self._capacity(left.rows), left.width, right.width
        # Of x y, of dout y^T and of x^T dout.
        room = max(
            matmul_room(rows, n_in, n_out, self.lanes),
            matmul_room(rows, n_out, n_in, self.lanes),
            matmul_room(n_in, rows, n_out, self.lanes, transposed=True),
        )
        arguments = array_product.Args(left.rows, n_in, n_out, x, y, room=room)
        return self._record_array(
            array_product.MATMUL, Shape(left.rows, right.width, right.stride), arguments
        )

    @all_or_nothing
    def transpose(self, x: Node) -> Array:
        """x with rows as columns."""
        x, shape = self._given(x)
        self._of_fixed_rows("transpose", x)
        arguments = shaping.TransposeArgs(shape.width, shape.rows, x)
        result = Shape(shape.width, shape.rows, self._stride(shape.rows))
        return self._record_array(shaping.TRANSPOSE, result, arguments)

    @all_or_nothing
    def concatenate(self, arrays: Sequence[Node], axis: int = 0) -> Array:
        """Arrays below each other (axis 0), or side by side (axis 1)."""
        if not isinstance(arrays, (list, tuple)) or not arrays:
            raise TapeError(f"concatenate wants a list of arrays, not {arrays!r:.60}")
        axis = self._axis("concatenate", axis)
        first = self._array_handle(self._given(arrays[0])[0])
        return reduce(lambda x, y: self._join(x, y, axis), arrays[1:], first)

    def _join(self, x: Node, y: Node, axis: int) -> Array:
        (x, left), (y, right) = self._given(x), self._given(y)
        if axis == 0:
            self._of_fixed_rows("concatenate", x, y)
        if (left.width != right.width) if axis == 0 else (left.rows != right.rows):
            raise TapeError(f"concatenate: {self.shape(x)} and {self.shape(y)} do not match")
        rows = left.rows + right.rows if axis == 0 else left.rows
        width = left.width if axis == 0 else left.width + right.width
        above = left.rows if axis == 0 else 0
        arguments = shaping.JoinArgs(rows, width, x, left.width, above, y, right.width)
        return self._record_array(shaping.JOIN, Shape(rows, width, self._stride(width)), arguments)

    @all_or_nothing
    def _part(self, x: Node, part: Any) -> Array:
        x, shape = self._given(x)
        of_rows, of_columns = part if isinstance(part, tuple) else (part, slice(None))
        first, rows = 0, shape.rows
        if shape.rows != BATCH:
            first, rows = _bounds("row", of_rows, shape.rows)
        elif of_rows != slice(None):
            raise TapeError("a batch array is cut by columns, x[:, begin:end]")
        column, width = _bounds("column", of_columns, shape.width)
        x_rows = 0 if shape.rows == BATCH else shape.rows
        arguments = shaping.PartArgs(rows, width, x, shape.width, x_rows, first, column)
        return self._record_array(shaping.PART, Shape(rows, width, self._stride(width)), arguments)

    @all_or_nothing
    def _sum_array(self, x: Node, axis: int | None = None) -> Any:
        """The sum of all elements, or of every column (axis 0) or row (axis 1)."""
        x, shape = self._given(x)
        if axis is None:
            arguments = UnaryArgs(shape.rows, shape.width, x)
            return self._record_number(reductions.SUM, arguments)
        if self._axis("sum", axis) == 1:
            of_row = reductions.RowArgs(shape.rows, shape.width, x)
            return self._record_array(reductions.ROW_SUM, self._column(shape), of_row)
        of_column = reductions.ColumnArgs(shape.rows, shape.width, x, room=shape.stride)
        result = Shape(1, shape.width, shape.stride)
        return self._record_array(reductions.COLUMN_SUM, result, of_column)

    @all_or_nothing
    def _mean_array(self, x: Node, axis: int | None = None) -> Any:
        """The mean of all elements, or of every column (axis 0) or row (axis 1)."""
        x, shape = self._given(x)
        if axis is None:
            return self._record_number(MEAN, UnaryArgs(shape.rows, shape.width, x))
        if self._axis("mean", axis) == 0:
            self._of_fixed_rows("mean", x)
        count = shape.width if axis == 1 else shape.rows
        return self._sum_array(x, axis) * (1 / count)

    @all_or_nothing
    def _max_array(self, x: Node, axis: int) -> Array:
        """The largest of every column (axis 0) or row (axis 1); of equals the first."""
        x, shape = self._given(x)
        if self._axis("max", axis) == 0:
            return self._max_array(self.transpose(x), 1).T
        arguments = reductions.RowArgs(shape.rows, shape.width, x)
        return self._record_array(reductions.ROW_MAX, self._column(shape), arguments)

    @overload
    def take(self, x: Array | int, rows: Input | Iterable[int]) -> Array: ...
    @overload
    def take(self, x: ArrayLike, rows: Input, index: int, stride: int) -> Ids: ...
    def take(
        self, x: Any, rows: Any, index: int | None = None, stride: int | None = None
    ) -> Array | Ids:
        """Rows of x by their numbers, in that order, as often as they are named.

        Of scalar nodes: for every id in an array x, the node r `stride`s further on, where r is
        element `index` of an input, read whenever the record is replayed. It gives the new ids, in
        the shape of x. Consecutive ids take one record.
        """
        if index is None or stride is None:
            return self.embed((x, rows))  # type: ignore[attr-defined, no-any-return]
        return self._take_nodes(x, rows, index, stride)  # type: ignore[attr-defined, no-any-return]

    @all_or_nothing
    def log_softmax(self, x: Node) -> Array:
        """x - ln sum(e^x), row by row."""
        x, _ = self._given(x)
        largest: Array = self.detach(self._max_array(x, 1))  # type: ignore[attr-defined]
        below = self._array_handle(x) - largest
        total: Array = self._sum_array(below.exp(), 1)
        return below - total.log()

    @all_or_nothing
    def layernorm(
        self,
        x: Node,
        gain: Array | None = None,
        bias: Array | None = None,
        epsilon: Number = 1e-5,
    ) -> Array:
        """gain (x - mean) / sqrt(variance + epsilon) + bias, row by row. (Ba et al. 2016)

        gain, bias: (1, columns) each.
        """
        x, _ = self._given(x)
        mean: Array = self._mean_array(x, 1)
        y: Array = self.rmsnorm(self._array_handle(x) - mean, epsilon)  # type: ignore[attr-defined]
        y = y if gain is None else y * gain
        return y if bias is None else y + bias

    def _column(self, shape: Shape) -> Shape:
        return Shape(shape.rows, 1, self._stride(1))

    def _axis(self, operation: str, axis: int) -> int:
        if axis not in (0, 1, -1, -2) or isinstance(axis, bool):
            raise TapeError(f"{operation}: axis is 0 for columns or 1 for rows, not {axis!r:.60}")
        return axis % 2

    def _of_fixed_rows(self, operation: str, *nodes: int) -> None:
        for node in nodes:
            if self._shapes[node].rows == BATCH:
                raise TapeError(f"{operation}: node {node} is a batch array")


def _bounds(what: str, chosen: Any, count: int) -> tuple[int, int]:
    """The first of the rows or columns that are chosen, and how many."""
    try:
        if isinstance(chosen, slice):
            first, end, step = chosen.indices(count)
        else:
            first = range(count)[chosen]
            end, step = first + 1, 1
    except (TypeError, ValueError, IndexError):
        raise TapeError(f"{chosen!r:.60} is not a {what}, or a slice, of {count}") from None
    if step != 1 or end <= first:
        raise TapeError(f"{what}s are cut by slices of step 1, not {chosen!r:.60}")
    return first, end - first
