"""The recurrent nets of microgpt's NumPy port: no attention, but a state that is carried along."""

from typing import TypeVar

from tapegpt.models.layer_builder import LayerBuilder
from tapegpt.models.sizes import Group, Sizes
from tapegpt.settings import ModelConfig

X = TypeVar("X")


def rnn_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, int]]:
    """Name and shape (outputs, inputs) of every weight, in the order of initialisation."""
    width, state = model.n_embd, model.n_state
    return {
        "wte": (vocab_size, width),
        "wpe": (model.block_size, width),
        "m": (state, state),
        "token_proj": (state, width),
        "pos_proj": (state, width),
        "lm_head": (vocab_size, state),
    }


def rnn_sizes(model: ModelConfig, vocab_size: int) -> Sizes:
    """How many weights of which shape `rnn_shapes` has."""
    width, state = model.n_embd, model.n_state
    tables = [Group(1, vocab_size, width), Group(1, model.block_size, width)]
    matrices = [Group(2, state, width), Group(1, vocab_size, state)]
    (tables if model.model == "rnn-att" else matrices).append(Group(1, state, state))
    return Sizes(tables, matrices)


def rnn(net: LayerBuilder[X], model: ModelConfig) -> X:
    """h' = relu(m h + token_proj wte[token] + pos_proj wpe[position])"""
    inputs = _inputs(net)
    h = net.previous(model.n_state)
    h = net.carry(net.relu(net.linear(h, "m", plus=inputs)))
    return net.linear(h, "lm_head")


def rnn_att(net: LayerBuilder[X], model: ModelConfig) -> X:
    """Only the n_att largest coordinates of h fire, each with its row of m:

    h' = relu(h + h[top] m[top] + token_proj wte[token] + pos_proj wpe[position])
    """
    inputs = _inputs(net)
    h = net.previous(model.n_state)
    top = net.topk(h, model.n_att)
    fired = net.gathered_linear(h, top, "m", plus=inputs)
    h = net.carry(net.relu(net.add(h, fired)))
    return net.linear(h, "lm_head")


def _inputs(net: LayerBuilder[X]) -> X:
    x = net.linear(net.embed_position("wpe"), "pos_proj")
    return net.linear(net.embed_token("wte"), "token_proj", plus=x)
