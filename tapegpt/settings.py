"""What a run is made of: frozen settings, validated when they are made.

A setting is one field of a dataclass. Beside its default stand what it may be, what it does, and
what it goes with: the command line, its help and all checks are derived from that. It is named
after its flag (`n_embd` is `--n-embd`), and a bad value raises `UsageError` with one line that
names the flag, the value and the remedy.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

from tapegpt.bounds import Choice, Number, Switch, Text, Whole, flag, show
from tapegpt.errors import UsageError
from tapegpt.models import registry as models
from tapegpt.setting import (
    ABOVE_ZERO,
    ACTIVATIONS,
    COUNT,
    DTYPES,
    FROM_ZERO,
    GRANULARITIES,
    INITIALIZATIONS,
    LARGEST_LAYERS,
    MODELS,
    OPTIMIZERS,
    POSITIONS,
    SCHEDULES,
    SEED,
    SHARE,
    SIZE,
    TO_ONE,
    VECTOR,
    WEIGHTINGS,
    ModelName,
    check_all,
    check_used,
    setting,
)
from tapegpt.train import optimizers

DEFAULT_STEPS = 1000
MOST_ORDERS = 16  # of counts


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network's kind and sizes."""

    model: str = setting("gpt", ModelName(), "model", "what kind of network learns")
    n_layer: int = setting(
        1, Whole(1, LARGEST_LAYERS), "model", "how many layers of attention follow each other"
    )
    n_embd: int = setting(16, SIZE, "model", "how many numbers stand for a character")
    n_head: int = setting(4, SIZE, "model", "how many heads share the attention of a layer")
    block_size: int = setting(
        16, SIZE, "model", "how many characters of a document the network reads"
    )
    n_state: int = setting(32, SIZE, "model", "how many numbers the state holds")
    n_att: int = setting(16, SIZE, "model", "how many numbers of the state fire")
    look_back: int = setting(
        0,
        Whole(0, LARGEST_LAYERS),
        "model",
        "how many earlier characters a position embeds beside its own",
    )
    ensemble: int = setting(
        1,
        Whole(1, LARGEST_LAYERS),
        "model",
        "how many networks are trained side by side and predict together",
    )
    dropout: float = setting(
        0.0,
        SHARE,
        "model",
        "the share of what a layer adds that is left out in training",
        VECTOR,
    )
    positions: str = setting(
        "learned",
        Choice(POSITIONS),
        "model",
        "how a position is known: by a table, or by turning queries and keys",
    )
    activation: str = setting(
        "relu",
        Choice(ACTIVATIONS),
        "model",
        "what stands between the two products of a layer; swiglu has a third, and is narrower",
    )
    qk_norm: bool = setting(False, Switch(), "model", "norm the queries and keys of every head")
    final_norm: bool = setting(False, Switch(), "model", "norm what the last product is given")
    zero_init: bool = setting(
        False, Switch(), "model", "begin with zeros where a layer adds, and in the last product"
    )
    softcap: float | None = setting(
        None, ABOVE_ZERO, "model", "keep logits between this and its negative, by tanh"
    )

    counting: int = setting(
        0,
        Whole(0, MOST_ORDERS),
        "model",
        "have the network know how likely each character is by counts of what followed the last"
        " one, two, ..., up to so many (Kneser-Ney): as inputs, and through a gate to its output",
        VECTOR,
    )

    def __post_init__(self) -> None:
        check_all(self)
        if self.look_back >= self.block_size:
            raise UsageError(
                f"--look-back {self.look_back} is not below --block-size {self.block_size}:"
                f" choose at most {self.block_size - 1}"
            )
        check_used([name for name in EXTRAS if getattr(self, name) != DEFAULTS[name]], self)
        models.MODELS[self.model].check(self)


# What a network may have beside its sizes: never without effect.
EXTRAS = (
    *("look_back", "ensemble", "dropout", "positions", "activation"),
    *("qk_norm", "final_norm", "zero_init", "softcap", "counting"),
)
DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}


