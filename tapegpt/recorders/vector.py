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

    def embed(self, tokens: str, positions: str, *earlier: str) -> int:
        return self._tape.embed(
            (self._weight(tokens), self._batch.tokens),
            (self._weight(positions), self._batch.positions),
            *zip(map(self._weight, earlier), self._batch.earlier, strict=True),
        )

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

    def relu(self, x: int) -> int:
        return self._tape.relu(x)

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
