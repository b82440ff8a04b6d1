"""The recurrent nets of microgpt's NumPy port: no attention, but a state that is carried along."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from tapegpt.errors import UsageError
from tapegpt.models.model import Model, Shapes

if TYPE_CHECKING:
    from tapegpt.models.layer_builder import LayerBuilder
    from tapegpt.settings import ModelConfig

X = TypeVar("X")


class Rnn(Model):
    """h' = relu(m h + token_proj wte[token] + pos_proj wpe[position])"""

    name = "rnn"
    settings: ClassVar[tuple[str, ...]] = ("n_state",)
    learning_rates: ClassVar = {"sgd": 0.5}

    def shapes(self, config: ModelConfig, vocab_size: int) -> Shapes:
        width, state = config.n_embd, config.n_state
        return {
            "wte": (vocab_size, width),
            "wpe": (config.block_size, width),
            "m": (state, state),
            "token_proj": (state, width),
            "pos_proj": (state, width),
            "lm_head": (vocab_size, state),
        }

    def logits(self, net: LayerBuilder[X], config: ModelConfig) -> X:
        x = net.linear(net.embed_position("wpe"), "pos_proj")
        x = net.linear(net.embed_token("wte"), "token_proj", residual=x)
        h = net.scan(lambda h: net.relu(self.recur(net, h, x, config)), config.n_state)
        return net.linear(h, "lm_head")

    def recur(self, net: LayerBuilder[X], h: X, x: X, config: ModelConfig) -> X:
        """What becomes of the state h and the input x, before the ReLU."""
        return net.linear(h, "m", residual=x)


class SparseRnn(Rnn):
    """Only the n_att largest coordinates of h fire, each with its row of m:

    h' = relu(h + h[top] m[top] + token_proj wte[token] + pos_proj wpe[position])
    """

    name = "rnn-att"
    settings = ("n_state", "n_att")
    learning_rates: ClassVar = {"sgd": 0.3}

    def check(self, config: ModelConfig) -> None:
        if config.n_att > config.n_state:
            raise UsageError(
                f"--n-att {config.n_att} is more than --n-state {config.n_state}: "
                f"choose at most {config.n_state}"
            )

    def recur(self, net: LayerBuilder[X], h: X, x: X, config: ModelConfig) -> X:
        return net.add(h, net.sparse_linear(h, "m", config.n_att, residual=x))


MODELS = (Rnn(), SparseRnn())
