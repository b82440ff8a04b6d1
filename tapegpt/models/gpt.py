"""The GPT of microgpt: RMSNorm instead of LayerNorm, no biases, ReLU.

Beside its own token a position can embed the ones before it, with a table for each distance.
"""

from typing import TypeVar

from tapegpt.models.layer_builder import LayerBuilder
from tapegpt.models.sizes import Group, Sizes
from tapegpt.settings import ModelConfig

X = TypeVar("X")


def gpt_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, int]]:
    """Name and shape (outputs, inputs) of every weight, in the order of initialisation."""
    width, hidden = model.n_embd, 4 * model.n_embd
    shapes = {
        "wte": (vocab_size, width),
        "wpe": (model.block_size, width),
        "lm_head": (vocab_size, width),
    }
    for layer in range(model.n_layer):
        for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
            shapes[f"layer{layer}.{name}"] = (width, width)
        shapes[f"layer{layer}.mlp_fc1"] = (hidden, width)
        shapes[f"layer{layer}.mlp_fc2"] = (width, hidden)
    return shapes | {table: (vocab_size, width) for table in earlier_tables(model)}


def gpt_sizes(model: ModelConfig, vocab_size: int) -> Sizes:
    """How many weights of which shape `gpt_shapes` has."""
    width, hidden, layers = model.n_embd, 4 * model.n_embd, model.n_layer
    return Sizes(
        tables=[Group(1 + model.look_back, vocab_size, width), Group(1, model.block_size, width)],
        matrices=[
            Group(1, vocab_size, width),
            Group(4 * layers, width, width),
            Group(layers, hidden, width),
            Group(layers, width, hidden),
        ],
    )


def earlier_tables(model: ModelConfig) -> list[str]:
    """The tables of earlier tokens, the nearest first."""
    return [f"wte_back{distance}" for distance in range(1, model.look_back + 1)]


def gpt(net: LayerBuilder[X], model: ModelConfig) -> X:
    """Record the logits of the next token, for the positions that `net` stands at."""
    x = net.rmsnorm(net.embed("wte", "wpe", *earlier_tables(model)))
    for layer in range(model.n_layer):
        h = net.rmsnorm(x)
        q = net.linear(h, f"layer{layer}.attn_wq")
        k = net.linear(h, f"layer{layer}.attn_wk")
        v = net.linear(h, f"layer{layer}.attn_wv")
        h = net.attention(q, k, v, model.n_head, layer)
        x = net.linear(h, f"layer{layer}.attn_wo", plus=x, dropout=model.dropout)
        h = net.relu(net.linear(net.rmsnorm(x), f"layer{layer}.mlp_fc1"))
        x = net.linear(h, f"layer{layer}.mlp_fc2", plus=x, dropout=model.dropout)
    return net.linear(x, "lm_head")
