"""The words that a network is written in; a granularity says what each of them records."""

from typing import Protocol, TypeVar

X = TypeVar("X")


class Vocabulary(Protocol[X]):
    """What a network can be made of. X is a granularity's idea of a row of numbers, or of rows.

    Weights go by their names in `parameter_shapes`.
    """

    def embed(self, tokens: str, positions: str) -> X:
        """The token's row of one table plus the position's row of the other."""

    def linear(self, x: X, weights: str, plus: X | None = None) -> X:
        """plus + W x"""

    def rmsnorm(self, x: X) -> X:
        """x / sqrt(mean(x^2) + 1e-5)"""

    def relu(self, x: X) -> X:
        """max(0, x)"""

    def attention(self, q: X, k: X, v: X, n_head: int, layer: int) -> X:
        """Causal self-attention over this position and the earlier ones of the same layer."""
