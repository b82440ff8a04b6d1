"""The GPT of microgpt: RMSNorm instead of LayerNorm, no biases, ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tapegpt.errors import UsageError
from tapegpt.models.model import Model, Shapes

if TYPE_CHECKING:
    from tapegpt.models.layer_builder import LayerBuilder
    from tapegpt.settings import ModelConfig

X = TypeVar("X")


class Gpt(Model):
    """Beside its own token a position can embed the ones before it, a table for each distance."""

    name = "gpt"
    settings = ("n_layer", "n_head", "look_back", "ensemble", "dropout")

    def check(self, config: ModelConfig) -> None:
        if config.n_embd % config.n_head:
            raise UsageError(
                f"--n-embd {config.n_embd} is not divisible by --n-head {config.n_head}: "
                f"choose a multiple of {config.n_head}"
            )

    def shapes(self, config: ModelConfig, vocab_size: int) -> Shapes:
        width, hidden = config.n_embd, 4 * config.n_embd
        shapes = {
            "wte": (vocab_size, width),
            "wpe": (config.block_size, width),
            "lm_head": (vocab_size, width),
        }
        for i in range(config.n_layer):
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                shapes[f"layer{i}.{name}"] = (width, width)
            shapes[f"layer{i}.mlp_fc1"] = (hidden, width)
            shapes[f"layer{i}.mlp_fc2"] = (width, hidden)
        return shapes | {table: (vocab_size, width) for table in earlier_tables(config)}

    def logits(self, net: LayerBuilder[X], config: ModelConfig) -> X:
        x = net.rmsnorm(net.embed("wte", "wpe", *earlier_tables(config)))
        for i in range(config.n_layer):
            h = net.rmsnorm(x)
            q = net.linear(h, f"layer{i}.attn_wq")
            k = net.linear(h, f"layer{i}.attn_wk")
            v = net.linear(h, f"layer{i}.attn_wv")
            h = net.attention(q, k, v, config.n_head, layer=i)
            x = net.linear(h, f"layer{i}.attn_wo", plus=x, dropout=config.dropout)
            h = net.relu(net.linear(net.rmsnorm(x), f"layer{i}.mlp_fc1"))
            x = net.linear(h, f"layer{i}.mlp_fc2", plus=x, dropout=config.dropout)
        return net.linear(x, "lm_head")


def earlier_tables(config: ModelConfig) -> list[str]:
    """The tables of earlier tokens, the nearest first."""
    return [f"wte_back{distance}" for distance in range(1, config.look_back + 1)]


MODELS = (Gpt(),)
