"""Steps, with evaluations and saves between them, until training is finished or told to stop."""

import logging
from dataclasses import replace
from typing import IO

from tapegpt.runs.history import Losses, finite, with_losses
from tapegpt.train.metrics import write_metrics
from tapegpt.train.progress import Progress, SmoothedLoss
from tapegpt.train.saving import Saver
from tapegpt.train.stopping import Clock
from tapegpt.train.trainer import Trainer

SECONDS_PER_CALL = 0.2  # of training between looks at signals and the clock
LOG = logging.getLogger("tapegpt")


def train(
    trainer: Trainer, saver: Saver, stop: list[int], log: IO[bytes] | None, quiet: bool
) -> None:
    """Do the steps that are left, until a signal says stop."""
    trainer.advance(0)  # compiles what is not in the cache
    budget, clock = trainer.budget, Clock(trainer.elapsed)
    count, pace, smoothed = 1, 0.0, SmoothedLoss()
    with Progress(budget, trainer.step, trainer.elapsed, quiet) as progress:
        while not (trainer.finished or stop):
            first, begin = trainer.step, trainer.elapsed
            count = min(count, budget.steps_ahead(first, begin, pace))
            losses = trainer.advance(count, pace)
            trainer.elapsed = clock.read()
            smoothed.add(losses)
            measured = {"seconds": trainer.elapsed}
            evaluations = budget.evaluations(trainer.step, trainer.elapsed)
            due = trainer.finished or evaluations > budget.evaluations(first, begin)
            evaluates = due and trainer.training.val_fraction > 0
            with clock.paused():
                if evaluates:
                    measured["val_loss"] = trainer.evaluate()
                    if trainer.stale == 0:  # before the last, which must not say so earlier
                        saver.keep_best()
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
            progress.update(
                trainer.step, trainer.elapsed, float(losses[-1]), measured.get("val_loss")
            )
            pace = (trainer.elapsed - begin) / count
            count = max(1, min(4 * count, int(SECONDS_PER_CALL / pace)))
