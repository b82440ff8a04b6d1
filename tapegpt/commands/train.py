"""tapegpt train"""

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run, load, save
from tapegpt.config import ModelConfig, SampleConfig, TrainConfig, configure, from_dict
from tapegpt.corpus import default_corpus, read_documents
from tapegpt.errors import TapegptError, UsageError
from tapegpt.progress import Progress

if TYPE_CHECKING:
    from tapegpt.training import Trainer

SECONDS_PER_CALL = 0.2  # of training between looks at signals and the clock
LOG = logging.getLogger("tapegpt")


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
    saved = None
    if resume:
        saved = load(out)
        model, training = _resumed_settings(saved, preset, settings, out)
    else:
        model, training = configure(preset, settings)
    documents = read_documents(data or default_corpus())

    # Numba is imported, and kernels are compiled, from here on.
    from tapegpt.sampling import sample_in_turn
    from tapegpt.training import Trainer

    with _stop_signals() as stop:
        if saved is None:
            trainer = Trainer(model, training, documents)
        else:
            trainer = Trainer.resumed(replace(saved, training=training), documents)
        _make_folder(out)
        with _open_metrics(metrics, append=resume) as log:
            LOG.info(
                "%d documents, %d characters, %d parameters, %s %s",
                len(documents),
                trainer.tokenizer.vocab_size - 1,
                sum(weights.size for weights in trainer.recording.weights.values()),
                training.granularity,
                training.dtype,
            )
            _train(trainer, stop, log, quiet)
        save(trainer.snapshot(), out)
    if stop:
        LOG.warning(
            "stopped after step %d of %d; saved in %s%s",
            trainer.step, training.steps, out,
            ": go on with --resume" if trainer.step < training.steps else "",
        )  # fmt: skip
        return 128 + stop[0]
    LOG.info("saved in %s", out)
    for text in sample_in_turn(trainer.recording, trainer.tokenizer, SampleConfig(), trainer.rng):
        print(text)
    return 0


def _train(trainer: "Trainer", stop: list[int], log: IO[str] | None, quiet: bool) -> None:
    """Do the steps that are left, until a signal says stop."""
    steps = trainer.training.steps
    trainer.advance(0)  # compiles what is not in the cache
    count = 1
    with Progress(trainer.step, steps, quiet) as progress:
        while trainer.step < steps and not stop:
            begin = time.perf_counter()
            first = trainer.step + 1
            losses = trainer.advance(min(count, steps - trainer.step))
            seconds = time.perf_counter() - begin
            _write_metrics(log, first, losses)
            progress.update(trainer.step, float(losses[-1]))
            count = max(1, min(4 * count, int(count * SECONDS_PER_CALL / seconds)))


def _resumed_settings(
    saved: Run, preset: str | None, settings: Mapping[str, object], out: Path
) -> tuple[ModelConfig, TrainConfig]:
    """The saved run's settings, with the number of steps that the command line may change."""
    if preset is not None:
        raise UsageError(f"--preset {preset} does not go with --resume: the run has its settings")
    for name, value in settings.items():
        kept = getattr(saved.model, name, getattr(saved.training, name, None))
        if name != "steps" and value != kept:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} {value} differs from {kept} in the run: leave it out, or start anew"
                " in another --out"
            )
    steps = {"steps": settings["steps"]} if "steps" in settings else {}
    training = from_dict(TrainConfig, {**asdict(saved.training), **steps})
    if training.steps <= saved.step:
        raise UsageError(
            f"the run in {out} has all its {saved.step} steps: choose --steps above {saved.step}"
        )
    return saved.model, training


def _make_folder(out: Path) -> None:
    """Find out before training, not after it, that a run cannot be saved there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise TapegptError(
            f"cannot write --out {str(out)!r}: {error.strerror}: choose another folder"
        ) from error


@contextmanager
def _open_metrics(path: Path | None, append: bool) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        with path.open("a" if append else "w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise TapegptError(
            f"cannot write --metrics {str(path)!r}: {error.strerror}: choose another file"
        ) from error


def _write_metrics(stream: IO[str] | None, first: int, losses: NDArray[np.float64]) -> None:
    if stream is not None:
        for step, loss in enumerate(losses.tolist(), first):
            stream.write(json.dumps({"step": step, "loss": loss}) + "\n")
        stream.flush()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM appends its number to; a second one kills."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
