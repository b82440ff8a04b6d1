"""A network recorded as arrays, over all the rows of a batch."""

from functools import reduce

from tapegpt.recorders import EPSILON
from tapegpt.tape import Batch, Tape


class Vector:
    """Rows of a batch as array nodes."""

    def __init__(self, tape: Tape, weights: dict[str, int], batch: Batch) -> None:
        self.prefix = ""
        self._tape = tape
        self._weights = weights
        self._batch = batch
        self._rotary: dict[int, tuple[int, int]] = {}  # tables by numbers of heads

    def embed(self, tokens: str, positions: str | None, *earlier: str) -> int:
        pairs = [(self._weight(tokens), self._batch.tokens)]
        if positions is not None:
            pairs.append((self._weight(positions), self._batch.positions))
        pairs += zip(map(self._weight, earlier), self._batch.earlier, strict=True)
        return self._tape.embed(*pairs)

    def embed_token(self, table: str) -> int:
        return self._tape.embed((self._weight(table), self._batch.tokens))

    def embed_position(self, table: str) -> int:
        return self._tape.embed((self._weight(table), self._batch.positions))

    def linear(self, x: int, weights: str, plus: int | None = None, dropout: float = 0.0) -> int:
        if dropout == 0:
            return self._tape.linear(x, self._weight(weights), plus)
        y = self._tape.linear(x, self._weight(weights))
        return self._tape.dropout(y, dropout, self._batch.key, plus)

    def rmsnorm(self, x: int) -> int:
        return self._tape.rmsnorm(x, EPSILON)

    def head_norm(self, x: int, n_head: int, gain: float) -> int:
        return self._tape.head_norm(x, n_head, gain, EPSILON)

    def rotary(self, x: int, n_head: int) -> int:
        if n_head not in self._rotary:
            _, width = self._tape.shape(x)
            self._rotary[n_head] = self._tape.rotary_tables(self._batch.block, width, n_head)
        return self._tape.rotary(x, self._batch.positions, self._rotary[n_head])

    def relu(self, x: int) -> int:
        return self._tape.relu(x)

    def relu_squared(self, x: int) -> int:
        return self._tape.relu_squared(x)

    def gelu(self, x: int) -> int:
        return self._tape.gelu(x)

    def swiglu(self, x: int, gate: int) -> int:
        return self._tape.swiglu(x, gate)

    def softcap(self, x: int, cap: float) -> int:
        return self._tape.softcap(x, cap)

    def add(self, x: int, y: int) -> int:
        return self._tape.add(x, y)

    def attention(self, q: int, k: int, v: int, n_head: int, layer: int) -> int:
        return self._tape.attention(q, k, v, n_head)

    def previous(self, width: int) -> int:
        return self._tape.previous(width)

    def carry(self, x: int) -> int:
        return self._tape.carry(x)

    def sparse_linear(self, x: int, weights: str, k: int, plus: int) -> int:
        return self._tape.gathered_linear(x, self._tape.topk(x, k), self._weight(weights), plus)

    def average(self, rows: list[int]) -> int:
        """The mean of arrays."""
        return self._tape.scale(reduce(self._tape.add, rows), 1 / len(rows))

    def cross_entropy(self, logits: int) -> int:
        """The loss of the batch."""
        return self._tape.cross_entropy(logits, self._batch.targets)

    def _weight(self, name: str) -> int:
        return self._weights[self.prefix + name]
