"""A network recorded as scalars: one document is unrolled, position after position.

A row is an array of node ids. Independent operations are recorded next to each other, as processors
like them. A product and the sum that it goes into are one node.
The order in which each single sum is taken is microgpt's.
"""

from collections.abc import Callable
from functools import cache, reduce

import numpy as np
from numpy.typing import NDArray

from tapegpt import tape as tapes
from tapegpt.kernels.ops.activation.gelu import CUBIC, LINEAR
from tapegpt.models.layer_builder import OwnOperation
from tapegpt.recorders import EPSILON
from tapegpt.recorders.documents import Documents
from tapegpt.renamed import renamed_argument
from tapegpt.tape import Input, Tape
from tapegpt.tape.block import ROTARY_BASE

Row = NDArray[np.int64]


@cache
def wavefront(rows: int, columns: int) -> tuple[Row, Row]:
    """The places of a matrix, row and column, by their distance from its first corner.

    Neighbours in this order differ in both: neither their sums nor their gradients wait for each
    other. The last column comes last, side by side.
    """
    row, column = np.indices((rows, columns)).reshape(2, -1)
    order = np.argsort(np.where(column < columns - 1, row + column, rows + columns), kind="stable")
    return row[order], column[order]


class Scalar:
    """One position of one document as an array of scalar node ids; `position` says which."""

    def __init__(self, tape: Tape, weights: dict[str, Row], documents: Documents) -> None:
        self.position = 0
        self.prefix = ""
        self._tape = tape
        self._weights = weights
        self._documents = documents
        self._keys: dict[str, list[Row]] = {}
        self._values: dict[str, list[Row]] = {}
        self._carried: Row | None = None

    def embed(self, tokens: str, positions: str | None, *earlier: str) -> Row:
        x = self.embed_token(tokens)
        if positions is not None:
            x = self.add(x, self.embed_position(positions))
        for table, which in zip(earlier, self._documents.earlier, strict=True):
            x = self.add(x, self._lookup(table, which))
        return x

    def embed_token(self, table: str) -> Row:
        return self._lookup(table, self._documents.tokens)

    def embed_position(self, table: str) -> Row:
        row: Row = self._weight(table)[self.position]
        return row

    @renamed_argument("plus", "residual")
    def linear(
        self, x: Row, weights: str, residual: Row | None = None, dropout: float = 0.0
    ) -> Row:
        if dropout > 0:
            raise ValueError("dropout wants array nodes")  # which `configure` makes sure of
        w = self._weight(weights)
        result = self.dot(w, np.broadcast_to(x, w.shape))
        return result if residual is None else self.add(result, residual)

    def rmsnorm(self, x: Row) -> Row:
        squares = self.dot(x[None], x[None])
        mean = self._scale(squares, len(x) ** -1)
        shifted = self.each("add", mean, self._constants(EPSILON, mean))
        scale = self.each("pow", shifted, self._constants(-0.5, mean))
        return self.each("mul", x, np.broadcast_to(scale, x.shape))

    def head_norm(self, x: Row, n_head: int, gain: float) -> Row:
        heads = [self._scale(self.rmsnorm(head), gain) for head in np.split(x, n_head)]
        return np.concatenate(heads)

    def rotary(self, x: Row, n_head: int) -> Row:
        pairs = len(x) // n_head // 2
        angles = self.position * ROTARY_BASE ** (-np.arange(pairs) / pairs)
        cosines, sines = (
            np.tile([self._tape.constant(number).id for number in numbers], n_head)
            for numbers in (np.cos(angles), np.sin(angles))
        )
        first, second = x[::2], x[1::2]
        turned = (
            self.each("sub", self.each("scale", first, cosines), self.each("scale", second, sines)),
            self.each("add", self.each("scale", first, sines), self.each("scale", second, cosines)),
        )
        return np.stack(turned, axis=1).ravel()

    def relu(self, x: Row) -> Row:
        return self.each("relu", x)

    def relu_squared(self, x: Row) -> Row:
        positive = self.relu(x)
        return self.each("mul", positive, positive)

    def gelu(self, x: Row) -> Row:
        cube = self.each("mul", self.each("mul", x, x), x)
        half = self.add(self._scale(x, LINEAR / 2), self._scale(cube, CUBIC / 2))
        return self.each("mul", x, self._share(half))

    def swiglu(self, x: Row, gate: Row) -> Row:
        return self.each("mul", x, self.each("mul", gate, self._share(self._scale(gate, 0.5))))

    def counted_input(self, x: Row, weights: str) -> Row:
        raise ValueError("counts want array nodes")  # which settings make sure of

    def counted_gate(self, logits: Row, x: Row, gate: str, bias: str) -> Row:
        raise ValueError("counts want array nodes")

    def softcap(self, x: Row, cap: float) -> Row:
        return self._scale(self.each("tanh", self._scale(x, 1 / cap)), cap)

    def add(self, x: Row, y: Row) -> Row:
        return self.each("add", x, y)

    def apply(self, operation: OwnOperation, *x: Row) -> Row:
        results = [
            operation(self._tape, *nodes) for nodes in zip(*map(np.ndarray.tolist, x), strict=True)
        ]
        return np.array([self._tape._scalar(result) for result in results])

    def attention(self, q: Row, k: Row, v: Row, n_head: int, layer: int) -> Row:
        name = f"{self.prefix}{layer}"
        keys, values = self._keys.setdefault(name, []), self._values.setdefault(name, [])
        keys.append(k)
        values.append(v)
        head_dim = len(q) // n_head
        # (heads, positions, head_dim), then (heads, head_dim, positions)
        k_all = np.stack(keys).reshape(-1, n_head, head_dim).swapaxes(0, 1)
        v_all = np.stack(values).reshape(-1, n_head, head_dim).transpose(1, 2, 0)
        q_all = np.broadcast_to(q.reshape(n_head, 1, head_dim), k_all.shape)
        scores = self.dot(q_all.reshape(-1, head_dim), k_all.reshape(-1, head_dim))
        scores = self._scale(scores, (head_dim**0.5) ** -1).reshape(n_head, -1)
        weights = self.softmax(scores)
        weights_all = np.broadcast_to(weights[:, None, :], v_all.shape)
        count = len(keys)
        return self.dot(weights_all.reshape(-1, count), v_all.reshape(-1, count))

    def scan(self, step: Callable[[Row], Row], width: int) -> Row:
        before = self._carried
        self._carried = step(self._tape.variables(np.zeros(width)) if before is None else before)
        return self._carried

    @renamed_argument("plus", "residual")
    def sparse_linear(self, x: Row, weights: str, k: int, residual: Row) -> Row:
        w, which = self._weight(weights), self._tape.topk(x, k)
        chosen = np.concatenate([self._tape.take(x[:1], which, j, 1) for j in range(k)])
        rows = np.stack([self._tape.take(w[0], which, j, w.shape[1]) for j in range(k)])
        products = self.dot(rows.T, np.broadcast_to(chosen, rows.T.shape))
        return self.add(products, residual)

    def average(self, rows: list[Row]) -> Row:
        """The mean of rows."""
        return self._scale(reduce(self.add, rows), 1 / len(rows))

    def softmax(self, x: Row) -> Row:
        """e^x / sum(e^x) for every row of x."""
        largest = self.each("detach", self.max(x))
        exps = self.each("sub", x, np.broadcast_to(largest[:, None], x.shape))
        exps = self.each("exp", exps)
        return self.each("div", exps, np.broadcast_to(self.sum(exps)[:, None], x.shape))

    def cross_entropy(self, logits: Row) -> tapes.Scalar:
        """The loss at this position."""
        probabilities = self.softmax(logits[None])[0]
        target = self._tape.take(probabilities[:1], self._documents.targets, self.position, 1)
        return self._tape.node(int(self.each("neg", self.each("log", target))[0]))

    def each(self, name: str, a: Row, b: Row | None = None) -> Row:
        """One operation on every node of a, and the same of b."""
        return self._tape.elementwise(name, a, b, separate=True)

    def dot(self, a: Row, b: Row) -> Row:
        """The sum of the products of every row of a with the same row of b, from left to right."""
        first = self.each("mul", a[:, 0], b[:, 0])
        if a.shape[1] == 1:
            return first
        row, column = wavefront(len(a), a.shape[1] - 1)
        made = np.empty((len(a), a.shape[1]), np.int64)
        made[:, 0] = first
        made[row, column + 1] = len(self._tape) + np.arange(len(row))
        self._tape.multiply_adds(made[row, column], a[row, column + 1], b[row, column + 1])
        return made[:, -1]

    def sum(self, x: Row) -> Row:
        """The sum of every row of x, from left to right."""
        total = x[:, 0]
        for column in x.T[1:]:
            total = self.each("add", total, column)
        return total

    def max(self, x: Row) -> Row:
        """The largest of every row of x."""
        return np.array([self._tape.max(row).id for row in x])

    def _weight(self, name: str) -> Row:
        return self._weights[self.prefix + name]

    def _lookup(self, table: str, which: Input) -> Row:
        rows = self._weight(table)
        return self._tape.take(rows[0], which, self.position, rows.shape[1])

    def _share(self, half: Row) -> Row:
        """(1 + tanh(half)) / 2, which is 1 / (1 + e^(-2 half))"""
        tanh = self.each("tanh", half)
        return self._scale(self.add(tanh, self._constants(1.0, tanh)), 0.5)

    def _scale(self, x: Row, factor: float) -> Row:
        return self.each("scale", x, self._constants(factor, x))

    def _constants(self, value: float, like: Row) -> Row:
        return np.full(like.shape, self._tape.constant(value).id)


class Dot(Scalar):
    """As Scalar, with one record for a whole sum, and for nodes side by side."""

    def each(self, name: str, a: Row, b: Row | None = None) -> Row:
        return self._tape.elementwise(name, a, b)

    def dot(self, a: Row, b: Row) -> Row:
        return self._tape.dots(a, b)

    def sum(self, x: Row) -> Row:
        return self._tape.sums(x)
