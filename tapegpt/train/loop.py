"""Steps, with evaluations and saves between them, until training is finished or told to stop."""

import logging
import random
import time
from dataclasses import replace
from typing import IO

from tapegpt.runs.history import Losses, finite, with_losses
from tapegpt.sampling import sample_in_turn
from tapegpt.sampling.stream import texts_of
from tapegpt.settings import SampleConfig
from tapegpt.train.baseline import baseline
from tapegpt.train.metrics import write_metrics
from tapegpt.train.progress import LONGEST_SAMPLE, Progress, SmoothedLoss, State, TimeLeft
from tapegpt.train.saving import Saver
from tapegpt.train.stopping import Clock
from tapegpt.train.trainer import Trainer

SECONDS_PER_CALL = 0.2  # of training between looks at signals and the clock
LOG = logging.getLogger("tapegpt")


def train(
    trainer: Trainer, saver: Saver, stop: list[int], log: IO[bytes] | None, quiet: bool
) -> None:
    """Do the steps that are left, until a signal says stop."""
    if not stop:
        trainer.advance(0)  # compiles what is not in the cache
    budget, clock = trainer.budget, Clock(trainer.elapsed)
    count, pace, smoothed = 1, 0.0, SmoothedLoss()
    counting: float | None = None  # what counting reaches, known from the first evaluation on
    start = (budget, trainer.step, trainer.elapsed)
    left = TimeLeft(*start, trainer.evaluation_in_steps, trainer.test_in_steps)
    with Progress(*start, trainer.tokens_per_step, quiet, left) as progress:
        while not (trainer.finished or stop):
            first, begin = trainer.step, trainer.elapsed
            count = min(count, budget.steps_ahead(first, begin, pace))
            losses = trainer.advance(count, pace)
            trainer.elapsed = clock.read()
            left.note_steps(trainer.step, trainer.elapsed)
            smoothed.add(losses)
            measured = {"seconds": trainer.elapsed}
            evaluations = budget.evaluations(trainer.step, trainer.elapsed)
            due = trainer.finished or evaluations > budget.evaluations(first, begin)
            evaluates = due and trainer.training.val_fraction > 0
            if evaluates and counting is None and not quiet:
                with clock.paused():
                    counting = baseline(trainer.data).loss
            begin_pause, sample = time.perf_counter(), None
            with clock.paused():
                if evaluates:
                    measured["val_loss"] = trainer.evaluate()
                    if trainer.stale == 0:  # before the last, which must not say so earlier
                        saver.keep_best()
                    if not quiet:
                        sample = _sample(trainer)
                if trainer.finished and trainer.training.test_fraction > 0:
                    measured["test_loss"] = trainer.test(saver.best_weights())
                    LOG.info("test_loss %.4f", measured["test_loss"])
                    saver.history = replace(saver.history, test_loss=finite(measured["test_loss"]))
                if due:
                    val_loss = finite(measured.get("val_loss"))
                    point = Losses(trainer.step, trainer.elapsed, finite(smoothed.value), val_loss)
                    saver.history = with_losses(saver.history, point)
                # Before the run is saved: a resumed one writes again what comes after it.
                write_metrics(log, first + 1, losses, measured)
                if evaluates or saver.is_due:
                    saver.save(worthy=evaluates)
            if due:
                left.note_pause(time.perf_counter() - begin_pause)
            val_loss = measured.get("val_loss")
            progress.update(
                State(trainer.step, trainer.elapsed, smoothed.value, val_loss, counting, sample)
            )
            pace = (trainer.elapsed - begin) / count
            count = max(1, min(4 * count, int(SECONDS_PER_CALL / pace)))


def _sample(trainer: Trainer) -> str:
    """A text that the network writes now; the random numbers of the training are left alone."""
    rng = random.Random(trainer.step)
    with trainer.predicting():
        config = SampleConfig(num_samples=1, length=LONGEST_SAMPLE)
        if trainer.training.text:
            (text,) = texts_of(trainer.compiled, trainer.tokenizer, config, rng)
            return "".join(text)
        return next(sample_in_turn(trainer.compiled, trainer.tokenizer, config, rng))
