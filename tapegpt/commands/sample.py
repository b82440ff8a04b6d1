"""tapegpt sample: texts from a run, each new or from its corpus."""

import itertools
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tapegpt.checkpoint import Run, load
from tapegpt.commands import stream
from tapegpt.commands.texts import print_texts
from tapegpt.errors import TapegptError, UsageError
from tapegpt.run_folder import best_of
from tapegpt.runs.marks import NEW, Marks
from tapegpt.runs.text import corpus_of, history_of, parts_of, read_for
from tapegpt.setting import LARGEST_SIZE
from tapegpt.settings import SampleConfig
from tapegpt.system.compiler import require_compiler

LOG = logging.getLogger("tapegpt")
SEED_BITS = 32
DRAWS_PER_NEW = 100  # of which one at least should be new: else it is time to say so


class Options(NamedTuple):
    """What is drawn from, and how it is shown."""

    run: Path
    last: bool  # the last state, also where a better was kept
    data: Sequence[Path] | None  # the corpus; None: where the run remembers it
    new: bool  # draw until there are as many new ones
    mark: bool  # in a second column
    json: bool
    prompt_file: Path | None
    interactive: bool


def run(options: Options, config: SampleConfig) -> int:
    """Draw and print. Returns the exit code."""
    saved = load(options.run if options.last else best_of(options.run))
    if options.prompt_file is not None:
        config = replace(config, prompt=stream.prompt_in(options.prompt_file, saved))
    goes_on = saved.training.text or config.length is not None or config.stop is not None
    if goes_on or options.interactive:
        _refuse_marks(options)
    marks = None if goes_on or options.interactive else _marks(saved, options)
    anew = config.seed is None
    if anew:
        config = replace(config, seed=secrets.randbits(SEED_BITS))
    require_compiler()
    from tapegpt.train.progress import Compiling

    try:
        with Compiling(quiet=not LOG.isEnabledFor(logging.INFO)):
            if options.interactive:
                stream.answer(saved, config)
            elif goes_on:
                stream.draw(saved, config)
            else:
                _draw(saved, config, options, marks)
    except KeyboardInterrupt:  # which is how a long text ends
        _say_seed(anew, config)
        raise
    _say_seed(anew, config)
    return 0


def _say_seed(anew: bool, config: SampleConfig) -> None:
    """Of texts that were drawn: an error is one line."""
    if anew:
        LOG.info("--seed %d draws the same again", config.seed)


def _draw(saved: Run, config: SampleConfig, options: Options, marks: Marks | None) -> None:
    from tapegpt.sampling import DOCUMENTS, sample

    wanted = config.num_samples or DOCUMENTS
    texts: Iterator[str]
    if options.new:
        assert marks is not None
        most = min(LARGEST_SIZE, DRAWS_PER_NEW * wanted)
        drawn = sample(saved, replace(config, num_samples=most))
        texts = itertools.islice(_only_new(drawn, marks), wanted)
    else:
        texts = sample(saved, config)
    if options.json:
        count = _print_json(texts, marks, saved, config)
    else:
        count = print_texts(texts, saved.model.block_size, marks, options.mark)
    if options.new and count < wanted:
        raise TapegptError(
            f"of {most} texts only {count} {'is' if count == 1 else 'are'} new and different:"
            " choose a higher --temperature, or fewer --num-samples"
        )
    if marks is not None and not options.new:
        LOG.info("%s", marks.summary)


def _refuse_marks(options: Options) -> None:
    """Whether a text is in the corpus can be said of whole documents alone."""
    for name in ("new", "mark", "json", "data"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} is for samples of documents, not for a text that goes on (--text,"
                " --length, --stop, -i): leave it out"
            )


def _marks(run: Run, options: Options) -> Marks | None:
    """What tells new texts from others; None where the corpus cannot be had, which is said."""
    try:
        if options.data is not None:
            corpus = read_for(run, options.data)
        else:
            corpus = corpus_of(run, history_of(options.run))
    except TapegptError as error:
        if options.new or options.mark or options.data is not None:
            raise
        LOG.info("samples are not marked: %s", error)
        return None
    return Marks(parts_of(corpus, run.training, run.model.block_size), run.model.block_size)


def _only_new(texts: Iterator[str], marks: Marks) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if marks.mark(text) == NEW and text not in seen:
            seen.add(text)
            yield text


def _print_json(texts: Iterator[str], marks: Marks | None, run: Run, config: SampleConfig) -> int:
    samples = [
        {
            "text": text,
            "place": None if marks is None else marks.mark(text),
            "cut": len(text) >= run.model.block_size,
        }
        for text in texts
    ]
    print(json.dumps({"step": run.step, "seed": config.seed, "samples": samples}, indent=2))
    return len(samples)
