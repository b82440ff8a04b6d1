"""What a run is made of: frozen settings, validated when they are made.

Every setting is named after its command-line flag (`n_embd` is `--n-embd`), and a bad value raises
`UsageError` with one line that names the flag, the value and the remedy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, TypeVar

from tapegpt.errors import UsageError

MODELS = ("gpt", "rnn", "rnn-att")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("linear", "exponential", "cosine", "constant")
GRANULARITIES = ("scalar", "dot", "vector")
DTYPES = ("float32", "float64")
WEIGHTINGS = ("document", "token")
INITIALIZATIONS = ("by-output", "by-input")

LARGEST_SIZE = 2**31 - 1  # extents on the tape are 32-bit
LARGEST_LAYERS = 1024  # each layer adds names and records: bounds both before any is made
LARGEST_STEPS = 2**53  # step numbers stay exact in the schedule's float64
LARGEST_SEED = 2**64 - 1

DEFAULT_STEPS = 1000

Check = tuple[Callable[[float], bool], str]  # of a number, and what a user should choose
SHARE: Check = (lambda x: 0 <= x < 1, "a number from 0 up to but not 1")
ABOVE_ZERO: Check = (lambda x: 0 < x < inf, "a finite number above 0")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network's kind and sizes."""

    model: str = "gpt"
    n_layer: int = 1
    n_embd: int = 16
    n_head: int = 4
    block_size: int = 16
    n_state: int = 32  # of the recurrent nets
    n_att: int = 16  # coordinates of the state that fire, of rnn-att
    look_back: int = 0  # earlier tokens that a position embeds beside its own
    ensemble: int = 1  # networks, each with a loss of its own, that predict together
    dropout: float = 0.0  # share of what a block adds to its input, left out in training

    def __post_init__(self) -> None:
        _choice(self, "model", MODELS)
        _whole(self, "n_layer", 1, LARGEST_LAYERS)
        _whole(self, "n_embd", 1, LARGEST_SIZE)
        _whole(self, "n_head", 1, LARGEST_SIZE)
        _whole(self, "block_size", 1, LARGEST_SIZE)
        _whole(self, "n_state", 1, LARGEST_SIZE)
        _whole(self, "n_att", 1, LARGEST_SIZE)
        _whole(self, "look_back", 0, LARGEST_SIZE)
        _whole(self, "ensemble", 1, LARGEST_LAYERS)
        _number(self, "dropout", *SHARE)
        if self.look_back >= self.block_size:
            raise UsageError(
                f"--look-back {self.look_back} is not below --block-size {self.block_size}:"
                f" choose at most {self.block_size - 1}"
            )
        for name, without in (("look_back", 0), ("ensemble", 1), ("dropout", 0)):
            if self.model != "gpt" and getattr(self, name) != without:
                raise UsageError(
                    f"{flag(name)} {getattr(self, name)} is for --model gpt alone,"
                    f" not for {self.model}: leave it out"
                )
        if self.model == "rnn-att" and self.n_att > self.n_state:
            raise UsageError(
                f"--n-att {self.n_att} is more than --n-state {self.n_state}: "
                f"choose at most {self.n_state}"
            )
        if self.model == "gpt" and self.n_embd % self.n_head:
            raise UsageError(
                f"--n-embd {self.n_embd} is not divisible by --n-head {self.n_head}: "
                f"choose a multiple of {self.n_head}"
            )


@dataclass(frozen=True, slots=True)
class LearningRates:
    """What trains a model well, by optimizer: the largest rates of their schedules."""

    adam: float
    adamw: float
    sgd: float  # over the steps that a gradient is remembered: each has 1 - momentum of this


