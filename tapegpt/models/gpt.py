"""The GPT of microgpt: RMSNorm instead of LayerNorm, no biases, ReLU. What is newer is optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tapegpt.errors import UsageError
from tapegpt.models.model import Model, Shapes

if TYPE_CHECKING:
    from tapegpt.models.layer_builder import LayerBuilder
    from tapegpt.settings import ModelConfig

X = TypeVar("X")

QK_GAIN = 1.2  # of queries and keys that are normed: scores reach 1.44 sqrt(head_dim)


class Gpt(Model):
    """Beside its own token a position can embed the ones before it, a table for each distance."""

    name = "gpt"
    settings = (
        *("n_layer", "n_head", "look_back", "ensemble", "dropout", "positions", "activation"),
        *("qk_norm", "final_norm", "zero_init", "softcap", "counting"),
    )

    def check(self, config: ModelConfig) -> None:
        if config.n_embd % config.n_head:
            raise UsageError(
                f"--n-embd {config.n_embd} is not divisible by --n-head {config.n_head}: "
                f"choose a multiple of {config.n_head}"
            )
        if config.positions == "rotary" and config.n_embd // config.n_head % 2:
            raise UsageError(
                f"--positions rotary turns pairs of columns: --n-embd {config.n_embd} gives each of"
                f" --n-head {config.n_head} heads an odd number: choose a multiple of"
                f" {2 * config.n_head}"
            )

    def shapes(self, config: ModelConfig, vocab_size: int) -> Shapes:
        width, swiglu = config.n_embd, config.activation == "swiglu"
        hidden = 8 * width // 3 if swiglu else 4 * width  # as many weights
        shapes = {"wte": (vocab_size, width)}
        if config.positions == "learned":
            shapes["wpe"] = (config.block_size, width)
        shapes["lm_head"] = (vocab_size, width)
        for i in range(config.n_layer):
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                shapes[f"layer{i}.{name}"] = (width, width)
            shapes[f"layer{i}.mlp_fc1"] = (hidden, width)
            if swiglu:
                shapes[f"layer{i}.mlp_gate"] = (hidden, width)
            shapes[f"layer{i}.mlp_fc2"] = (width, hidden)
        shapes |= {table: (vocab_size, width) for table in earlier_tables(config)}
        return shapes | counting_shapes(config, vocab_size)

    def zeros(self, config: ModelConfig) -> list[str]:
        added = [f"layer{i}.{m}" for i in range(config.n_layer) for m in ("attn_wo", "mlp_fc2")]
        zero = ["lm_head", *added] if config.zero_init else []
        return [*zero, *counting_shapes(config, 1)]

    def logits(self, net: LayerBuilder[X], config: ModelConfig) -> X:
        positions = "wpe" if config.positions == "learned" else None
        x = net.embed("wte", positions, *earlier_tables(config))
        if config.counting:
            x = net.counted_input(x, "count_in")
        x = net.rmsnorm(x)
        for i in range(config.n_layer):
            h = net.rmsnorm(x)
            q = net.linear(h, f"layer{i}.attn_wq")
            k = net.linear(h, f"layer{i}.attn_wk")
            v = net.linear(h, f"layer{i}.attn_wv")
            if config.qk_norm:
                q, k = (net.head_norm(heads, config.n_head, QK_GAIN) for heads in (q, k))
            if config.positions == "rotary":
                q, k = (net.rotary(heads, config.n_head) for heads in (q, k))
            h = net.attention(q, k, v, config.n_head, layer=i)
            x = net.linear(h, f"layer{i}.attn_wo", residual=x, dropout=config.dropout)
            h = hidden_units(net, net.rmsnorm(x), f"layer{i}", config.activation)
            x = net.linear(h, f"layer{i}.mlp_fc2", residual=x, dropout=config.dropout)
        x = net.rmsnorm(x) if config.final_norm else x
        logits = net.linear(x, "lm_head")
        if config.softcap is not None:
            logits = net.softcap(logits, config.softcap)
        if config.counting:
            logits = net.counted_gate(logits, x, "count_gate", "count_bias")
        return logits


def hidden_units(net: LayerBuilder[X], x: X, layer: str, activation: str) -> X:
    """What a layer's second product is given."""
    h = net.linear(x, f"{layer}.mlp_fc1")
    if activation == "swiglu":
        return net.swiglu(h, net.linear(x, f"{layer}.mlp_gate"))
    return {"relu": net.relu, "relu2": net.relu_squared, "gelu": net.gelu}[activation](h)


def counting_shapes(config: ModelConfig, vocab_size: int) -> Shapes:
    """The weights of what counts say, which are 0 at first."""
    if not config.counting:
        return {}
    return {
        "count_in": (config.n_embd, config.counting * (vocab_size + 2)),
        "count_gate": (config.counting, config.n_embd),
        "count_bias": (1, config.counting),
    }


def earlier_tables(config: ModelConfig) -> list[str]:
    """The tables of earlier tokens, the nearest first."""
    return [f"wte_back{distance}" for distance in range(1, config.look_back + 1)]


MODELS = (Gpt(),)
