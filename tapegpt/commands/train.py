"""tapegpt train"""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tapegpt.bounds import flag, show
from tapegpt.checkpoint import Run, load
from tapegpt.commands.reading import reading
from tapegpt.commands.stream import TextWriter
from tapegpt.commands.texts import print_texts
from tapegpt.corpus import default_corpus
from tapegpt.errors import UsageError
from tapegpt.presets import configure, dial
from tapegpt.run_folder import RunFolder, best_of, how_to_go_on
from tapegpt.runs.history import begun
from tapegpt.runs.marks import Marks
from tapegpt.runs.text import corpus_of, history_of, parts_of, read, remembered_text
from tapegpt.runs.transfer import extended, settings_from
from tapegpt.setting import check_used
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig, from_dict
from tapegpt.system.compiler import require_compiler
from tapegpt.system.host import peak_gflops, processors
from tapegpt.system.signals import stop_signals
from tapegpt.train.amounts import amount, brief
from tapegpt.train.data import with_held_out
from tapegpt.train.metrics import STANDARD_OUTPUT, MetricsError, check_metrics, open_metrics

if TYPE_CHECKING:
    from tapegpt.train.trainer import Trainer

# When a run is resumed.
CHANGEABLE = ("steps", "seconds", "eval_every", "patience", "threads", "learning_rate")
WORTH_MEASURING = 20.0  # seconds of training, beside which those of the peak are few
LOG = logging.getLogger("tapegpt")


class Files(NamedTuple):
    """What a training reads and writes, and how."""

    data: Sequence[Path] | None = None  # None: that of the resumed run, or the package's names
    out: Path | None = None  # None: the folder out, from which an earlier run is moved aside
    resume: bool = False
    overwrite: bool = False
    save_every: float | None = None  # seconds; None: a minute, or what makes saving cost 1 %
    rescue: Path | None = None  # where to save what --out does not take at the end
    metrics: Path | None = None
    init_from: Path | None = None  # a run whose weights are the first


def run(
    preset: str | None,
    settings: Mapping[str, object],
    files: Files,
    sampling: SampleConfig | None,
    quiet: bool,
    arguments: Sequence[str],
) -> int:
    """Train, save, print samples. Returns the exit code.

    sampling: how many samples are drawn at the end, and how; None: none are.
    arguments: the command line, which the run remembers.
    """
    with ExitStack() as held:
        folder = held.enter_context(RunFolder(files.out, files.overwrite, files.resume))
        folder.check()
        if files.rescue is not None:
            folder.check_rescue(files.rescue)
        saved = folder.load() if files.resume else None
        earlier = history_of(folder.path) if files.resume else None
        source = load(best_of(files.init_from)) if files.init_from else None
        if saved is not None:
            model, training = _resumed_settings(saved, preset, settings, folder.path)
        elif source is not None:
            model, training = settings_from(source, preset, settings)
        else:
            if preset is None and (preset := dial(settings)):
                LOG.info("%g seconds alone: as --preset %s", settings["seconds"], preset)
            model, training = configure(preset, settings)
        paths = files.data or remembered_text(earlier)
        check_metrics(files.metrics, folder, paths, files.resume)
        with reading(quiet) as watch:
            if saved is None:
                corpus = read(paths, training, watch=watch)
                training = with_held_out(training, corpus, "val_fraction" in settings)
            elif files.data is None:
                corpus = corpus_of(saved, earlier, watch)
            else:
                corpus = read(paths, training, saved.corpus_digest, watch)

        # Numba is imported, and kernels are compiled, from here on.
        require_compiler()
        from tapegpt.first_run import helped
        from tapegpt.sampling import sample_in_turn
        from tapegpt.sampling.stream import texts_of
        from tapegpt.train.loop import train
        from tapegpt.train.progress import Compiling
        from tapegpt.train.ready import loaders
        from tapegpt.train.saving import Saver
        from tapegpt.train.trainer import Trainer

        stop = held.enter_context(stop_signals())
        if saved is not None:
            trainer = Trainer.resumed(replace(saved, training=training), corpus)
        elif source is not None:
            trainer = Trainer(model, training, corpus, source.characters)
            trainer.begin_with(extended(source, trainer.compiled.weights, trainer.tokenizer))
        else:
            trainer = Trainer(model, training, corpus)
        needed = trainer.compiled.kernels
        others = loaders(trainer, sampling is not None, (training.seconds or 0) >= WORTH_MEASURING)
        with Compiling(quiet, 2 * len(needed) + len(others)) as compiling:
            with helped(training.dtype, needed, stop):
                trainer.compiled.load(goes_on=lambda ready, _: compiling.update(ready) and not stop)
            for ready, load_one in enumerate(others, 2 * len(needed) + 1):
                if not stop:
                    load_one()
                    compiling.update(ready)
        folder.prepare(evaluates=training.val_fraction > 0)
        text = [path for path in paths if isinstance(path, Path) and path != default_corpus()]
        history = begun(arguments, text, earlier, trainer.step)
        saver = Saver(trainer, folder, files.save_every, files.rescue, history)
        begin = (trainer.step, trainer.elapsed)
        with open_metrics(files.metrics, trainer.step) as log:
            _say_what_is_trained(trainer)
            _say_where_it_starts(trainer, saved or source)
            try:
                train(trainer, saver, stop, log, quiet)
            except (OSError, MetricsError):  # a line could not be written: the training is kept
                saver.finish(trainer.finished)
                raise
            saver.finish(trainer.finished)
    moved = f"; the earlier run is in {folder.aside} now" if folder.aside else ""
    if stop:
        of = "" if training.steps is None else f" of {training.steps}"
        rest = "" if trainer.finished else f": go on with {how_to_go_on(folder.path)}"
        LOG.warning(
            "stopped after step %d%s; saved in %s%s%s", trainer.step, of, folder.path, moved, rest
        )
        return 128 + stop[0]
    if training.patience is not None and trainer.stale >= training.patience:
        LOG.info("%d evaluations without improvement: stopped early", trainer.stale)
    if trainer.best_loss is not None:
        LOG.info("least val_loss %.4f, saved in %s", trainer.best_loss, folder.best)
    losses = saver.history.losses
    if losses and losses[-1].loss is not None:
        LOG.info("loss %.4f; %s", losses[-1].loss, _speed(trainer, *begin))
    steps = f" after {trainer.step} steps" if training.seconds is not None else ""
    LOG.info("saved in %s%s%s", folder.path, steps, moved)
    # Standard output is for metrics alone where they go there.
    stream = sys.stderr if files.metrics == STANDARD_OUTPUT else sys.stdout
    with trainer.predicting(saver.best_weights()):
        if sampling is None:
            pass
        elif training.text:
            writer = TextWriter(stream, training.bytes)
            writer.write_all(texts_of(trainer.compiled, trainer.tokenizer, sampling, trainer.rng))
        else:
            texts = sample_in_turn(trainer.compiled, trainer.tokenizer, sampling, trainer.rng)
            marks = Marks(parts_of(corpus, training, model.block_size), model.block_size)
            print_texts(texts, model.block_size, marks, stream=stream)
            LOG.info("of the samples %s", marks.summary)
    where = "" if files.out is None else f" --run {shlex.quote(str(folder.path))}"
    LOG.info("for more: tapegpt sample%s", where)
    return 0


