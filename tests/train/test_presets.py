"""The presets, written out once more: what a change of them would have to change here too."""

import math

import pytest

from tapegpt.presets import PRESETS, configure, dial
from tapegpt.settings import ModelConfig, TrainConfig

# The original program's. One that leaves a setting out would follow a new default.
MICROGPT = (
    ModelConfig(model="gpt", n_layer=1, n_embd=16, n_head=4, block_size=16),
    TrainConfig(
        steps=1000, batch_size=1, optimizer="adam", learning_rate=0.01, beta1=0.85, beta2=0.99,
        epsilon=1e-8, schedule="linear", dtype="float64", initialization="by-output", seed=42,
    ),
)  # fmt: skip

# microgpt's NumPy port: its momentum, and its rate that falls by 0.2 % a step.
NUMPY_PORT = {
    "steps": 1000, "batch_size": 1, "optimizer": "sgd", "schedule": "exponential", "decay": 0.998,
    "dtype": "float64", "initialization": "by-input", "seed": 42,
}  # fmt: skip

# What bench/learning.md found best. Half of what is held out chooses, the other half is reported.
# Tokens weigh the same, as in what is measured: 0.01 less than with documents at 60 s. Averaging
# changes nothing after a decay to 0, and 0.06 where a training is stopped on the way.
RECIPE = {
    "optimizer": "adamw", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "schedule": "linear",
    "averaging": 0.05, "weighting": "token", "val_fraction": 0.1, "test_fraction": 0.1,
    "dtype": "float32",
}  # fmt: skip

# Not tuned beyond what bench/learning.md shows.
TEXT = {
    "text": True, "batch_size": 8, "optimizer": "muon", "learning_rate": 0.015, "adam_rate": 0.004,
    "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-10, "weight_decay": 0.1, "momentum": 0.95,
    "schedule": "wsd", "warmup": 0.03, "cooldown": 1.0, "val_fraction": 0.1, "dtype": "float32",
}  # fmt: skip
TEXT_NETWORK = {
    "model": "gpt", "n_layer": 3, "n_embd": 96, "n_head": 3, "block_size": 128, "look_back": 2,
    "positions": "rotary", "activation": "swiglu", "qk_norm": True, "final_norm": True,
    "zero_init": True,
}  # fmt: skip
COUNTS_NETWORK = TEXT_NETWORK | {
    "n_head": 4, "block_size": 256, "counting": 8, "dropout": 0.1,
}  # fmt: skip
COUNTS = TEXT | {"batch_size": 4}

