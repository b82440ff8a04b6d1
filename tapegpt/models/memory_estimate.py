"""What a model takes of this machine's memory, estimated before any of it is allocated."""

import numpy as np

from tapegpt.models import multiplications, parameter_sizes
from tapegpt.settings import ModelConfig

LANES = 16  # at most
TILE = 4  # positions and columns of heads go in whole tiles, see lane_batching.py
RECORD_BYTES = 40  # of a record, twice: the tape's and the program's, and what growing leaves over


def nodes_needed(model: ModelConfig, vocab_size: int, granularity: str, documents: int) -> int:
    """About as many nodes as `record` allocates for a sweep over so many documents."""
    if model.model != "gpt":
        return _recurrent_nodes(model, vocab_size, granularity, documents)
    width, block = model.n_embd, model.block_size
    layers = model.ensemble * model.n_layer
    if granularity == "vector":
        # Of every row a layer keeps 16 numbers per column; its attention keeps q, k, v once more
        # and the weights, one lane for a head of a document.
        per_column = 16 if model.dropout == 0 else 18
        # Logits and their exponentials, of every network, and of their mean once more.
        logits = 2 * _stride(vocab_size) * (1 if model.ensemble == 1 else 2 * model.ensemble + 1)
        row = (per_column * layers + model.ensemble * 2) * _stride(width) + logits
        heads = -(-documents * model.n_head // LANES) * LANES
        rows, columns = (-(-n // TILE) * TILE for n in (block, width // model.n_head))
        lanes = layers * heads * rows * (3 * columns + rows)
        return _padded_parameters(model, vocab_size) + documents * block * row + lanes
    # A product and a sum for every weight of a matrix at every position, and for every pair of
    # positions four nodes a column and five a head. With dot a whole sum is one node.
    matrices = multiplications(model, vocab_size)
    products, columns = (2 * matrices, 4 * width) if granularity == "scalar" else (0, 0)
    position = products + 25 * layers * width + 5 * model.ensemble * vocab_size
    pair = layers * (columns + 5 * model.n_head)
    return _parameters(model, vocab_size) + block * position + block * (block + 1) // 2 * pair


def _recurrent_nodes(model: ModelConfig, vocab_size: int, granularity: str, documents: int) -> int:
    if granularity == "vector":
        row = 2 * _stride(model.n_embd) + 8 * _stride(model.n_state) + 2 * _stride(vocab_size)
        return _padded_parameters(model, vocab_size) + documents * model.block_size * row
    weights = multiplications(model, vocab_size)
    position = 2 * weights if granularity == "scalar" else 0
    if model.model == "rnn-att":
        position += model.n_att * model.n_state  # the rows of m that fire
    position += 8 * model.n_state + 5 * vocab_size
    return _parameters(model, vocab_size) + model.block_size * position


def bytes_needed(
    model: ModelConfig,
    vocab_size: int,
    granularity: str,
    dtype: str,
    documents: int,
    optimizer_arrays: int = 0,
    threads: int = 1,
) -> int:
    """About as many bytes as training takes at most; a tape that grows is there twice.

    optimizer_arrays: how many the optimizer has that are like the parameters. threads: each has
    values and gradients of its own.
    """
    nodes = nodes_needed(model, vocab_size, granularity, documents)
    records = 0 if granularity == "vector" else RECORD_BYTES
    itemsize = np.dtype(dtype).itemsize
    optimizer = optimizer_arrays * itemsize * _parameters(model, vocab_size)
    return nodes * (4 * threads * itemsize + records) + optimizer


def _parameters(model: ModelConfig, vocab_size: int) -> int:
    return parameter_sizes(model, vocab_size).numbers


def _padded_parameters(model: ModelConfig, vocab_size: int) -> int:
    groups = parameter_sizes(model, vocab_size).groups
    return sum(count * outputs * _stride(inputs) for count, outputs, inputs in groups)


def _stride(width: int) -> int:
    """Nodes that a row takes of an array, at most: see row_stride in kernels/simd/."""
    vectors = -(-width // LANES)
    return LANES * (vectors + (vectors >= 4 and vectors % 2 == 0))
