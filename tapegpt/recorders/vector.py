"""A network recorded as arrays, over all the rows of a batch."""

from collections.abc import Callable
from functools import reduce

from tapegpt.counting.table import CountTable
from tapegpt.kernels.ops.counting.features import UNIT
from tapegpt.models.layer_builder import OwnOperation
from tapegpt.recorders import EPSILON
from tapegpt.recorders.documents import Documents
from tapegpt.renamed import renamed_argument
from tapegpt.tape import Array, Scalar, Tape


class Vector:
    """Rows of a batch as array nodes."""

    def __init__(
        self,
        tape: Tape,
        weights: dict[str, Array],
        documents: Documents,
        table: CountTable | None = None,
    ) -> None:
        self.prefix = ""
        self._tape = tape
        self._weights = weights
        self._documents = documents
        self._table = table
        self._counted: Array | None = None  # what it says
        self._rotary: dict[int, tuple[Array, Array]] = {}  # tables by numbers of heads

    def embed(self, tokens: str, positions: str | None, *earlier: str) -> Array:
        pairs = [(self._weight(tokens), self._documents.tokens)]
        if positions is not None:
            pairs.append((self._weight(positions), self._documents.positions))
        pairs += zip(map(self._weight, earlier), self._documents.earlier, strict=True)
        return self._tape.embed(*pairs)

    def embed_token(self, table: str) -> Array:
        return self._tape.embed((self._weight(table), self._documents.tokens))

    def embed_position(self, table: str) -> Array:
        return self._tape.embed((self._weight(table), self._documents.positions))

    @renamed_argument("plus", "residual")
    def linear(
        self, x: Array, weights: str, residual: Array | None = None, dropout: float = 0.0
    ) -> Array:
        if dropout == 0:
            return self._tape.linear(x, self._weight(weights), residual)
        y = self._tape.linear(x, self._weight(weights))
        return self._tape.dropout(y, dropout, self._documents.key, residual)

    def rmsnorm(self, x: Array) -> Array:
        return self._tape.rmsnorm(x, EPSILON)

    def head_norm(self, x: Array, n_head: int, gain: float) -> Array:
        return self._tape.head_norm(x, n_head, gain, EPSILON)

    def rotary(self, x: Array, n_head: int) -> Array:
        if n_head not in self._rotary:
            _, width = self._tape.shape(x)
            self._rotary[n_head] = self._tape.rotary_tables(
                self._documents.batch.positions, width, n_head
            )
        return self._tape.rotary(x, self._documents.positions, self._rotary[n_head])

    def relu(self, x: Array) -> Array:
        return self._tape.relu(x)

    def relu_squared(self, x: Array) -> Array:
        return self._tape.relu_squared(x)

    def gelu(self, x: Array) -> Array:
        return self._tape.gelu(x)

    def swiglu(self, x: Array, gate: Array) -> Array:
        return self._tape.swiglu(x, gate)

    def softcap(self, x: Array, cap: float) -> Array:
        return self._tape.softcap(x, cap)

    def counted_input(self, x: Array, weights: str) -> Array:
        return self._tape.linear(self._features(), self._weight(weights), x)

    def counted_gate(self, logits: Array, x: Array, gate: str, bias: str) -> Array:
        gates = self._tape.linear(x, self._weight(gate))
        features = self._features()
        return self._tape.gated_sum(logits, gates, self._weight(bias), features, 1 / UNIT)

    def _features(self) -> Array:
        if self._counted is None:
            assert self._table is not None  # of a network whose settings say counting
            self._counted = self._tape.counted_features(
                self._table, self._documents.history, self._documents.folds
            )
        return self._counted

    def add(self, x: Array, y: Array) -> Array:
        return self._tape.add(x, y)

    def apply(self, operation: OwnOperation, *x: Array) -> Array:
        result: Array = operation(self._tape, *x)
        return result

    def attention(self, q: Array, k: Array, v: Array, n_head: int, layer: int) -> Array:
        return self._tape.attention(q, k, v, n_head)

    def scan(self, step: Callable[[Array], Array], width: int) -> Array:
        return self._tape.scan(step, width)

    @renamed_argument("plus", "residual")
    def sparse_linear(self, x: Array, weights: str, k: int, residual: Array) -> Array:
        return self._tape.sparse_linear(x, self._tape.topk(x, k), self._weight(weights), residual)

    def average(self, rows: list[Array]) -> Array:
        """The mean of arrays."""
        return self._tape.scale(reduce(self._tape.add, rows), 1 / len(rows))

    def cross_entropy(self, logits: Array) -> Scalar:
        """The loss of the batch."""
        return self._tape.cross_entropy(logits, self._documents.targets)

    def _weight(self, name: str) -> Array:
        return self._weights[self.prefix + name]
