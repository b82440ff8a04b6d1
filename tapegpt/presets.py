"""Settings by name, and the settings of a training: defaults, preset, command line."""

import math
from collections.abc import Mapping
from typing import Any

from tapegpt.bounds import Choice, did_you_mean, show
from tapegpt.errors import UsageError
from tapegpt.models.registry import MODELS
from tapegpt.setting import check_used, settings_of, unmet
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.optimizers import OPTIMIZERS

# What microgpt's NumPy port has in all its models.
NUMPY_PORT: Mapping[str, object] = {
    "n_embd": 16,
    "block_size": 16,
    "steps": 1000,
    "batch_size": 1,
    "optimizer": "sgd",
    "momentum": 0.99,
    "schedule": "exponential",
    "decay": 0.998,
    "dtype": "float64",
    "initialization": "by-input",
    "seed": 42,
}

# What learns best from a list of names in some seconds on one core, see bench/learning.md.
RECIPE: Mapping[str, object] = {
    "model": "gpt",
    "n_head": 8,
    "block_size": 16,
    "activation": "swiglu",
    "optimizer": "adamw",
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "schedule": "linear",
    "averaging": 0.05,
    "weighting": "token",
    "val_fraction": 0.1,
    "test_fraction": 0.1,
    "dtype": "float32",
}

TEXT_VAL_FRACTION = 0.1  # of a text, by default

# The same of a text in some minutes: newer parts, and Muon, whose rate falls from early on.
TEXT_RECIPE: Mapping[str, object] = {
    "text": True,
    "model": "gpt",
    "n_layer": 3,
    "n_embd": 96,
    "n_head": 3,
    "block_size": 128,
    "look_back": 2,
    "positions": "rotary",
    "activation": "swiglu",
    "qk_norm": True,
    "final_norm": True,
    "zero_init": True,
    "batch_size": 8,
    "optimizer": "muon",
    "learning_rate": 0.015,
    "adam_rate": 0.004,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-10,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "schedule": "wsd",
    "warmup": 0.03,
    "cooldown": 1.0,
    "val_fraction": 0.1,
    "dtype": "float32",
}

# Counts know what is near, so a longer block pays. Three heads, or no dropout, learn as much.
COUNTS_RECIPE: Mapping[str, object] = {
    **TEXT_RECIPE,
    "n_head": 4,
    "block_size": 256,
    "batch_size": 4,
    "dropout": 0.1,
    "counting": 8,
}

PRESETS: Mapping[str, Mapping[str, object]] = {
    "microgpt": {  # the original program's numbers, whatever the defaults above become
        "model": "gpt",
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 4,
        "block_size": 16,
        "steps": 1000,
        "batch_size": 1,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "beta1": 0.85,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "schedule": "linear",
        "dtype": "float64",
        "initialization": "by-output",
        "seed": 42,
    },
    "brief-ds-vector": {
        **NUMPY_PORT,
        "model": "gpt",
        "n_layer": 1,
        "n_head": 4,
        "learning_rate": 0.002,
    },
    "brief-ds-rnn": {**NUMPY_PORT, "model": "rnn", "n_state": 32, "learning_rate": 0.01},
    "brief-ds-rnn-att": {
        **NUMPY_PORT,
        "model": "rnn-att",
        "n_state": 32,
        "n_att": 16,
        "learning_rate": 0.03,
        "momentum": 0.95,
    },
    # nanoGPT's recipe for a CPU (config/train_shakespeare_char.py as its README changes it). What
    # differs: norms without gains, before the first layer too; no tied weights; as microgpt begins.
    "nanogpt-cpu": {
        "text": True,
        "model": "gpt",
        "n_layer": 4,
        "n_embd": 128,
        "n_head": 4,
        "block_size": 64,
        "activation": "gelu",
        "final_norm": True,
        "dropout": 0.0,
        "steps": 2000,
        "batch_size": 12,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "warmup": 0.05,
        "final_rate": 0.1,
        "val_fraction": 0.1,
        "dtype": "float32",
    },
    "1s": {
        **RECIPE,
        "seconds": 1.0,
        "n_layer": 1,
        "n_embd": 48,
        "look_back": 3,
        "batch_size": 16,
        "learning_rate": 0.005,
        "weight_decay": 0.05,
    },
    "5s": {
        **RECIPE,
        "seconds": 5.0,
        "n_layer": 2,
        "n_embd": 48,
        "look_back": 3,
        "ensemble": 2,
        "batch_size": 32,
        "learning_rate": 0.006,
        "weight_decay": 0.05,
    },
    "60s": {
        **RECIPE,
        "seconds": 60.0,
        "n_layer": 3,
        "n_embd": 48,
        "look_back": 2,
        "ensemble": 8,
        "batch_size": 32,
        "learning_rate": 0.005,
        "weight_decay": 0.05,
    },
    "text-10s": {
        **TEXT_RECIPE,
        "seconds": 10.0,
        "n_layer": 2,
        "n_embd": 64,
        "n_head": 2,
        "block_size": 64,
        "batch_size": 16,
        "learning_rate": 0.03,
        "adam_rate": 0.01,
    },
    "text-1m": {**TEXT_RECIPE, "seconds": 60.0},
    "text-5m": {**TEXT_RECIPE, "seconds": 300.0, "ensemble": 3, "dropout": 0.05},
    "text-30m": {
        **TEXT_RECIPE,
        "seconds": 1800.0,
        "n_layer": 4,
        "n_embd": 128,
        "n_head": 4,
        "ensemble": 5,
        "dropout": 0.1,
        "learning_rate": 0.012,
    },
    "text-1m-counts": {**COUNTS_RECIPE, "seconds": 60.0},
    "text-5m-counts": {**COUNTS_RECIPE, "seconds": 300.0, "ensemble": 3},
}


