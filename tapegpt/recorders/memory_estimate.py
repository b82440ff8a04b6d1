"""What a model takes of this machine's memory, estimated before any of it is allocated."""

import numpy as np

from tapegpt.bounds import flag
from tapegpt.kernels.ops.product.packed import MOST_PACKED
from tapegpt.models.registry import MODELS, network_shapes, parameter_totals
from tapegpt.recorders.counter import count_mean, count_network, row_stride
from tapegpt.settings import ModelConfig

RECORD_BYTES = 40  # of a record, twice: the tape's and the program's, and what growing leaves over


def nodes_needed(model: ModelConfig, vocab_size: int, granularity: str, documents: int) -> int:
    """About as many nodes as `record` allocates for a sweep over so many documents."""
    sweep = granularity, documents, model.block_size
    shapes = network_shapes(model, vocab_size).values()
    padded = row_stride if granularity == "vector" else int
    network = sum(rows * padded(columns) for rows, columns in shapes)
    counted = count_network(model, vocab_size)
    network += counted.nodes(*sweep)
    total = model.ensemble * network + count_mean(model, vocab_size).nodes(*sweep)
    packed = model.ensemble * counted.packed if granularity == "vector" else 0
    return total + packed * (packed <= MOST_PACKED)


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
    _, parameters = parameter_totals(model, vocab_size)
    return nodes * (4 * threads * itemsize + records) + optimizer_arrays * itemsize * parameters


def sizes_to_shrink(model: ModelConfig) -> list[str]:
    """The flags of a model that memory has no room for, with their values.

    Those that every model has, and what is above its default.
    """
    default = ModelConfig(model=model.model)
    large = [
        name
        for name in MODELS[model.model].settings
        if type(getattr(model, name)) is int and getattr(model, name) > getattr(default, name)
    ]
    return [f"{flag(name)} {getattr(model, name)}" for name in ("n_embd", *large, "block_size")]
