"""The vocabulary for array nodes."""

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from tapegpt.kernels.compile.cpu import MATRIX_UNIT
from tapegpt.kernels.layout import BATCH, NONE
from tapegpt.kernels.ops import (
    attention,
    cross_entropy,
    dropout,
    elementwise,
    embedding,
    linear,
    rmsnorm,
    softmax,
    streaming_attention,
    topk,
)
from tapegpt.kernels.ops.product.amx import AMX_LEAST, amx_room
from tapegpt.kernels.ops.product.lane_batching import LANE_COLUMNS
from tapegpt.kernels.ops.product.matmul import matmul_room
from tapegpt.renamed import renamed_argument
from tapegpt.tape.bulk import HANDLES
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import Array, Node, Scalar
from tapegpt.tape.shaping import Shaping
from tapegpt.tape.types import Input, Number, Shape, TapeError


class ArrayOperations(Shaping):
    """Operations on arrays of rows; a result's rows are its operands'."""

    @all_or_nothing
    def embed(self, *tables: tuple[Node, Input | Iterable[int]]) -> Array:
        """The sum of one row out of each table: (table, row numbers) pairs; (rows, width)."""
        if not tables:
            raise TapeError("embed wants at least one table")
        found = []
        for pair in tables:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TapeError(f"embed wants (table, row numbers) pairs, not {pair!r:.60}")
            (table, shape), which = self._given(pair[0]), pair[1]
            if shape.rows == BATCH:
                raise TapeError(f"node {table} is a batch array, not a table")
            found.append((table, shape, self._as_input(which, shape.rows)))
        width, count = found[0][1].width, found[0][2].count
        if any(shape.width != width or which.count != count for _, shape, which in found):
            raise TapeError("embed wants tables of one width and as many row numbers for each")
        pairs = [number for table, _, which in found for number in (table, which.slot)]
        arguments = embedding.Args(count, width, len(found), pairs)
        return self._record_array(embedding.EMBED, self._shape(count, width), arguments)

    @renamed_argument("plus", "residual")
    @all_or_nothing
    def linear(self, x: Node, w: Node, residual: Node | None = None) -> Array:
        """residual + x W^T for x (rows, n_in), W (n_out, n_in) and residual (rows, n_out)."""
        (x, shape), (w, weights) = self._given(x), self._given(w)
        rows, n_in = shape.rows, shape.width
        n_out = weights.rows
        if n_out == BATCH:
            raise TapeError(f"linear: node {w} is a batch array, not weights")
        if weights.width != n_in:
            raise TapeError(
                f"linear: x has {n_in} columns, W {weights.width}: they must be the same"
            )
        start = self._residual("linear", residual, rows, n_out)
        variant, capacity = 0, self._capacity(rows)
        # Of x W^T, of dout W and of dout^T x.
        room = max(
            matmul_room(capacity, n_in, n_out, self.lanes),
            matmul_room(capacity, n_out, n_in, self.lanes),
            matmul_room(n_out, capacity, n_in, self.lanes, transposed=True),
        )
        if MATRIX_UNIT and self.dtype == np.float32 and min(capacity, n_in, n_out) >= AMX_LEAST:
            variant = 1
            products = (capacity, n_in), (capacity, n_out), (n_out, capacity)
            room = max(room, *(amx_room(*product) for product in products))
        arguments = linear.Args(rows, n_in, n_out, x, w=w, start=start, room=room)
        return self._record_array(linear.LINEAR, self._shape(rows, n_out), arguments, variant)

    @all_or_nothing
    def rmsnorm(self, x: Node, epsilon: float = 1e-5) -> Array:
        """x / sqrt(mean(x^2) + epsilon), row by row."""
        x, shape = self._given(x)
        constant, scales = self.constant(epsilon), self._capacity(shape.rows)
        arguments = rmsnorm.Args(shape.rows, shape.width, x, constant.id, inv_rms=scales)
        return self._record_array(rmsnorm.RMSNORM, shape, arguments)

    @all_or_nothing
    def attention(self, q: Node, k: Node, v: Node, n_head: int) -> Array:
        """Causal self-attention with n_head heads; rows are one sequence, or the batch's."""
        (q, shape), (k, of_keys), (v, of_values) = map(self._given, (q, k, v))
        for other in (of_keys, of_values):
            if other != shape:
                raise TapeError("attention wants q, k and v of one shape")
        n_head = self._count(n_head, "heads")
        if shape.width % n_head:
            raise TapeError(f"attention: {shape.width} columns are not divisible by {n_head} heads")
        if shape.rows == BATCH:
            sequences, block, starts, _ = self._declared_batch
        else:
            sequences, block = 1, shape.rows
            starts = self.input(range(shape.rows + 1), shape.rows + 1).slot
        head_dim = shape.width // n_head
        if streaming_attention.pays(sequences * n_head, block, head_dim, self.lanes):
            return self._streaming_attention(shape, (q, k, v), n_head, (sequences, block), starts)
        # Squares of a power of two of columns; whole, where no vector of a row is shared.
        size = min(self.lanes, 1 << (head_dim - 1).bit_length())
        whole = head_dim % self.lanes == 0 or (head_dim == size and shape.width % self.lanes == 0)
        columns, positions = (-(-n // LANE_COLUMNS) * LANE_COLUMNS for n in (head_dim, block))
        stride, span = columns * self.lanes, positions * self.lanes
        rows = -(-sequences * n_head // self.lanes) * positions
        offsets = [
            sequence * shape.stride + head * head_dim
            for sequence in range(sequences)
            for head in range(n_head)
        ]
        arguments = attention.Args(
            shape.rows,
            n_head,
            head_dim,
            q,
            k,
            v,
            starts,
            block,
            int(whole),
            q_lanes=rows * stride,
            k_lanes=rows * stride,
            v_lanes=rows * stride,
            probabilities=rows * span,
            out_lanes=positions * stride,
            given_row=shape.stride,
            problems=len(offsets),
            offsets=(*offsets, *offsets),
        )
        return self._record_array(attention.ATTENTION, shape, arguments, size.bit_length() - 1)

    def _streaming_attention(
        self,
        shape: Shape,
        given: tuple[int, int, int],
        n_head: int,
        sequences: tuple[int, int],
        starts: int,
    ) -> Array:
        """Attention head by head; sequences: how many, of how many positions at most."""
        (count, block), head_dim = sequences, shape.width // n_head
        arguments = streaming_attention.Args(
            shape.rows,
            n_head,
            head_dim,
            *given,
            starts,
            block,
            given_row=shape.stride,
            made_row=shape.stride,
            **streaming_attention.rooms(count * n_head, block, head_dim, self.lanes),
        )
        return self._record_array(streaming_attention.STREAMING_ATTENTION, shape, arguments)

    @all_or_nothing
    def cross_entropy(self, logits: Node, targets: Input | Iterable[int]) -> Scalar:
        """The mean over rows of ln sum(e^logits) - logits[target]; a batch weighs its rows."""
        logits, shape = self._given(logits)
        which = self._as_input(targets, shape.width)
        if which.count != shape.rows:
            raise TapeError(f"cross_entropy: {shape.rows} rows, but {which.count} targets")
        if shape.rows == BATCH:
            weights = self._declared_batch.weights
        else:
            weights = self._auxiliary(shape.rows + self.lanes)
            self.values[weights : weights + shape.rows] = 1 / shape.rows
        capacity = self._capacity(shape.rows)
        arguments = cross_entropy.Args(
            shape.rows,
            shape.width,
            logits,
            which.slot,
            weights,
            exponentials=capacity * shape.stride,
            totals=capacity + self.lanes,
            margins=capacity + self.lanes,
        )
        return self._record_number(cross_entropy.CROSS_ENTROPY, arguments)

    @all_or_nothing
    def topk(self, x: Node | ArrayLike, k: int) -> Input:
        """In which columns of every row its k largest elements stand, from left to right.

        x: an array; or consecutive ids of scalar nodes, which are one row, for `take`. Of equals
        the first count. Chosen anew whenever the record is replayed.
        """
        if not isinstance(x, HANDLES):
            return self._topk_nodes(x, k)  # type: ignore[attr-defined, no-any-return]
        (x, shape), k = self._given(x), self._count(k, "columns")
        if k > shape.width:
            raise TapeError(f"topk: x has {shape.width} columns, fewer than {k}")
        numbers = array("q", [0]) * (self._capacity(shape.rows) * k)
        which = self._new_input(numbers, shape.rows, shape.width, k)
        room = self._auxiliary(shape.stride)
        arguments = topk.TopkArgs(shape.rows, shape.width, x, k, which.slot)
        self._append(topk.TOPK, room, arguments)
        return which

    @renamed_argument("plus", "residual")
    @alone
    def sparse_linear(self, x: Node, which: Input, w: Node, residual: Node | None = None) -> Array:
        """residual + x W for x (rows, n_in), whose columns `which` count alone, W (n_in, n_out).

        which: for each row as many columns of its own, as `topk` gives them; work and memory
        traffic grow with their number, not with n_in.
        """
        (x, shape), (w, weights) = self._given(x), self._given(w)
        n_in, n_out = weights.rows, weights.width
        if n_in != shape.width:
            raise TapeError(
                f"sparse_linear: x has {shape.width} columns, W {n_in} rows: they must agree"
            )
        if self._known(which).count != shape.rows or which.below > n_in:
            raise TapeError(f"sparse_linear: {which} does not choose from columns of x")
        start = self._residual("sparse_linear", residual, shape.rows, n_out)
        arguments = topk.SparseArgs(shape.rows, n_in, n_out, x, w, which.width, which.slot, start)
        result = self._shape(shape.rows, n_out)
        return self._record_array(topk.SPARSE_LINEAR, result, arguments)

    @renamed_argument("plus", "residual")
    @all_or_nothing
    def dropout(self, x: Node, rate: float, key: Input, residual: Node | None = None) -> Array:
        """residual + x with a random share of its elements left out and the rest made up for it.

        rate: that share, from 0 to below 1, in steps of 2^-32. The key, one number, chooses
        what is left out, anew for each record; 0 leaves nothing out. (Srivastava et al. 2014)
        """
        x, shape = self._given(x)
        if not isinstance(rate, Number) or not 0 <= rate < 1:
            raise TapeError(f"dropout leaves out a share from 0 to below 1, not {rate!r:.60}")
        if self._known(key).count * key.width != 1:
            raise TapeError(f"dropout wants a key of one number, not {key}")
        start = self._residual("dropout", residual, shape.rows, shape.width)
        kept = max(1, dropout.CHANCES - round(dropout.CHANCES * rate))
        number = len(self._records) // 4
        arguments = dropout.Args(shape.rows, shape.width, x, kept, key.slot, number, start)
        return self._record_array(dropout.DROPOUT, shape, arguments)

    @alone
    def _softmax_array(self, x: Node) -> Array:
        """e^x / sum(e^x), row by row."""
        x, shape = self._given(x)
        arguments = elementwise.UnaryArgs(shape.rows, shape.width, x)
        return self._record_array(softmax.SOFTMAX, shape, arguments)

    def _as_input(self, which: Input | Iterable[int], below: int) -> Input:
        if not isinstance(which, Input):
            return self.input(which, below)
        if self._known(which).below > below:
            raise TapeError(f"the input's numbers go up to {which.below - 1}, past {below - 1}")
        if which.width > 1:
            raise TapeError(f"{which} has more than one number a row")
        return which

    def _residual(self, operation: str, residual: Node | None, rows: int, width: int) -> int:
        """What is added to a result of this shape, or NONE."""
        if residual is None:
            return NONE
        node, shape = self._given(residual)
        if (shape.rows, shape.width) != (rows, width):
            raise TapeError(
                f"{operation}: residual must have the result's shape, not {self.shape(residual)}"
            )
        return node

    def _shape(self, rows: int, width: int) -> Shape:
        return Shape(rows, width, self._stride(width))
