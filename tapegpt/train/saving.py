"""When a training is saved, and what happens where it cannot be."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tapegpt.checkpoint import Array, Run, RunError, load, save
from tapegpt.errors import TapegptError
from tapegpt.run_folder import BEST, RunFolder, how_to_go_on
from tapegpt.runs.history import History
from tapegpt.train.trainer import Trainer

SAVE_EVERY = 60.0  # seconds
LEAST_SHARE = 100  # of a save's own time, from one save to the next, unless the user has chosen
LOG = logging.getLogger("tapegpt")


class Saver:
    """Saves a training now and then; where that fails, training goes on and it tries again.

    every: seconds from one save to the next; None: a minute, or as long as makes saving cost 1 %.
    rescue: where to save at the end what the run's own folder does not take.
    history: how the run came about; it is saved with the last state.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        every: float | None,
        rescue: Path | None,
        history: History,
    ) -> None:
        self.history = history
        self._trainer, self._folder, self._rescue = trainer, folder, rescue
        self._every, self._took = every, 0.0
        self._last = time.perf_counter()
        self._saved: int | None = None  # the step that the last save was after
        self._best: Run | None = None  # what is still to be saved as the best

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        every = max(SAVE_EVERY, LEAST_SHARE * self._took) if self._every is None else self._every
        return time.perf_counter() - self._last >= every

    def keep_best(self) -> None:
        """Save the state as it is now as the best one; it comes again if that fails."""
        self._best = self._trainer.snapshot()
        try:
            self._save_best()
        except TapegptError as error:
            self._best = _copied(self._best)  # before training goes on
            _warn(error)

    def best_weights(self) -> Mapping[str, Array] | None:
        """What to predict with at the end: the best state's weights; None if that is the last."""
        if self._trainer.best_loss is None or self._trainer.stale == 0:
            return None
        if self._best is not None:
            return self._best.weights
        try:
            return load(self._folder.best).weights
        except RunError as error:
            LOG.warning("%s; the last state is used instead of the best", error)
            return None

    def save(self, worthy: bool) -> None:
        """Save the last state; training goes on whether or not it can be.

        worthy: an evaluation or the whole training is finished, see `RunFolder.save`.
        """
        begin = time.perf_counter()
        try:
            self._save_best()
        except TapegptError as error:
            _warn(error)
        try:
            self._folder.save(self._snapshot(), worthy)
            self._saved = self._trainer.step
        except TapegptError as error:
            self._saved = None
            _warn(error)
        self._last = time.perf_counter()
        self._took = self._last - begin

    def finish(self, worthy: bool) -> None:
        """Save the last state once more, if it is not saved yet, and wherever that can be done.

        Raises `TapegptError` where that is not in the run's own folder.
        """
        problem: TapegptError | None = None
        try:
            self._save_best()
        except TapegptError as error:
            problem = error
        if problem is not None or self._saved != self._trainer.step or self._folder.is_apart:
            try:
                self._folder.save(self._snapshot(), worthy)
            except TapegptError as error:
                problem = error
        if problem is not None:
            raise problem if self._rescue is None else self._rescued(self._rescue, problem)

    def _snapshot(self) -> Run:
        return replace(self._trainer.snapshot(), history=self.history)

    def _save_best(self) -> None:
        if self._best is not None:
            self._folder.save_best(self._best)
            self._best = None

    def _rescued(self, rescue: Path, problem: TapegptError) -> TapegptError:
        try:
            save(self._snapshot(), rescue)
            with suppress(RunError):
                if self._trainer.best_loss is not None:
                    save(self._best or load(self._folder.best), rescue / BEST)
        except RunError as error:
            return RunError(f"{problem}; nor in --rescue: {error}")
        return RunError(
            f"{problem}; saved in {str(rescue)!r} instead: go on with {how_to_go_on(rescue)}"
        )


def _warn(error: TapegptError) -> None:
    LOG.warning("%s; training goes on, and it is tried again", error)


def _copied(run: Run) -> Run:
    tensors = {name: array.copy() for name, array in run.tensors.items()}
    optimizer = {
        slot: {name: array.copy() for name, array in arrays.items()}
        for slot, arrays in run.optimizer.items()
    }
    return replace(run, tensors=tensors, optimizer=optimizer)
