"""Another training that starts from the weights of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.bounds import flag
from tapegpt.checkpoint import Run
from tapegpt.corpus import Tokenizer
from tapegpt.errors import UsageError
from tapegpt.presets import configure
from tapegpt.setting import settings_of
from tapegpt.settings import ModelConfig, TrainConfig

READING = ("text", "bytes")  # settings of the training that say what a token is
FREE = ("dropout",)  # settings of the model that its weights do not depend on


def settings_from(
    run: Run, preset: str | None, settings: Mapping[str, object]
) -> tuple[ModelConfig, TrainConfig]:
    """The run's model, and a training of its own settings. Raises `UsageError`."""
    own = dict(settings)
    for name in settings_of(ModelConfig).keys() - set(FREE):
        kept = getattr(run.model, name)
        if own.pop(name, kept) != kept:
            raise UsageError(
                f"{flag(name)} {settings[name]} differs from {kept} in the run of --init-from:"
                " leave it out"
            )
    for name in READING:
        kept = getattr(run.training, name)
        if own.setdefault(name, kept) != kept:
            raise UsageError(
                f"the run of --init-from reads a text {'with' if kept else 'without'}"
                f" {flag(name)}: so must this one"
            )
    dropout = own.get("dropout", run.model.dropout)
    _, training = configure(preset, {**own, "model": run.model.model})
    model = {name: getattr(run.model, name) for name in settings_of(ModelConfig)}
    return ModelConfig(**{**model, "dropout": dropout}), training


def extended(
    run: Run, drawn: Mapping[str, NDArray[np.floating[Any]]], tokenizer: Tokenizer
) -> dict[str, NDArray[np.floating[Any]]]:
    """The run's weights for a tokenizer that has all its characters, and maybe more.

    drawn: weights as they begin, by name; rows of characters that the run does not know are
    theirs. Of a matrix of the vocabulary rows are characters: (vocab_size, width).
    """
    rows = tokenizer.encode(run.characters)
    if tokenizer.delimited:
        rows = np.append(rows, tokenizer.bos)
    weights = {}
    for name, source in run.weights.items():
        weights[name] = array = np.array(drawn[name])
        if array.shape == source.shape:
            array[:] = source
        elif name.endswith("count_in"):
            array[:, _counted_columns(rows, run.model.counting, tokenizer.vocab_size)] = source
        else:
            array[rows] = source
    return weights


def _counted_columns(
    tokens: NDArray[np.int32], orders: int, vocab_size: int
) -> NDArray[np.integer]:
    """Where what counts say of these tokens stands among that of all, see counted_features."""
    likely = np.arange(orders)[:, None] * vocab_size + tokens
    return np.append(likely, orders * vocab_size + np.arange(2 * orders))
