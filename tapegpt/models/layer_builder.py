"""The layers that a network is made of; the recorder of a granularity says what each records."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

X = TypeVar("X")


class OwnOperation(Protocol):
    """What `tapegpt.elementwise` and `tapegpt.operation` make."""

    def __call__(self, *x: Any) -> Any:
        """Record it: a tape and nodes."""

    def width_of(self, *widths: int) -> int:
        """The columns of the result, from those of the operands."""


class LayerBuilder(Protocol[X]):
    """What a network can be made of. X is what a recorder has for a row of numbers, or for rows.

    Weights go by their names in `parameter_shapes`, after the prefix.
    """

    prefix: str

    def embed(self, tokens: str, positions: str | None, *earlier: str) -> X:
        """The token's row of a table plus the position's row of another, if there is one.

        earlier: tables for the token before, the one before that, ..., delimiters at the start.
        """

    def embed_token(self, table: str) -> X:
        """The token's row of a table."""

    def embed_position(self, table: str) -> X:
        """The position's row of a table."""

    def linear(self, x: X, weights: str, residual: X | None = None, dropout: float = 0.0) -> X:
        """residual + W x; of W x that share is left out at random in training."""

    def rmsnorm(self, x: X) -> X:
        """x / sqrt(mean(x^2) + 1e-5)"""

    def head_norm(self, x: X, n_head: int, gain: float) -> X:
        """gain x / sqrt(mean(x^2) + 1e-5), of every head by itself."""

    def rotary(self, x: X, n_head: int) -> X:
        """x, whose pairs of columns turn by angles that grow with the position."""

    def relu(self, x: X) -> X:
        """max(0, x)"""

    def relu_squared(self, x: X) -> X:
        """max(0, x)^2"""

    def gelu(self, x: X) -> X:
        """x times the share of the normal distribution below x, by tanh."""

    def swiglu(self, x: X, gate: X) -> X:
        """x gate / (1 + e^-gate)"""

    def softcap(self, x: X, cap: float) -> X:
        """cap tanh(x / cap)"""

    def counted_input(self, x: X, weights: str) -> X:
        """x + W f, where f is what counts say of the next token, see ops/counting/features.py."""

    def counted_gate(self, logits: X, x: X, gate: str, bias: str) -> X:
        """logits + log p_K + the sum over orders of (W x + bias)_k log p_k, those of the counts."""

    def add(self, x: X, y: X) -> X:
        """x + y"""

    def apply(self, operation: OwnOperation, *x: X) -> X:
        """An operation of one's own; where scalars are recorded, an elementwise one."""

    def attention(self, q: X, k: X, v: X, n_head: int, layer: int) -> X:
        """Causal self-attention over this position and the earlier ones of the same layer."""

    def scan(self, step: Callable[[X], X], width: int) -> X:
        """step(what it gave at the position before; zeros at the first): a state of this width."""

    def sparse_linear(self, x: X, weights: str, k: int, residual: X) -> X:
        """residual + the sum of x[i] W[i] over the k largest coordinates of x, of equals the first.

        W has a row for every coordinate.
        """
