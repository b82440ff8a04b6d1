"""tapegpt train"""

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapegpt.atomic_files import locked
from tapegpt.bounds import flag
from tapegpt.checkpoint import Run, discard, load, save
from tapegpt.compiler import require_compiler
from tapegpt.corpus import default_corpus, read_again, read_documents
from tapegpt.errors import TapegptError, UsageError
from tapegpt.host import processors
from tapegpt.presets import configure
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig, check_used, from_dict
from tapegpt.terminal import print_texts
from tapegpt.train.progress import Progress
from tapegpt.train.stopping import Clock

if TYPE_CHECKING:
    from tapegpt.train.trainer import Trainer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_PER_CALL = 0.2  # of training between looks at signals and the clock
CHANGEABLE = ("steps", "seconds", "eval_every", "patience", "threads")  # when a run is resumed
BEST = "best"  # the folder, beside the last state of a run, of the one with the least val_loss
LOG = logging.getLogger("tapegpt")


class MetricsError(TapegptError):
    """A line of --metrics could not be written."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        super().__init__(
            f"cannot write --metrics {str(path)!r}: {error.strerror}: choose another file"
        )


def run(
    data: Path | None,
    preset: str | None,
    settings: Mapping[str, object],
    out: Path,
    resume: bool,
    metrics: Path | None,
    quiet: bool,
) -> int:
    """Train, save, print samples. Returns the exit code."""
    with ExitStack() as held:
        saved = None
        if resume:
            if out.is_dir():  # before the run is read: another process may be about to replace it
                held.enter_context(_locked(out))
            saved = load(out)
            model, training = _resumed_settings(saved, preset, settings, out)
        else:
            model, training = configure(preset, settings)
        path = data or default_corpus()
        documents = read_again(path, saved.corpus_digest) if saved else read_documents(path)

        # Numba is imported, and kernels are compiled, from here on.
        require_compiler()
        from tapegpt.first_run import helped
        from tapegpt.sampling import sample_in_turn
        from tapegpt.train.trainer import Trainer

        stop = held.enter_context(_stop_signals())
        if saved is None:
            trainer = Trainer(model, training, documents)
        else:
            trainer = Trainer.resumed(replace(saved, training=training), documents)
        with helped(training.dtype, trainer.recording.kernels):
            trainer.recording.load()
        _make_folder(out)
        if saved is None:
            held.enter_context(_locked(out))
        with _open_metrics(metrics, trainer.step) as log:
            LOG.info(
                "%d documents, %d characters, %d parameters, %s %s",
                len(documents),
                trainer.tokenizer.vocab_size - 1,
                sum(weights.size for weights in trainer.recording.weights.values()),
                training.granularity,
                training.dtype,
            )
            for remark in trainer.remarks:
                LOG.log(logging.WARNING if remark.is_warning else logging.INFO, remark.text)
            if training.threads > processors():
                LOG.warning(
                    "--threads %d is more than there are processors: --threads %d is as fast",
                    training.threads,
                    processors(),
                )
            try:
                _train(trainer, out, stop, log, quiet)
            except (OSError, MetricsError):  # a line could not be written: the training is kept
                _save(trainer, out)
                raise
            _save(trainer, out)
    if stop:
        LOG.warning(
            "stopped after step %d%s; saved in %s%s",
            trainer.step,
            "" if training.steps is None else f" of {training.steps}",
            out,
            "" if trainer.finished else ": go on with --resume",
        )
        return 128 + stop[0]
    if training.patience is not None and trainer.stale >= training.patience:
        LOG.info("%d evaluations without improvement: stopped early", trainer.stale)
    if trainer.best_loss is not None:
        LOG.info("least val_loss %.4f, saved in %s", trainer.best_loss, out / BEST)
    LOG.info("saved in %s", out)
    with trainer.predicting():
        texts = sample_in_turn(trainer.recording, trainer.tokenizer, SampleConfig(), trainer.rng)
        print_texts(texts)
    return 0


def _train(
    trainer: "Trainer", out: Path, stop: list[int], log: IO[bytes] | None, quiet: bool
) -> None:
    """Do the steps that are left, with evaluations between them, until a signal says stop."""
    trainer.advance(0)  # compiles what is not in the cache
    budget, clock = trainer.budget, Clock(trainer.elapsed)
    count, pace = 1, 0.0
    with Progress(budget, trainer.step, trainer.elapsed, quiet) as progress:
        while not (trainer.finished or stop):
            first, begin = trainer.step, trainer.elapsed
            count = min(count, budget.steps_ahead(first, begin, pace))
            losses = trainer.advance(count, pace)
            trainer.elapsed = clock.read()
            measured = {"seconds": trainer.elapsed}
            evaluations = budget.evaluations(trainer.step, trainer.elapsed)
            due = trainer.finished or evaluations > budget.evaluations(first, begin)
            with clock.paused():
                evaluates = due and trainer.training.val_fraction > 0
                if evaluates:
                    measured["val_loss"] = _evaluate(trainer, out)
                if trainer.finished and trainer.training.test_fraction > 0:
                    measured["test_loss"] = _test(trainer, out)
                # Before the run is saved: a resumed one writes again what comes after it.
                _write_metrics(log, first + 1, losses, measured)
                if evaluates:
                    _save(trainer, out)
            progress.update(
                trainer.step, trainer.elapsed, float(losses[-1]), measured.get("val_loss")
            )
            pace = (trainer.elapsed - begin) / count
            count = max(1, min(4 * count, int(SECONDS_PER_CALL / pace)))


def _evaluate(trainer: "Trainer", out: Path) -> float:
    """Returns the loss on the held-out documents; saves the run beside the last one if it is best.

    That comes first: the last must not say that there is a best one before there is.
    """
    loss = trainer.evaluate()
    if trainer.stale == 0:
        save(trainer.snapshot(), out / BEST)
    return loss


def _test(trainer: "Trainer", out: Path) -> float:
    """Returns the loss on the test documents: of the best state, where evaluations found one."""
    weights = None if trainer.best_loss is None else load(out / BEST).weights
    loss = trainer.test(weights)
    LOG.info("test_loss %.4f", loss)
    return loss


def _save(trainer: "Trainer", out: Path) -> None:
    """Save the run as it is now, and leave no best one of a run that was there before it."""
    save(trainer.snapshot(), out)
    if trainer.best_loss is None:
        discard(out / BEST)


def _resumed_settings(
    saved: Run, preset: str | None, settings: Mapping[str, object], out: Path
) -> tuple[ModelConfig, TrainConfig]:
    """The saved run's settings, but for those that the command line may change."""
    if preset is not None:
        raise UsageError(f"--preset {preset} does not go with --resume: the run has its settings")
    changed = {}
    for name, value in settings.items():
        kept = getattr(saved.model, name, getattr(saved.training, name, None))
        if name in CHANGEABLE:
            changed[name] = value
        elif value != kept:
            raise UsageError(
                f"{flag(name)} {value} differs from {kept} in the run: leave it out, or start anew"
                " in another --out"
            )
    budget = {"steps": None, "seconds": None} if changed.keys() & {"steps", "seconds"} else {}
    training = from_dict(TrainConfig, {**asdict(saved.training), **budget, **changed})
    check_used(settings, saved.model, training)
    for name, total, done in (
        ("steps", training.steps, saved.step),
        ("seconds", training.seconds, saved.elapsed),
        ("patience", training.patience, saved.stale),
    ):
        if total is not None and total <= done:
            raise UsageError(
                f"the run in {out} has spent its {flag(name)} {total}:"
                f" choose {flag(name)} above {done}"
            )
    return saved.model, training