def _speed(trainer: "Trainer", first_step: int, begin: float) -> str:
    """Steps, seconds and what follows from them, of this call alone."""
    steps, seconds = trainer.step - first_step, trainer.elapsed - begin
    rate = steps / max(seconds, 1e-9)
    tokens = amount(rate * trainer.tokens_per_step)
    said = f"{steps} steps in {brief(seconds)} s: {rate:.0f} steps/s, {tokens} tokens/s"
    if seconds < WORTH_MEASURING:
        return said
    some = min(steps, 1000)
    needed = trainer.flops(some) / some * rate
    share = needed / (1e9 * peak_gflops() * trainer.training.threads)
    return f"{said}, {share:.0%} of the peak of {trainer.training.threads} core(s) in float32"


def _say_what_is_trained(trainer: "Trainer") -> None:
    LOG.info("%s", trainer.data.summary)
    LOG.info(
        "%d parameters, %s %s",
        sum(weights.size for weights in trainer.compiled.weights.values()),
        trainer.training.granularity,
        trainer.training.dtype,
    )
    if trainer.counted is not None:
        LOG.info(
            "the network is told what %d counted tokens say after up to %d, of every tenth of them"
            " what the others say",
            trainer.counted.size,
            trainer.model.counting,
        )
    for remark in trainer.data.remarks:
        LOG.log(logging.WARNING if remark.is_warning else logging.INFO, remark.text)
    if trainer.training.threads > processors():
        LOG.warning(
            "--threads %d is more than there are processors: --threads %d is as fast",
            trainer.training.threads,
            processors(),
        )


def _say_where_it_starts(trainer: "Trainer", earlier: Run | None) -> None:
    """What differs from the run that this one goes on with, or has its weights from."""
    if earlier is None:
        return
    before, now = earlier.training.learning_rate, trainer.learning_rate
    if trainer.step > 0 and now != before:
        LOG.info("learning rate %g from step %d on, before %g", now, trainer.step + 1, before)
    added = sorted(set(trainer.tokenizer.characters) - set(earlier.characters))
    if added:
        LOG.info(
            "%d characters that the run of --init-from does not know are added to its alphabet,"
            " with random weights: %s",
            len(added),
            show("".join(added)),
        )


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
    if problem := _spent(saved, training):
        raise UsageError(f"the run in {out} has {problem}")
    return saved.model, training


def _spent(saved: Run, training: TrainConfig) -> str | None:
    """What leaves nothing to train, and what to choose instead; None if something is left."""
    steps, seconds, patience = training.steps, training.seconds, training.patience
    if steps is not None and saved.step >= steps:
        return (
            f"done {saved.step} steps, and --steps is the total: --steps {saved.step + steps}"
            f" trains {steps} more"
        )
    if seconds is not None and saved.elapsed >= seconds:
        return (
            f"trained for {brief(saved.elapsed)} s, and --seconds is the total: --seconds"
            f" {brief(saved.elapsed + seconds)} trains {seconds:g} s more"
        )
    if patience is not None and saved.stale >= patience:
        return (
            f"had {saved.stale} evaluations without improvement: choose --patience above"
            f" {saved.stale}"
        )
    return None