LEARNING_RATES: Mapping[str, LearningRates] = {
    "gpt": LearningRates(adam=0.01, adamw=0.01, sgd=0.1),
    "rnn": LearningRates(adam=0.01, adamw=0.01, sgd=0.5),
    "rnn-att": LearningRates(adam=0.01, adamw=0.01, sgd=0.3),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How the network is trained."""

    steps: int | None = None  # None: DEFAULT_STEPS, or those that `seconds` has time for
    seconds: float | None = None  # of training, evaluations not counted
    batch_size: int = 1
    optimizer: str = "adam"
    learning_rate: float | None = None  # None: that of LEARNING_RATES
    beta1: float = 0.85  # of Adam and AdamW, as the next two
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.01  # of AdamW
    momentum: float = 0.9  # of SGD
    clip_norm: float | None = None  # of the gradient of all parameters together
    schedule: str = "linear"
    decay: float = 0.998  # exponential: a step's factor, or that of a thousandth of `seconds`
    warmup: float = 0.05  # cosine: share of the training in which the rate rises
    averaging: float = 0.0  # share of the steps that the averaged weights look back on, 0: none
    weighting: str = "document"  # what weighs the same in the loss
    val_fraction: float = 0.0  # of the documents, held out
    test_fraction: float = 0.0  # of the documents, held out until the end
    eval_every: int | None = None  # steps; None: ten times in all
    patience: int | None = None  # evaluations without improvement that end the training
    granularity: str = "vector"
    dtype: str = "float32"
    initialization: str = "by-output"  # whose weights are drawn one after the other
    seed: int = 42
    threads: int = 1  # each takes a part of every batch

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        if self.steps is not None:
            _whole(self, "steps", 1, LARGEST_STEPS)
        if self.seconds is not None:
            _number(self, "seconds", *ABOVE_ZERO)
            if self.steps is not None:
                raise UsageError(
                    f"--steps {self.steps} and --seconds {self.seconds:g} are two budgets:"
                    " choose one"
                )
        _whole(self, "batch_size", 1, LARGEST_SIZE)
        _choice(self, "optimizer", OPTIMIZERS)
        if self.learning_rate is not None:
            _number(self, "learning_rate", *ABOVE_ZERO)
        for name in ("beta1", "beta2", "momentum", "warmup", "averaging"):
            _number(self, name, *SHARE)
        for name in ("val_fraction", "test_fraction"):
            _number(self, name, *SHARE)
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError(
                f"--val-fraction {self.val_fraction:g} and --test-fraction {self.test_fraction:g}"
                " leave nothing to train on: choose smaller ones"
            )
        _choice(self, "weighting", WEIGHTINGS)
        _number(self, "epsilon", *ABOVE_ZERO)
        _number(self, "weight_decay", lambda x: 0 <= x < inf, "a finite number from 0 up")
        if self.clip_norm is not None:
            _number(self, "clip_norm", *ABOVE_ZERO)
        _choice(self, "schedule", SCHEDULES)
        _number(self, "decay", lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        for name in ("eval_every", "patience"):
            if getattr(self, name) is not None:
                _whole(self, name, 1, LARGEST_STEPS)
                if self.val_fraction == 0:
                    raise UsageError(
                        f"{flag(name)} {getattr(self, name)} wants held-out documents:"
                        " choose a --val-fraction above 0"
                    )
        _choice(self, "granularity", GRANULARITIES)
        _choice(self, "dtype", DTYPES)
        _choice(self, "initialization", INITIALIZATIONS)
        _whole(self, "seed", 0, LARGEST_SEED)
        _whole(self, "threads", 1, LARGEST_SIZE)
        if self.threads > self.batch_size:
            raise UsageError(
                f"--threads {self.threads} is more than --batch-size {self.batch_size}, whose"
                f" documents they share: choose at most {self.batch_size}, or a larger batch"
            )


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """How text is drawn from a trained network; None leaves an option out."""

    temperature: float = 0.5  # 0 is greedy
    num_samples: int = 20
    top_k: int | None = None
    top_p: float | None = None
    prompt: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        _number(self, "temperature", lambda x: 0 <= x < inf, "a finite number from 0 (greedy) up")
        _whole(self, "num_samples", 1, LARGEST_SIZE)
        if self.top_k is not None:
            _whole(self, "top_k", 1, LARGEST_SIZE)
        if self.top_p is not None:
            _number(self, "top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        if type(self.prompt) is not str:
            raise _refusal("prompt", self.prompt, "is not text", "a string")
        if self.seed is not None:
            _whole(self, "seed", 0, LARGEST_SEED)


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
    "n_head": 4,
    "block_size": 16,
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
    "1s": {
        **RECIPE,
        "seconds": 1.0,
        "n_layer": 1,
        "n_embd": 32,
        "look_back": 3,
        "batch_size": 16,
        "learning_rate": 0.006,
        "weight_decay": 0.01,
    },
    "5s": {
        **RECIPE,
        "seconds": 5.0,
        "n_layer": 2,
        "n_embd": 48,
        "look_back": 3,
        "batch_size": 32,
        "learning_rate": 0.006,
        "weight_decay": 0.1,
    },
    "60s": {
        **RECIPE,
        "seconds": 60.0,
        "n_layer": 3,
        "n_embd": 48,
        "look_back": 2,
        "ensemble": 4,
        "batch_size": 32,
        "learning_rate": 0.005,
        "weight_decay": 0.1,
    },
}


# Settings that do nothing unless another has one of these values.
NEEDED = {
    "n_layer": ("model", ("gpt",)),
    "n_head": ("model", ("gpt",)),
    "n_state": ("model", ("rnn", "rnn-att")),
    "n_att": ("model", ("rnn-att",)),
    "look_back": ("model", ("gpt",)),
    "ensemble": ("model", ("gpt",)),
    "dropout": ("model", ("gpt",)),
    "weight_decay": ("optimizer", ("adamw",)),
    "momentum": ("optimizer", ("sgd",)),
    "decay": ("schedule", ("exponential",)),
    "warmup": ("schedule", ("cosine",)),
}


def configure(
    preset: str | None, overrides: Mapping[str, object]
) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a training run: the defaults, then the preset, then what was set explicitly.

    An override of None counts as not given. Raises `UsageError`.
    """
    if preset is not None and preset not in PRESETS:
        raise _refusal("preset", preset, "is unknown", " or ".join(PRESETS))
    given = {name: value for name, value in overrides.items() if value is not None}
    base = {} if preset is None else PRESETS[preset]
    settings: dict[str, Any] = {**base, **given}
    if len({"steps", "seconds"} & given.keys()) == 1:  # one budget for another
        settings.pop("steps" if "seconds" in given else "seconds", None)
    kinds = (ModelConfig, TrainConfig)
    in_model, in_training = ([field.name for field in fields(kind)] for kind in kinds)
    for name in settings:
        if name not in in_model and name not in in_training:
            raise UsageError(f"unknown setting {_show(name)}: leave it out")
    model = ModelConfig(**{name: settings[name] for name in in_model if name in settings})
    training = TrainConfig(**{name: settings[name] for name in in_training if name in settings})
    for name, (other, values) in NEEDED.items():
        value = getattr(model if other in in_model else training, other)
        if name in given and value not in values:
            raise UsageError(
                f"{flag(name)} {_show(given[name])} is for {flag(other)} {' or '.join(values)}"
                f" alone, not for {value}: leave it out"
            )
    if model.dropout > 0 and training.granularity != "vector":
        raise UsageError(
            f"--dropout {model.dropout:g} is for --granularity vector alone,"
            f" not for {training.granularity}: leave it out"
        )
    return model, training


def default_learning_rate(model: ModelConfig, training: TrainConfig) -> float:
    """The learning rate of a training that has none of its own."""
    rates = LEARNING_RATES[model.model]
    if training.optimizer == "sgd":
        return rates.sgd * (1 - training.momentum)
    return rates.adam if training.optimizer == "adam" else rates.adamw


Config = TypeVar("Config", ModelConfig, TrainConfig, SampleConfig)


def from_dict(kind: type[Config], values: object) -> Config:
    """Undo `dataclasses.asdict`: exactly the settings of `kind`, else `UsageError`."""
    if not isinstance(values, dict):
        raise UsageError(f"{kind.__name__} is not a table of settings: {_show(values)}")
    names = [field.name for field in fields(kind)]
    for name in names:
        if name not in values:
            raise UsageError(f"{kind.__name__} lacks the setting {name!r}")
    for name in values:
        if name not in names:
            raise UsageError(f"{kind.__name__} has no setting {_show(name)}")
    return kind(**values)


def flag(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + name.replace("_", "-")


def _whole(config: object, name: str, low: int, high: int) -> None:
    value = getattr(config, name)
    wanted = f"a whole number from {low} to {high}"
    if type(value) is not int:
        raise _refusal(name, value, "is not a whole number", wanted)
    if not low <= value <= high:
        raise _refusal(name, value, "is out of range", wanted)


def _number(config: object, name: str, valid: Callable[[float], bool], wanted: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(name, value, "is not a number", wanted)
    if not valid(value):
        raise _refusal(name, value, "is out of range", wanted)
    try:
        # 1 and 1.0 are the same setting, and 0 and -0.0.
        object.__setattr__(config, name, float(value) + 0.0)
    except OverflowError:
        raise _refusal(name, value, "is out of range", wanted) from None


def _choice(config: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if type(value) is not str or value not in known:
        raise _refusal(name, value, "is unknown", " or ".join(known))


def _refusal(name: str, value: object, problem: str, wanted: str) -> UsageError:
    return UsageError(f"{flag(name)} {_show(value)} {problem}: choose {wanted}")


def _show(value: object) -> str:
    """The value on one short line, however hostile it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        text = f"of {value.bit_length()} bits"  # Python refuses to print very long integers
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