def _make_folder(out: Path) -> None:
    """Find out before training, not after it, that a run cannot be saved there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> TapegptError:
    problem = f"cannot write --out {str(out)!r}: {error.strerror}: choose another folder"
    return TapegptError(problem)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes from saving runs there."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(out))
        except BlockingIOError as error:
            raise TapegptError(
                f"another process is training in --out {str(out)!r}: wait for its end, or choose"
                " another --out"
            ) from error
        except OSError as error:
            raise _cannot_write(out, error) from error
        yield


@contextmanager
def _open_metrics(path: Path | None, step: int) -> Iterator[IO[bytes] | None]:
    """Go on after the lines of so many steps: a process that was killed may have left more."""
    if path is None:
        yield None
        return
    try:
        if step > 0 and path.is_file():
            os.truncate(path, _metrics_until(path, step))
        stream = path.open("ab" if step > 0 else "wb", buffering=0)
    except OSError as error:
        raise MetricsError(path, error) from error
    with stream:
        yield stream


def _metrics_until(path: Path, step: int) -> int:
    """How many bytes of the file come before the first line of a later step, or half a line."""
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            # Of lines that we have not written.
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                if json.loads(line)["step"] > step:
                    break
            if line.endswith(b"\n"):
                end += len(line)
    return end


def _write_metrics(
    stream: IO[bytes] | None, first: int, losses: NDArray[np.float64], measured: dict[str, float]
) -> None:
    """Write one line a step, the last with what was measured after it; JSON has no NaN but null."""
    if stream is None:
        return
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses.tolist(), first)]
    for name, value in measured.items():
        lines[-1][name] = value if math.isfinite(value) else None
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    begin = stream.tell() if stream.seekable() else None
    try:
        while text:
            text = text[stream.write(text) :]
    except OSError as error:
        with suppress(OSError):
            stream.truncate(begin)  # rather none of these lines than half of one
        raise MetricsError(stream.name, error) from error


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM appends its number to; a second one kills."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        with _leave_at_the_second():
            yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _leave_at_the_second() -> Iterator[None]:
    """Exit at the second stop signal, even in the middle of a long call of a kernel.

    Python runs no handler before such a call returns, but the system's has written the signal's
    number to a file by then, and kernels let other threads run.
    """
    outlet, inlet = os.pipe()
    os.set_blocking(inlet, False)
    others = signal.set_wakeup_fd(inlet)

    def watch() -> None:
        received = 0
        while byte := os.read(outlet, 1):
            received += byte[0] in STOP_SIGNALS
            if received == 2:
                os._exit(128 + byte[0])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(others)
        os.close(inlet)  # which ends the watcher
        watcher.join()
        os.close(outlet)
