"""run-history.json: how a run came about.

It holds what differs from one training to an equal one: the command, the date, the place of the
text. So it lies beside run.json and the tensors, which are equal bytes for equal trainings, and a
run without it is whole: runs of earlier versions have none.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tapegpt import __version__
from tapegpt.corpus.files import STANDARD_INPUT
from tapegpt.runs.digest import check_digest, with_digest
from tapegpt.system.atomic_files import read

HISTORY = "run-history.json"
FORMAT = 1
LIMIT = 1 << 20  # bytes
MOST_LOSSES = 256
MOST_SESSIONS = 64
LONGEST_COMMAND = 2000  # characters


@dataclass(frozen=True, slots=True)
class Session:
    """One call of `train`, which began or went on with the run."""

    command: str  # as a shell reads it
    version: str  # of tapegpt
    began: str  # 2026-01-31T12:00:00Z
    step: int  # steps that were done before


@dataclass(frozen=True, slots=True)
class Losses:
    """What was measured at a step, in nats."""

    step: int
    seconds: float  # of training
    loss: float | None  # smoothed, of the training part; None: not finite
    val_loss: float | None


@dataclass(frozen=True, slots=True)
class History:
    """How a run came about."""

    text: tuple[str, ...]  # absolute paths; none: the names that ship with the package
    sessions: tuple[Session, ...]
    losses: tuple[Losses, ...] = ()  # by ascending step
    test_loss: float | None = None


def begun(
    arguments: Sequence[str], text: Sequence[Path], earlier: History | None, step: int
) -> History:
    """The history of a training that begins now, or goes on after `step` steps."""
    command = shlex.join(["tapegpt", *arguments])[:LONGEST_COMMAND]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    paths = tuple(str(path if path == STANDARD_INPUT else path.absolute()) for path in text)
    earlier = earlier or History(paths, ())
    sessions = (*earlier.sessions, Session(command, __version__, now, step))
    losses = tuple(point for point in earlier.losses if point.step <= step)
    # The first tells where the run comes from, the last what was done of late.
    kept = (*sessions[:1], *sessions[1:][-MOST_SESSIONS + 1 :])
    return History(paths, kept, losses)


def with_losses(history: History, point: Losses) -> History:
    """With one more point. Of many, every second one is forgotten."""
    losses = history.losses
    if len(losses) >= MOST_LOSSES:
        losses = losses[1::2]
    return replace(history, losses=(*losses, point))


def finite(value: float | None) -> float | None:
    """The value, if there is one and JSON has it."""
    return value if value is not None and math.isfinite(value) else None


def render(history: History) -> bytes:
    """The text of run-history.json."""
    lines = (
        f'"{name}": {json.dumps(value, allow_nan=False)}'
        for name, value in {"format": FORMAT, **asdict(history)}.items()
    )
    return with_digest((",\n".join(lines) + "}\n").encode())


def read_history(folder: Path) -> History | None:
    """The history of the run in `folder`, if it has one.

    Raises `ValueError` if it is damaged, and `OSError` if it cannot be read.
    """
    try:
        text = read(folder / HISTORY, LIMIT)
    except FileNotFoundError:
        return None
    check_digest(text)
    return _parsed(json.loads(text))


def _parsed(data: Any) -> History:
    try:
        if data["format"] != FORMAT:
            raise ValueError("it is of another version")
        history = History(
            tuple(_checked(str, path) for path in data["text"]),
            tuple(_session(**session) for session in data["sessions"]),
            tuple(_losses(**point) for point in data["losses"]),
            None if data["test_loss"] is None else _number(data["test_loss"]),
        )
    except (TypeError, LookupError) as error:
        raise ValueError("it is not written as tapegpt writes it") from error
    if not history.sessions:
        raise ValueError("it names no training")
    return history


def _session(command: object, version: object, began: object, step: object) -> Session:
    return Session(
        _checked(str, command), _checked(str, version), _checked(str, began), _checked(int, step)
    )


def _losses(step: object, seconds: object, loss: object, val_loss: object) -> Losses:
    loss, val_loss = (None if value is None else _number(value) for value in (loss, val_loss))
    return Losses(_checked(int, step), _number(seconds), loss, val_loss)


def _checked(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise TypeError
    return value