def _default_rates() -> str:
    """By optimizer, and by model where those differ."""
    shown = []
    for name, optimizer in optimizers.OPTIMIZERS.items():
        rates = [f"{optimizer.rate_for(model):g}" for model in models.MODELS.values()]
        factor = f"(1 - {optimizer.memory}) " if optimizer.memory else ""
        values = " / ".join(rates if len(set(rates)) > 1 else rates[:1])
        shown.append(f"{factor}{values} for {name}")
    return f"{', '.join(shown)} ({' / '.join(MODELS)})"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What the network is trained on, and how."""

    text: bool = setting(
        False,
        Switch(),
        "text",
        "read the corpus as one stream of characters, the ends of lines too: a step learns from"
        " windows of --block-size characters, which the seed draws from anywhere in it",
    )
    bytes: bool = setting(
        False, Switch(), "text", "read any files as --text: their bytes are the characters"
    )
    eval_windows: int | None = setting(
        None,
        COUNT,
        "text",
        "measure val_loss on so many random windows, as nanoGPT does, instead of once for every"
        " held-out character, from half a block before it at least (windows overlap by half)",
    )
    steps: int | None = setting(  # None: DEFAULT_STEPS, or those that `seconds` has time for
        None, COUNT, "length", "how many steps to train in all", default=str(DEFAULT_STEPS)
    )
    seconds: float | None = setting(
        None,
        ABOVE_ZERO,
        "length",
        "train for so long instead, evaluations not counted; the schedule follows the clock; alone"
        " it trains the preset that is made for about as many seconds",
    )
    batch_size: int = setting(1, SIZE, "length", "how many documents a step learns from")
    optimizer: str = setting("adam", Choice(OPTIMIZERS), "optimizer", "what changes the weights")
    learning_rate: float | None = setting(  # None: as the model and the optimizer say
        None, ABOVE_ZERO, "optimizer", "the largest rate of the schedule", default=_default_rates()
    )
    beta1: float = setting(
        0.85, SHARE, "optimizer", "the share that the mean gradient keeps at a step"
    )
    beta2: float = setting(
        0.99, SHARE, "optimizer", "the share that the mean squared gradient keeps at a step"
    )
    epsilon: float = setting(
        1e-8, ABOVE_ZERO, "optimizer", "what is added to the root of that mean"
    )
    weight_decay: float = setting(
        0.01,
        FROM_ZERO,
        "optimizer",
        "how much all weights shrink, embeddings included",
    )
    cautious_decay: bool = setting(
        False,
        Switch(),
        "optimizer",
        "shrink only weights that the step brings nearer to 0",
    )
    adam_rate: float = setting(
        0.004,
        ABOVE_ZERO,
        "optimizer",
        "the largest rate of embeddings and of the last product, which AdamW changes",
    )
    momentum: float = setting(
        0.9,
        SHARE,
        "optimizer",
        "the share that the velocity keeps at a step",
    )
    clip_norm: float | None = setting(
        None, ABOVE_ZERO, "optimizer", "shorten a gradient of all weights that is longer than this"
    )
    schedule: str = setting(
        "linear", Choice(SCHEDULES), "optimizer", "how the learning rate changes"
    )
    decay: float = setting(
        0.998,
        TO_ONE,
        "optimizer",
        "the factor of the rate at a step, or in a thousandth of --seconds",
    )
    warmup: float = setting(
        0.05,
        SHARE,
        "optimizer",
        "the share of the training in which the rate rises",
    )
    cooldown: float = setting(
        0.5,
        TO_ONE,
        "optimizer",
        "the last share of the training, in which the rate falls to 0",
    )
    final_rate: float = setting(
        0.0, SHARE, "optimizer", "the share of the rate that is left at the end"
    )
    averaging: float = setting(
        0.0,
        SHARE,
        "optimizer",
        "predict with the mean of the weights over this last share of the steps",
    )
    weighting: str = setting(
        "document", Choice(WEIGHTINGS), "optimizer", "what weighs the same in the loss"
    )
    val_fraction: float = setting(
        0.0,
        SHARE,
        "held-out documents",
        "the share of the documents, or of a text at its end, held out to measure val_loss (nats,"
        " mean over tokens); the best state of the run is kept in the folder best of --out",
        default="0; of a text 0.1, at most a million characters",
    )
    test_fraction: float = setting(
        0.0,
        SHARE,
        "held-out documents",
        "the share of the documents, or of a text at its very end, held out until the end to"
        " measure test_loss: that of the best state where there is a --val-fraction, else of the"
        " last",
    )
    eval_every: int | None = setting(  # None: as `stopping` chooses
        None,
        COUNT,
        "held-out documents",
        "measure val_loss every so many steps",
        default="after one pass over the documents, two, four and so on, and every tenth of the"
        " training",
    )
    patience: int | None = setting(
        None,
        COUNT,
        "held-out documents",
        "stop after so many evaluations without improvement",
    )
    granularity: str = setting(
        "vector", Choice(GRANULARITIES), "computation", "how finely the network is recorded"
    )
    dtype: str = setting("float32", Choice(DTYPES), "computation", "the type of all numbers")
    initialization: str = setting(
        "by-output",
        Choice(INITIALIZATIONS),
        "computation",
        "whose weights are drawn one after the other",
    )
    seed: int = setting(42, SEED, "computation", "what all random numbers follow from")
    threads: int = setting(1, SIZE, "computation", "how many processors share each batch")

    def __post_init__(self) -> None:
        if self.bytes is True:
            object.__setattr__(self, "text", True)
        if self.steps is None and self.seconds is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        check_all(self)
        if self.steps is not None and self.seconds is not None:
            raise UsageError(
                f"--steps {self.steps} and --seconds {self.seconds:g} are two budgets: choose one"
            )
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError(
                f"--val-fraction {self.val_fraction:g} and --test-fraction {self.test_fraction:g}"
                " leave nothing to train on: choose smaller ones"
            )
        if self.eval_windows is not None and not self.text:
            raise UsageError(
                f"--eval-windows {self.eval_windows} is for --text alone: leave it out"
            )
        for name in ("eval_every", "patience", "eval_windows"):
            if getattr(self, name) is not None and self.val_fraction == 0:
                raise UsageError(
                    f"{flag(name)} {getattr(self, name)} wants held-out documents:"
                    " choose a --val-fraction above 0"
                )
        if self.optimizer == "muon" and self.granularity != "vector":
            raise UsageError(
                "--optimizer muon moves whole matrices: choose --granularity vector, not"
                f" {self.granularity}"
            )
        if self.threads > self.batch_size:
            raise UsageError(
                f"--threads {self.threads} is more than --batch-size {self.batch_size}, whose"
                f" documents they share: choose at most {self.batch_size}, or a larger batch"
            )


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """How text is drawn from a trained network; None leaves an option out."""

    temperature: float = setting(
        0.5,
        Number(FROM_ZERO.valid, "a finite number from 0 (greedy) up"),
        "sampling",
        "how freely to choose: 0 takes the likeliest character",
    )
    num_samples: int | None = setting(
        None, SIZE, "sampling", "how many texts to draw", default="20; of a run with --text 1"
    )
    length: int | None = setting(
        None,
        COUNT,
        "sampling",
        "how many characters to draw at most, beside the prompt; beyond --block-size the network"
        " sees the last third of it to all of it",
        default="500 of a run with --text, else as long as a document is",
    )
    stop: str | None = setting(
        None, Text(), "sampling", "end a text before these characters, where it comes to them"
    )
    top_k: int | None = setting(
        None, SIZE, "sampling", "choose among so many likeliest characters alone"
    )
    top_p: float | None = setting(
        None, TO_ONE, "sampling", "choose among the likeliest characters of this total share alone"
    )
    prompt: str = setting("", Text(), "sampling", "how every text begins")
    seed: int | None = setting(
        None, SEED, "sampling", "what the random choices follow from", default="a new one each time"
    )

    def __post_init__(self) -> None:
        check_all(self)


Config = TypeVar("Config", ModelConfig, TrainConfig, SampleConfig)


def from_dict(kind: type[Config], values: object) -> Config:
    """Undo `dataclasses.asdict`; a setting that is not named has its default.

    Raises `UsageError` for one that there is not, or that cannot be right.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{kind.__name__} is not a table of settings: {show(values)}")
    names = [field.name for field in fields(kind)]
    for name in values:
        if name not in names:
            raise UsageError(f"{kind.__name__} has no setting {show(name)}")
    return kind(**values)