# What leaves a training what it is.
BESIDE = frozenset(
    {"seconds", "text", "bytes", "seed", "threads", "val_fraction", "test_fraction"}
    | {"eval_every", "eval_windows", "patience"}
)


def dial(overrides: Mapping[str, object]) -> str | None:
    """The preset that seconds alone stand for: of names or of text, with the nearest seconds.

    The nearest is that of the smallest ratio. A network with counts is another thing, which one has
    to ask for. None where other settings say what is trained.

    >>> dial({"seconds": 8})
    '5s'
    >>> dial({"seconds": 600.0, "text": True})
    'text-5m'
    >>> dial({"seconds": 8.0, "n_embd": 32})
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    seconds = given.get("seconds")
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        return None
    if given.keys() - BESIDE:
        return None
    text = bool(given.get("text") or given.get("bytes"))
    apart = {
        name: abs(math.log(seconds) - math.log(known))
        for name, preset in PRESETS.items()
        if isinstance(known := preset.get("seconds"), float)
        and bool(preset.get("text")) == text
        and "counting" not in preset
    }
    return min(apart, key=apart.__getitem__)


def configure(
    preset: str | None, overrides: Mapping[str, object]
) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a training run: the defaults, then the preset, then what was set explicitly.

    An override of None counts as not given. What a preset has for another model, optimizer or
    schedule than the one that was chosen is left out. Raises `UsageError`.
    """
    if preset is not None:
        Choice(tuple(PRESETS)).check("preset", preset)
    given = {name: value for name, value in overrides.items() if value is not None}
    base = {} if preset is None else dict(PRESETS[preset])
    if {"steps", "seconds"} & given.keys():  # one budget for another
        base = {name: base[name] for name in base.keys() - {"steps", "seconds"}}
    in_model, in_training = settings_of(ModelConfig), settings_of(TrainConfig)
    known = in_model | in_training
    for name in given:
        if name not in known:
            raise UsageError(
                f"unknown setting {show(name)}{did_you_mean(name, known)}: leave it out"
            )
    values = {name: default for name, (_, default) in known.items()} | base | given
    used = {name: base[name] for name in base if not unmet(known[name][0], values)}
    settings: dict[str, Any] = used | given
    if settings.get("text") or settings.get("bytes"):
        settings.setdefault("val_fraction", TEXT_VAL_FRACTION)
    model = ModelConfig(**{name: settings[name] for name in in_model if name in settings})
    training = TrainConfig(**{name: settings[name] for name in in_training if name in settings})
    check_used(given, model, training)
    return model, training


def default_learning_rate(model: ModelConfig, training: TrainConfig) -> float:
    """The learning rate of a training that has none of its own."""
    optimizer = OPTIMIZERS[training.optimizer]
    rate = optimizer.rate_for(MODELS[model.model])
    return rate if optimizer.memory is None else rate * (1 - getattr(training, optimizer.memory))
