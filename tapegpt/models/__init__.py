"""The networks."""

from typing import TypeVar

from tapegpt.models.gpt import earlier_tables, gpt, gpt_shapes, gpt_sizes
from tapegpt.models.layer_builder import LayerBuilder
from tapegpt.models.rnn import rnn, rnn_att, rnn_shapes, rnn_sizes
from tapegpt.models.sizes import Sizes
from tapegpt.settings import ModelConfig

X = TypeVar("X")


def parameter_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, int]]:
    """Name and shape (outputs, inputs) of every weight, in the order of initialisation.

    Of tables, see `tables`, (rows, width).
    """
    shapes = (gpt_shapes if model.model == "gpt" else rnn_shapes)(model, vocab_size)
    return {prefix + name: shape for prefix in prefixes(model) for name, shape in shapes.items()}


def parameter_sizes(model: ModelConfig, vocab_size: int) -> Sizes:
    """How many weights of which shape `parameter_shapes` has; at once, however many there are."""
    sizes = (gpt_sizes if model.model == "gpt" else rnn_sizes)(model, vocab_size)
    return sizes.times(model.ensemble)


def tables(model: ModelConfig) -> set[str]:
    """The parameters whose rows are looked up."""
    names = ["wte", "wpe", *earlier_tables(model), *(["m"] if model.model == "rnn-att" else [])]
    return {prefix + name for prefix in prefixes(model) for name in names}


def multiplications(model: ModelConfig, vocab_size: int) -> int:
    """How many weights a position's numbers are multiplied with."""
    matrices = parameter_sizes(model, vocab_size).matrices
    products = sum(count * outputs * inputs for count, outputs, inputs in matrices)
    return products + (model.n_att * model.n_state if model.model == "rnn-att" else 0)


def prefixes(model: ModelConfig) -> list[str]:
    """What the names of every network's weights begin with."""
    return [""] if model.ensemble == 1 else [f"net{i}." for i in range(model.ensemble)]


def networks(net: LayerBuilder[X], model: ModelConfig) -> list[X]:
    """Record every network's logits of the next token, for the positions that `net` stands at."""
    logits = []
    for net.prefix in prefixes(model):
        logits.append({"gpt": gpt, "rnn": rnn, "rnn-att": rnn_att}[model.model](net, model))
    return logits
