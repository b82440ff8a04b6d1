"""What follows from a model's module and an optimizer's row."""

import math

import pytest

from tapegpt.models import registry
from tapegpt.models.layer_builder import LayerBuilder
from tapegpt.models.model import Model, Shapes
from tapegpt.recorders.counter import flops, tables
from tapegpt.recorders.unrolled import Dot, Scalar
from tapegpt.recorders.vector import Vector
from tapegpt.setting import GRANULARITIES, check_used
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.optimizers import OPTIMIZERS, Optimizer
from tapegpt.train.schedules import SCHEDULES
from tapegpt.train.trainer import Trainer


class Bigram(Model):
    name = "bigram"
    settings = ()
    learning_rates = {"sgd": 0.25}  # noqa: RUF012

    def shapes(self, config: ModelConfig, vocab_size: int) -> Shapes:
        return {"table": (vocab_size, vocab_size)}

    def logits(self, net, config):
        return net.embed_token("table")


@pytest.fixture
def bigram(monkeypatch):
    """A configuration of a model that the package does not have."""
    monkeypatch.setitem(registry.MODELS, "bigram", Bigram())
    config = ModelConfig(n_embd=1, n_head=1, block_size=4)
    object.__setattr__(config, "model", "bigram")  # settings take their choices at import
    return config


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_model_is_its_class_alone(bigram, granularity):
    """It learns which letter follows, at the rates that it or the optimizer has."""
    training = TrainConfig(steps=200, batch_size=2, granularity=granularity, dtype="float64")
    trainer = Trainer(bigram, training, ["ab", "abab"])
    assert trainer.learning_rate == 0.01
    assert {name: w.shape for name, w in trainer.compiled.weights.items()} == {"table": (3, 3)}
    first, *_, last = trainer.advance(200)
    assert first == pytest.approx(math.log(3), abs=0.2)
    assert last < 0.7 * first
    assert trainer.flops(10) == 0
    sgd = TrainConfig(optimizer="sgd", momentum=0.5)
    assert Trainer(bigram, sgd, ["ab"]).learning_rate == 0.125


@pytest.mark.parametrize(
    ("model", "looked_up", "products", "attended"),
    [
        (ModelConfig(n_embd=8, n_head=2, n_layer=2, look_back=2), {"wte", "wpe", "wte_back1",
         "wte_back2"}, 11 * 8 + 2 * 12 * 8 * 8, 16),
        (ModelConfig(n_embd=4, ensemble=2), {"net0.wte", "net0.wpe", "net1.wte", "net1.wpe"},
         2 * (11 * 4 + 12 * 4 * 4), 8),
        (ModelConfig(model="rnn", n_embd=4, n_state=6), {"wte", "wpe"},
         11 * 6 + 2 * 4 * 6 + 6 * 6, 0),
        (ModelConfig(model="rnn-att", n_embd=4, n_state=6, n_att=2), {"wte", "wpe", "m"},
         11 * 6 + 2 * 4 * 6 + 2 * 6, 0),
    ],
    ids=str,
)  # fmt: skip
def test_tables_and_work_are_counted(model, looked_up, products, attended):
    assert tables(model) == looked_up
    assert flops(model, 11) == (6 * products, 12 * attended)


@pytest.mark.parametrize("recorder", [Scalar, Dot, Vector])
def test_every_recorder_has_every_layer(recorder):
    layers = [name for name in vars(LayerBuilder) if not name.startswith("_")]
    assert len(layers) > 9
    assert [name for name in layers if not callable(getattr(recorder, name, None))] == []


def test_rows_name_settings_and_kernels():
    from tapegpt.kernels.loops import optimizers, schedules

    known = {**vars(optimizers), **vars(schedules)}
    for row in (*OPTIMIZERS.values(), *SCHEDULES.values()):
        assert type(known[row.kernel]) is int
        kind = "optimizer" if isinstance(row, Optimizer) else "schedule"
        check_used(row.settings, TrainConfig(**{kind: row.name}))
