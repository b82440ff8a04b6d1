"""A model of text: made from settings, trained, asked, saved and loaded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt import checkpoint
from tapegpt.api.texts import Source, Text, corpus_of
from tapegpt.api.words import pythons_words
from tapegpt.checkpoint import Run
from tapegpt.errors import TapegptError, UsageError
from tapegpt.models.model import Model
from tapegpt.models.registry import add_model, parameter_shapes
from tapegpt.run_folder import best_of
from tapegpt.setting import check_used
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig

Weights = Mapping[str, NDArray[np.floating]]


class LanguageModel:
    """A network, its weights, and the characters that it knows.

        model = LanguageModel(MyNetwork(), corpus, n_embd=64)
        train(model, corpus, steps=1000)
        print(*model.sample(5), sep="\\n")

    network: a `Network`, or the name of one of the package's: "gpt", "rnn", "rnn-att". corpus: a
    Corpus, or what one can be made of, for its characters; a string of those will do. With a Text
    it is a model of a text as one stream. settings: those of the model as on the command line
    (`n_embd`, `n_layer`, `block_size`, ...). Raises TapegptError for settings that cannot be right.
    seed, dtype: of the first weights.
    """

    def __init__(
        self,
        network: str | Model,
        corpus: Source,
        *,
        seed: int = 42,
        dtype: str = "float32",
        **settings: Any,
    ) -> None:
        known = corpus_of(corpus)
        with pythons_words():
            config = checked(ModelConfig, {"model": name_of(network), **settings})
            check_used(settings, config)
            given = {"seed": seed, "dtype": dtype, "text": isinstance(known, Text)}
            training = checked(TrainConfig, given)
        self._run = Run(
            config,
            training,
            known.characters,
            step=0,
            elapsed=0.0,
            best_loss=None,
            stale=0,
            random_state=random.Random(seed).getstate(),
            documents=len(known),
            corpus_digest=known.digest,
        )

    @classmethod
    def _of(cls, run: Run) -> LanguageModel:
        model: LanguageModel = cls.__new__(LanguageModel)
        model._run = run
        return model

    def __repr__(self) -> str:
        size = sum(rows * columns for rows, columns in self.shapes.values())
        return (
            f"LanguageModel({self.settings.model!r}, {size} weights,"
            f" {len(self.characters)} characters, step {self.step})"
        )

    @property
    def settings(self) -> ModelConfig:
        """The sizes of the network."""
        return self._run.model

    @property
    def training(self) -> TrainConfig:
        """The settings of the last training."""
        return self._run.training

    @property
    def characters(self) -> str:
        """The characters that it knows, in the order of their columns in `logits`."""
        return self._run.characters

    @property
    def step(self) -> int:
        """How many steps the last training has done."""
        return self._run.step

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of every weight by name: of a matrix (outputs, inputs)."""
        return parameter_shapes(self._run.model, self._run.vocab_size)

    @property
    def weights(self) -> dict[str, NDArray[np.floating]]:
        """A copy of every weight by name, those that it predicts with."""
        return {name: array.copy() for name, array in self._with_weights().weights.items()}

    def set_weights(self, weights: Mapping[str, ArrayLike]) -> None:
        """Replace weights by name, some or all; UsageError for a name or shape that is wrong."""
        new = self.weights
        for name, value in weights.items():
            if name not in new:
                raise UsageError(f"there is no weight {name!r}: choose of {', '.join(new)}")
            given = np.asarray(value, self.training.dtype)
            if given.shape != new[name].shape:
                raise UsageError(
                    f"the weight {name!r} has the shape {new[name].shape}, not {given.shape}"
                )
            if not np.isfinite(given).all():
                raise UsageError(f"the weight {name!r} holds a value that is not finite")
            new[name] = given.copy()
        self._run = replace(
            self._run,
            training=replace(self.training, averaging=0.0),
            tensors=new,
            optimizer={},
            best_loss=None,
        )

    def sample(self, num_samples: int | None = None, **settings: Any) -> Iterator[str]:
        """Draw texts, one after the other.

        num_samples: 20 where nothing is said, of a model of a Text one. settings: temperature,
        length, stop, top_k, top_p, prompt, seed, as on the command line.
        """
        from tapegpt.sampling import sample
        from tapegpt.sampling.stream import sample_text

        with pythons_words():
            config = checked(SampleConfig, {"num_samples": num_samples, **settings})
        run = self._with_weights()
        goes_on = run.training.text or config.length is not None or config.stop is not None
        texts = map("".join, sample_text(run, config)) if goes_on else sample(run, config)
        return _in_words(texts)

    def loss(self, texts: str | Iterable[str] | Text) -> float:
        """The mean loss over the tokens of a document or of several, or of a text, in nats.

        A document ends with a token of its own; what lies beyond block_size does not count. Of a
        text every character counts once, but the first; see `tapegpt eval`.
        """
        from tapegpt.runs.measure import measure
        from tapegpt.runs.text import whole

        with pythons_words():
            if self.training.text:
                if not isinstance(texts, (str, Text)):
                    raise UsageError(f"the model is of a text: give a Text, not {texts!r:.60}")
                text = Text(texts) if isinstance(texts, str) else texts
                part = whole(text.learnt_from, self.settings.block_size)
                return measure(self._with_weights(), part).nats_per_token
            if isinstance(texts, Text):
                raise UsageError("the model is of documents: give a document, or several")
            documents = [texts] if isinstance(texts, str) else list(texts)
            if not documents:
                raise UsageError("loss wants at least one document")
            return measure(self._with_weights(), documents).nats_per_token

    def logits(self, text: str) -> NDArray[np.floating]:
        """The logits of the token after the start, after text[:1], text[:2], ... and all of it.

        (len(text) + 1, characters + 1): a column for each of `characters`, the last for the end.
        Of a model of a Text, which has no start and no end, (len(text), characters).
        """
        from tapegpt.api.evaluation import logits_of

        with pythons_words():
            return logits_of(self._with_weights(), text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save it in a folder, which `load` and the command line can read.

        Replaces a model that is there. Raises TapegptError for a folder that holds anything else,
        or cannot be written.
        """
        folder = Path(path)
        with pythons_words():
            try:
                others = folder.is_dir() and os.listdir(folder)
                if others and not checkpoint.looks_like_a_run(folder):
                    raise TapegptError(f"{str(folder)!r} holds other things: choose a new folder")
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TapegptError(f"cannot write {str(folder)!r}: {error.strerror}") from error
            checkpoint.save(self._saved(), folder)

    def _with_weights(self) -> Run:
        """The run with weights: the first ones, where it never had others."""
        if not self._run.tensors:
            from tapegpt.train.initialization import draw_weights

            dtype, run = self.training.dtype, self._run
            tensors = {name: np.zeros(shape, dtype) for name, shape in self.shapes.items()}
            rng = random.Random(run.training.seed)
            draw_weights(tensors, run.model, run.training.initialization, rng)
            self._run = replace(run, tensors=tensors)
        return self._run

    def _saved(self) -> Run:
        """The run with all that a file holds."""
        run = self._with_weights()
        missing = [
            name for name in checkpoint.state_names(run.training) if name not in run.optimizer
        ]
        zeros = {
            name: {key: np.zeros_like(array) for key, array in run.tensors.items()}
            for name in missing
        }
        rate = run.training.learning_rate
        if rate is None:
            from tapegpt.presets import default_learning_rate

            rate = default_learning_rate(run.model, run.training)
        training = replace(run.training, learning_rate=rate)
        return replace(run, training=training, optimizer={**run.optimizer, **zeros})


class GPT(LanguageModel):
    """The GPT of microgpt: `GPT(corpus, n_layer=1, n_embd=16, n_head=4, block_size=16)`.

    See LanguageModel.
    """

    def __init__(self, corpus: Source, **settings: Any) -> None:
        super().__init__("gpt", corpus, **settings)


class RNN(LanguageModel):
    """A recurrent net: `RNN(corpus, n_embd=16, n_state=32, block_size=16)`. See LanguageModel."""

    def __init__(self, corpus: Source, **settings: Any) -> None:
        super().__init__("rnn", corpus, **settings)


def load(path: str | os.PathLike[str], network: Model | None = None) -> LanguageModel:
    """The model that was saved in a folder, by Python or by the command line: its best state.

    network: the network of one's own that it was made with, if that has not been used yet: loading
    imports nothing. Raises TapegptError for what is no whole, undamaged model.
    """
    if network is not None:
        name_of(network)
    with pythons_words():
        return LanguageModel._of(checkpoint.load(best_of(Path(path))))


def name_of(network: str | Model) -> str:
    """The name of a network in settings: that of one's own is its class's, by module."""
    if isinstance(network, str):
        return network
    if not isinstance(network, Model):
        raise UsageError(f"{network!r:.60} is no network: make a subclass of tapegpt.Network")
    kind = type(network)
    name = f"{kind.__module__}:{kind.__qualname__}"
    add_model(name, network)
    return name


def checked(kind: Any, settings: Mapping[str, Any]) -> Any:
    """A configuration; UsageError for a setting that there is not."""
    names = kind.__dataclass_fields__
    for name in settings:
        if name not in names:
            from tapegpt.bounds import did_you_mean

            raise UsageError(f"there is no setting {name!r}{did_you_mean(name, names)}")
    return kind(**settings)


def _in_words(texts: Iterator[str]) -> Iterator[str]:
    with pythons_words():
        yield from texts


def copied(run: Run) -> Run:
    """The run with arrays of its own."""
    return replace(
        run,
        tensors={name: array.copy() for name, array in run.tensors.items()},
        optimizer={
            slot: {name: array.copy() for name, array in arrays.items()}
            for slot, arrays in run.optimizer.items()
        },
    )
