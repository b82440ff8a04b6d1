"""The text of a run: found again where the run remembers it, and parted as training parts it."""

import logging
import random
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from tapegpt.checkpoint import Run, RunError, load_history
from tapegpt.corpus import default_corpus, digest_of, read_again, shuffled
from tapegpt.errors import TapegptError
from tapegpt.run_folder import BEST, best_of
from tapegpt.runs.history import History
from tapegpt.settings import TrainConfig
from tapegpt.train.split import split

LOG = logging.getLogger("tapegpt")


class Parts(NamedTuple):
    """The documents of a training."""

    training: list[str]
    held_out: list[str]
    test: list[str]


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


def documents_of(run: Run, history: History | None) -> list[str]:
    """The documents of a run, as it has read them.

    Raises `TapegptError` if their file is gone or is another now.
    """
    paths = remembered_text(history)
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise TapegptError(
                f"the text of the run is not at {str(path)!r} any more: choose its --data"
            )
    return read_for(run, paths, remembered=history is not None and bool(history.text))


def read_for(run: Run, paths: Sequence[Path | Traversable], remembered: bool = False) -> list[str]:
    """The documents of these files; `TapegptError` if they are not those of the run."""
    documents = read_again(*paths, digest=run.corpus_digest)
    if digest_of(documents) != run.corpus_digest:
        problem = (
            f"the text at {' and '.join(repr(str(path)) for path in paths)} has changed since the"
            " run was trained on it"
            if remembered
            else f"the run was trained on another corpus of {run.documents} documents"
        )
        raise TapegptError(f"{problem}: choose its --data, or start another run")
    return documents


def parts_of(documents: Sequence[str], training: TrainConfig) -> Parts:
    """The documents as the trainer parts them."""
    ordered = shuffled(documents, random.Random(training.seed))
    parts = split(training, len(ordered))
    return Parts(
        ordered[: parts.held_out], ordered[parts.held_out : parts.test], ordered[parts.test :]
    )