EXPECTED = {
    "microgpt": MICROGPT,
    "brief-ds-vector": (
        ModelConfig(model="gpt", n_layer=1, n_embd=16, n_head=4, block_size=16),
        TrainConfig(**NUMPY_PORT, learning_rate=0.002, momentum=0.99),
    ),
    "brief-ds-rnn": (
        ModelConfig(model="rnn", n_embd=16, block_size=16, n_state=32),
        TrainConfig(**NUMPY_PORT, learning_rate=0.01, momentum=0.99),
    ),
    "brief-ds-rnn-att": (
        ModelConfig(model="rnn-att", n_embd=16, block_size=16, n_state=32, n_att=16),
        TrainConfig(**NUMPY_PORT, learning_rate=0.03, momentum=0.95),
    ),
    # nanoGPT's README: 1.88 on random windows of the last tenth of tinyshakespeare.
    "nanogpt-cpu": (
        ModelConfig(
            model="gpt", n_layer=4, n_embd=128, n_head=4, block_size=64, activation="gelu",
            final_norm=True,
        ),
        TrainConfig(
            text=True, steps=2000, batch_size=12, optimizer="adamw", learning_rate=1e-3, beta1=0.9,
            beta2=0.99, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0, schedule="cosine",
            warmup=0.05, final_rate=0.1, val_fraction=0.1,
        ),
    ),
    # With ReLU 0.011 more, with 4 heads 0.005.
    "1s": (
        ModelConfig(
            model="gpt", n_layer=1, n_embd=48, n_head=8, block_size=16, look_back=3,
            activation="swiglu",
        ),
        TrainConfig(
            **RECIPE, seconds=1.0, batch_size=16, learning_rate=0.005, weight_decay=0.05
        ),
    ),
    # With ReLU 0.010 more, with 4 heads 0.004. One network for as long, three layers deep, 0.012.
    "5s": (
        ModelConfig(
            model="gpt", n_layer=2, n_embd=48, n_head=8, block_size=16, look_back=3,
            activation="swiglu", ensemble=2,
        ),
        TrainConfig(**RECIPE, seconds=5.0, batch_size=32, learning_rate=0.006, weight_decay=0.05),
    ),
    # With ReLU 0.003 more, and four networks of ReLU 0.003 more than eight.
    "60s": (
        ModelConfig(
            model="gpt", n_layer=3, n_embd=48, n_head=8, block_size=16, look_back=2,
            activation="swiglu", ensemble=8,
        ),
        TrainConfig(**RECIPE, seconds=60.0, batch_size=32, learning_rate=0.005, weight_decay=0.05),
    ),
    # With ReLU^2 0.013 more, in 488 steps; with four heads 0.008.
    "text-10s": (
        ModelConfig(
            **(TEXT_NETWORK | {"n_layer": 2, "n_embd": 64, "n_head": 2, "block_size": 64})
        ),
        TrainConfig(
            **(TEXT | {"batch_size": 16, "learning_rate": 0.03, "adam_rate": 0.01}), seconds=10.0
        ),
    ),
    # With 2 or 4 layers as much, within what seeds differ by; 128 wide more.
    "text-1m": (ModelConfig(**TEXT_NETWORK), TrainConfig(**TEXT, seconds=60.0)),
    # One network, four layers, 128 wide: 0.006 more.
    "text-5m": (
        ModelConfig(**TEXT_NETWORK, ensemble=3, dropout=0.05), TrainConfig(**TEXT, seconds=300.0)
    ),
    "text-30m": (
        ModelConfig(
            **(TEXT_NETWORK | {"n_layer": 4, "n_embd": 128, "n_head": 4}), dropout=0.1, ensemble=5
        ),
        TrainConfig(**(TEXT | {"learning_rate": 0.012}), seconds=1800.0),
    ),
    # With ReLU^2, batches of 8, twice the rate and no dropout 0.006 more.
    "text-1m-counts": (ModelConfig(**COUNTS_NETWORK), TrainConfig(**COUNTS, seconds=60.0)),
    "text-5m-counts": (
        ModelConfig(**COUNTS_NETWORK, ensemble=3), TrainConfig(**COUNTS, seconds=300.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "names", "text"),
    [
        (5e-324, "1s", "text-10s"), (1.0, "1s", "text-10s"), (2.2, "1s", "text-10s"),
        (2.3, "5s", "text-10s"), (17.0, "5s", "text-10s"), (18.0, "60s", "text-10s"),
        (25.0, "60s", "text-1m"), (130.0, "60s", "text-1m"), (140.0, "60s", "text-5m"),
        (800.0, "60s", "text-30m"), (1e308, "60s", "text-30m"),
    ],
)  # fmt: skip
def test_seconds_alone_choose_the_nearest_preset(seconds, names, text):
    beside = {"seed": 3, "threads": 2, "val_fraction": 0.2, "eval_every": 10, "steps": None}
    for kind, expected in (({}, names), ({"text": True}, text), ({"bytes": True}, text)):
        assert dial({"seconds": seconds, **kind, **beside}) == expected
        assert dial({"seconds": seconds, "batch_size": 4, **kind}) is None
        assert dial(kind) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_seconds_that_are_refused_choose_none(seconds):
    assert dial({"seconds": seconds}) is None


def test_every_preset_has_a_row():
    assert sorted(PRESETS) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_presets_are_what_was_measured(name):
    assert configure(name, {}) == EXPECTED[name]
