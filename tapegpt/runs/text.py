"""The text of a run: found again where the run remembers it, and parted as training parts it."""

import logging
import random
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tapegpt.checkpoint import Run, RunError, load_history
from tapegpt.corpus import (
    Corpus,
    TokenStream,
    default_corpus,
    digest_of,
    read_again,
    read_documents,
    shuffled,
)
from tapegpt.corpus.files import Watcher
from tapegpt.corpus.stream import read_bytes, read_text
from tapegpt.corpus.windows import Part
from tapegpt.errors import TapegptError
from tapegpt.run_folder import BEST, best_of
from tapegpt.runs.history import History
from tapegpt.settings import TrainConfig
from tapegpt.train.split import split

LOG = logging.getLogger("tapegpt")


class Parts(NamedTuple):
    """The documents, or the stretches of a text, of a training."""

    training: Sequence[str] | Part
    held_out: Sequence[str] | Part
    test: Sequence[str] | Part


def history_of(folder: Path) -> History | None:
    """How a run came about, that of a best state too; a damaged history is one that is not there.

    That it is damaged is said.
    """
    home = folder.parent if folder.name == BEST and best_of(folder.parent) == folder else folder
    try:
        return load_history(home)
    except RunError as error:
        LOG.warning("%s", error)
        return None


def remembered_text(history: History | None) -> Sequence[Path | Traversable]:
    """What a run was trained on; what `train` reads by itself, where that is not known."""
    if history is None or not history.text:
        return [default_corpus()]
    return [Path(path) for path in history.text]


def read(
    paths: Sequence[Path | Traversable],
    training: TrainConfig,
    digest: str | None = None,
    watch: Watcher | None = None,
) -> Corpus:
    """The corpus in these files, as a training reads it.

    digest: of the corpus that a run has read, see `read_again`. Raises `TapegptError`.
    """
    if training.bytes:
        return read_bytes(paths, watch)
    if training.text:
        return read_text(paths, watch)
    return read_documents(*paths) if digest is None else read_again(*paths, digest=digest)


def corpus_of(run: Run, history: History | None, watch: Watcher | None = None) -> Corpus:
    """The corpus of a run, as it has read it.

    Raises `TapegptError` if their file is gone or is another now.
    """
    paths = remembered_text(history)
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise TapegptError(
                f"the text of the run is not at {str(path)!r} any more: choose its --data"
            )
    remembered = history is not None and bool(history.text)
    return read_for(run, paths, remembered, watch)


def read_for(
    run: Run,
    paths: Sequence[Path | Traversable],
    remembered: bool = False,
    watch: Watcher | None = None,
) -> Corpus:
    """The corpus in these files; `TapegptError` if it is not that of the run."""
    corpus = read(paths, run.training, run.corpus_digest, watch)
    digest = corpus.digest if isinstance(corpus, TokenStream) else digest_of(corpus)
    if digest != run.corpus_digest:
        problem = (
            f"the text at {' and '.join(repr(str(path)) for path in paths)} has changed since the"
            " run was trained on it"
            if remembered
            else f"the run was trained on another corpus of {run.size}"
        )
        raise TapegptError(f"{problem}: choose its --data, or start another run")
    return corpus


def whole(corpus: Corpus, block: int) -> Sequence[str] | Part:
    """All of a corpus, to be measured in windows of a block where it is a text."""
    return Part(corpus, 0, len(corpus), block) if isinstance(corpus, TokenStream) else corpus


def parts_of(corpus: Corpus, training: TrainConfig, block: int) -> Parts:
    """The corpus as the trainer parts it."""
    if isinstance(corpus, TokenStream):
        ends = split(training, len(corpus))
        bounds = pairwise((0, ends.held_out, ends.test, len(corpus)))
        return Parts(*(Part(corpus, begin, end, block) for begin, end in bounds))
    documents = corpus
    ordered = shuffled(documents, random.Random(training.seed))
    parts = split(training, len(ordered))
    return Parts(
        ordered[: parts.held_out], ordered[parts.held_out : parts.test], ordered[parts.test :]
    )
