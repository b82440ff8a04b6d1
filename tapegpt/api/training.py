"""Training a model, with a callback between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.api.language_model import LanguageModel, checked, copied
from tapegpt.api.texts import Corpus, Source, Text, corpus_of
from tapegpt.api.words import pythons_words
from tapegpt.errors import DivergedError, UsageError
from tapegpt.presets import TEXT_VAL_FRACTION
from tapegpt.setting import check_used
from tapegpt.settings import TrainConfig
from tapegpt.train.data import with_held_out

SECONDS_PER_CALL = 0.2  # of training between callbacks


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come."""

    step: int
    seconds: float  # of training, evaluations not counted
    losses: NDArray[np.float64] = field(repr=False)  # of the steps since the last callback, nats
    val_loss: float | None  # the last since then, where it was measured

    @property
    def loss(self) -> float:
        """The loss of the last step."""
        return float(self.losses[-1])


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training has measured."""

    losses: NDArray[np.float64] = field(repr=False)  # of every step, nats
    val_losses: dict[int, float]  # by step
    test_loss: float | None
    seconds: float

    @property
    def loss(self) -> float:
        """The loss of the last step."""
        return float(self.losses[-1])


def train(
    model: LanguageModel,
    corpus: Source,
    callback: Callable[[Progress], object] | None = None,
    every: int | None = None,
    **settings: Any,
) -> Trained:
    """Train a model on a corpus, or one of a text on a Text; it has the new weights afterwards.

    settings: as on the command line: steps or seconds, batch_size, optimizer, learning_rate,
    schedule, val_fraction, threads, seed, ... A model that has not been trained yet becomes what
    the same command makes of the same documents or text, to the bit; any other begins with its
    weights, and a fresh optimizer. With a val_fraction, which a text has unless you choose 0, it
    gets the best state's weights, else the last's.

    callback: called with a Progress about five times a second, or after so many steps as `every`
    says; where it returns True training stops. An exception from it, or Ctrl-C, ends training
    too: the model has the weights as they then are.

    Raises TapegptError for settings that cannot be right, characters that the model does not know,
    and DivergedError where a loss or a weight is not finite; the model is then as it was.
    """
    known = corpus_of(corpus)
    if every is not None and every < 1:
        raise UsageError(f"every {every!r} is not a number of steps: choose 1 or more")
    with pythons_words():
        config = _settings(model, known, settings)
        # Numba is imported, and kernels are compiled, from here on.
        from tapegpt.train.trainer import Trainer

        run = model._run
        trainer = Trainer(run.model, config, known.learnt_from, run.characters)
        if trainer.tokenizer.characters != run.characters:
            unknown = sorted(set(trainer.tokenizer.characters) - set(run.characters))
            raise UsageError(
                f"the corpus has characters that the model does not know, {''.join(unknown)!r:.60}:"
                " make the model with a corpus that has them"
            )
        if run.tensors:
            trainer.begin_with({name: np.asarray(a) for name, a in run.weights.items()})
        return _Session(model, trainer, callback, every).run()


def _settings(model: LanguageModel, corpus: Corpus | Text, settings: dict[str, Any]) -> TrainConfig:
    kept = {"seed": model.training.seed, "dtype": model.training.dtype}
    if settings.get("dtype", kept["dtype"]) != kept["dtype"]:
        raise UsageError(f"the model's weights are {kept['dtype']}: make it with another dtype")
    if settings.get("text") or settings.get("bytes"):
        raise UsageError("a model is of a text where it is made with a Text: leave text out")
    if model.training.text != isinstance(corpus, Text):
        of, other = ("a text", "a Text") if model.training.text else ("documents", "a Corpus")
        raise UsageError(f"the model is of {of}: train it on {other}, not on {corpus!r}")
    if isinstance(corpus, Text):
        kept |= {"text": True, "val_fraction": TEXT_VAL_FRACTION}
    config: TrainConfig = checked(TrainConfig, {**kept, **settings})
    check_used(settings, model.settings, config)
    return with_held_out(config, corpus.learnt_from, "val_fraction" in settings)


class _Session:
    def __init__(
        self,
        model: LanguageModel,
        trainer: Any,
        callback: Callable[[Progress], object] | None,
        every: int | None,
    ) -> None:
        self._model, self._trainer = model, trainer
        self._callback, self._every = callback, every
        self._losses: list[NDArray[np.float64]] = []
        self._val_losses: dict[int, float] = {}
        self._best: Any = None
        self._reported = 0  # calls of the trainer whose losses the callback has seen
        self._val_loss: float | None = None  # that it has not seen

    def run(self) -> Trained:
        from tapegpt.train.stopping import Clock

        trainer = self._trainer
        trainer.advance(0)
        trainer.compiled.load()
        clock = Clock(0.0)
        test_loss, stopped, diverged = None, False, False
        count, pace = self._every or 1, 0.0
        try:
            while not (trainer.finished or stopped):
                first, begin = trainer.step, trainer.elapsed
                count = min(count, trainer.budget.steps_ahead(first, begin, pace))
                losses = trainer.advance(count, pace)
                trainer.elapsed = clock.read()
                with clock.paused():
                    val_loss = self._evaluate(first, begin)
                    self._losses.append(losses)
                    stopped = self._report(val_loss)
                pace = (trainer.elapsed - begin) / count
                ahead = max(1, min(4 * count, int(SECONDS_PER_CALL / max(pace, 1e-9))))
                count = ahead if self._every is None else self._every - trainer.step % self._every
        except DivergedError:
            diverged = True
            raise
        finally:
            if trainer.step > 0 and not diverged:
                self._model._run = self._best or copied(trainer.snapshot())
        if trainer.training.test_fraction > 0:
            test_loss = trainer.test(None if self._best is None else self._best.weights)
        losses = np.concatenate(self._losses) if self._losses else np.zeros(0)
        return Trained(losses, self._val_losses, test_loss, trainer.elapsed)

    def _report(self, val_loss: float | None) -> bool:
        """Call back, if it is time to; whether training is to stop."""
        trainer, self._val_loss = self._trainer, self._val_loss if val_loss is None else val_loss
        due = self._every is None or trainer.step % self._every == 0 or trainer.finished
        if self._callback is None or not due:
            return False
        losses = np.concatenate(self._losses[self._reported :])
        progress = Progress(trainer.step, trainer.elapsed, losses, self._val_loss)
        self._reported, self._val_loss = len(self._losses), None
        return self._callback(progress) is True

    def _evaluate(self, step: int, elapsed: float) -> float | None:
        """The held-out loss, where an evaluation has become due since a step."""
        trainer, budget = self._trainer, self._trainer.budget
        now = budget.evaluations(trainer.step, trainer.elapsed)
        due = trainer.finished or now > budget.evaluations(step, elapsed)
        if not due or trainer.training.val_fraction == 0:
            return None
        loss = float(trainer.evaluate())
        self._val_losses[trainer.step] = loss
        if trainer.stale == 0:
            self._best = copied(trainer.snapshot())
        return loss
