"""What a network takes, counted by building its layers without recording them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.layout import stride
from tapegpt.kernels.ops import streaming_attention
from tapegpt.models.registry import MODELS, network_shapes, prefixes
from tapegpt.renamed import renamed_argument

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tapegpt.models.layer_builder import OwnOperation
    from tapegpt.models.model import Shapes
    from tapegpt.settings import ModelConfig

LANES = 16  # of a vector, at most
OWN_STEPS = 10  # about as many scalar operations has one of a user's own
TILE = 4  # positions and columns of heads go in whole tiles, see lane_batching.py


class Counter:
    """A layer builder that counts; what it has for a row is the row's width."""

    def __init__(self, shapes: Shapes) -> None:
        self.prefix = ""
        self.tables: set[str] = set()  # the weights whose rows are looked up
        self.outer: set[str] = set()  # those between arrays and what counts say
        self.products = 0  # of a weight and a number, at every position
        self.packed = 0  # nodes of packed weights, see kernels/ops/product/packed.py
        self.attended = 0  # columns of all attentions together
        self._of_positions = 0  # nodes of tables for each position of a block
        self._heads: list[tuple[int, int]] = []  # of every attention: how many, how wide
        self._arrays = 0  # nodes of arrays, at every position
        self._scalars = 0  # scalar nodes at every position, where sums of products are one node
        self._shapes = shapes

    def nodes(self, granularity: str, documents: int, block: int) -> int:
        """About as many as are recorded for a sweep over so many documents of `block` positions."""
        if granularity == "vector":
            attention = (_attention_nodes(*heads, documents, block) for heads in self._heads)
            tables = block * self._of_positions
            return documents * block * self._arrays + tables + sum(attention)
        position, pair = self._scalars, 5 * sum(count for count, _ in self._heads)
        if granularity == "scalar":  # one for a product and the sum that it goes into
            position += self.products
            pair += 2 * self.attended
        return block * position + block * (block + 1) // 2 * pair

    def embed(self, tokens: str, positions: str | None, *earlier: str) -> int:
        tables = (tokens, *earlier) if positions is None else (tokens, positions, *earlier)
        self._scalars += 2 * sum(map(self._look_up, tables))
        return self._layer(self._look_up(tokens))

    def embed_token(self, table: str) -> int:
        return self._layer(self._look_up(table))

    def embed_position(self, table: str) -> int:
        return self._layer(self._look_up(table))

    @renamed_argument("plus", "residual")
    def linear(
        self, x: int, weights: str, residual: int | None = None, dropout: float = 0.0
    ) -> int:
        outputs, inputs = self._shapes[weights]
        self.products += outputs * inputs
        self.packed += row_stride(inputs) * row_stride(outputs)
        return self._layer(outputs, scalars=1 + (residual is not None), arrays=1 + (dropout > 0))

    def rmsnorm(self, x: int) -> int:
        return self._layer(x, scalars=3)

    def head_norm(self, x: int, n_head: int, gain: float) -> int:
        return self._layer(x, scalars=4)

    def rotary(self, x: int, n_head: int) -> int:
        self._of_positions = 2 * row_stride(x)
        return self._layer(x, scalars=4)

    def relu(self, x: int) -> int:
        return self._layer(x)

    def relu_squared(self, x: int) -> int:
        return self._layer(x, scalars=2)

    def gelu(self, x: int) -> int:
        return self._layer(x, scalars=9)

    def swiglu(self, x: int, gate: int) -> int:
        return self._layer(x, scalars=6)

    def softcap(self, x: int, cap: float) -> int:
        return self._layer(x, scalars=3)

    def counted_input(self, x: int, weights: str) -> int:
        self.outer.add(weights)
        self._layer(self._shapes[weights][1])  # what counts say
        return self.linear(x, weights)

    def counted_gate(self, logits: int, x: int, gate: str, bias: str) -> int:
        self.outer |= {gate, bias}
        pieces = self.linear(x, gate)
        self.products += pieces * logits
        return self._layer(logits)

    def add(self, x: int, y: int) -> int:
        return self._layer(x)

    def apply(self, operation: OwnOperation, *x: int) -> int:
        return self._layer(operation.width_of(*x), scalars=OWN_STEPS)

    def attention(self, q: int, k: int, v: int, n_head: int, layer: int) -> int:
        self.attended += q
        self._heads.append((n_head, q // n_head))
        return self._layer(q, scalars=4)

    def scan(self, step: Callable[[int], int], width: int) -> int:
        return step(self._layer(width))

    @renamed_argument("plus", "residual")
    def sparse_linear(self, x: int, weights: str, k: int, residual: int) -> int:
        outputs = self._look_up(weights)
        self.products += k * outputs
        return self._layer(outputs, scalars=2 + k)

    def average(self, rows: list[int]) -> int:
        """The mean of arrays."""
        return self._layer(rows[0], scalars=len(rows), arrays=len(rows))

    def cross_entropy(self, logits: int) -> None:
        """The loss of the batch."""
        self._layer(logits, scalars=5)

    def _layer(self, width: int, scalars: int = 1, arrays: int = 1) -> int:
        """Count so many nodes for every column, and some that rows have beside their columns."""
        self._scalars += scalars * width + 4
        self._arrays += arrays * row_stride(width) + 2
        return width

    def _look_up(self, table: str) -> int:
        self.tables.add(table)
        return self._shapes[table][1]


def count_network(model: ModelConfig, vocab_size: int) -> Counter:
    """One network of a model, and its loss."""
    counter = Counter(network_shapes(model, vocab_size))
    counter.cross_entropy(MODELS[model.model].logits(counter, model))
    return counter


def count_mean(model: ModelConfig, vocab_size: int) -> Counter:
    """What the networks of an ensemble predict together, and its loss."""
    counter = Counter({})
    if model.ensemble > 1:
        counter.cross_entropy(counter.average([vocab_size] * model.ensemble))
    return counter


def tables(model: ModelConfig) -> set[str]:
    """The parameters whose rows are looked up."""
    names = count_network(model, vocab_size=1).tables
    return {prefix + name for prefix in prefixes(model) for name in names}


def outer_weights(model: ModelConfig) -> set[str]:
    """The parameters that stand between arrays of a network and what is none of it."""
    network = count_network(model, vocab_size=1)
    names = {*network.tables, *network.outer, MODELS[model.model].head}
    return {prefix + name for prefix in prefixes(model) for name in names}


def flops(model: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Floating-point operations to train on a position, and on a pair of it and an earlier one.

    Those that the model itself needs: of every product 2 forward and 4 backward, and of attention
    12 for every column of a pair. No padding, no copies, nothing of the norms, the loss or the
    optimizer.
    """
    network = count_network(model, vocab_size)
    return 6 * model.ensemble * network.products, 12 * model.ensemble * network.attended


def training_flops(model: ModelConfig, vocab_size: int, lengths: NDArray[np.int64]) -> int:
    """Floating-point operations to train on documents of so many positions each."""
    position, pair = flops(model, vocab_size)
    pairs = lengths * (lengths + 1) // 2
    return int(position * lengths.sum() + pair * pairs.sum())


def row_stride(width: int) -> int:
    """Nodes from one row of an array to the next, at most."""
    return max(stride(width, VECTOR_BYTES // itemsize) for itemsize in (4, 8))


def _attention_nodes(n_head: int, head_dim: int, documents: int, block: int) -> int:
    """What attention keeps of q, k, v: with its probabilities, a lane for a head of a document, or
    without them.
    """
    sizes = documents * n_head, block, head_dim, LANES
    if streaming_attention.pays(*sizes):
        return sum(streaming_attention.rooms(*sizes).values())
    lanes = -(-documents * n_head // LANES) * LANES
    rows, columns = (-(-n // TILE) * TILE for n in (block, head_dim))
    return lanes * rows * (3 * columns + rows)
