"""--metrics: a JSON line a step, in a file that holds nothing else, or on standard output."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.errors import TapegptError, UsageError
from tapegpt.run_folder import RunFolder
from tapegpt.system.atomic_files import move_aside

LOG = logging.getLogger("tapegpt")
STANDARD_OUTPUT = Path("-")
VALUE = rb"(null|-?[0-9][0-9.e+-]*)"
LINE = rb'\{"step": [0-9]+, "loss": %b(, "(seconds|val_loss|test_loss)": %b)*\}\n' % (VALUE, VALUE)


class MetricsError(TapegptError):
    """A line of --metrics could not be written."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        super().__init__(
            f"cannot write --metrics {str(path)!r}: {error.strerror}: choose another file"
        )


def check_metrics(
    path: Path | None, folder: RunFolder, data: Iterable[object], resume: bool
) -> None:
    """Refuse a file that holds anything but metrics, before a byte of it is lost.

    data: the files of the corpus. A training that goes on adds to the file, so there it may hold
    other lines too. Raises `UsageError`.
    """
    if path is None or path == STANDARD_OUTPUT:
        return
    if any(isinstance(file, Path) and _is_same(path, file) for file in data):
        raise _refusal(path, "is the text to train on")
    if folder.takes(path):
        raise _refusal(path, f"is a file of the run in {str(folder.path)!r}")
    if folder.moves(path):
        raise _refusal(path, "lies with the earlier run, which is moved aside")
    try:
        if not path.is_file():  # nor is anything lost in a device or a pipe
            return
        with path.open("rb") as stream:
            ours = _are_ours(stream, resume)
    except OSError as error:
        raise MetricsError(path, error) from error
    if not ours:
        raise _refusal(path, "holds other things than metrics")


def _refusal(path: Path, problem: str) -> UsageError:
    return UsageError(f"--metrics {str(path)!r} {problem}: choose another file")


def _is_same(path: Path, other: Path) -> bool:
    """Whether these are one file, by whatever names."""
    with suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def _are_ours(stream: IO[bytes], resume: bool) -> bool:
    """Whether all lines are metrics; of a training that goes on, whether any is."""
    empty = True
    for line in stream:
        # A process that was killed may have left half a line at the end.
        whole = line.endswith(b"\n")
        ours = re.fullmatch(LINE, line) if whole else b'{"step": '.startswith(line[:9])
        if resume and ours:
            return True
        if not resume and not ours:
            return False
        empty = False
    return empty or not resume


@contextmanager
def open_metrics(path: Path | None, step: int) -> Iterator[IO[bytes] | None]:
    """Go on after the lines of so many steps: a process that was killed may have left more.

    A training that begins moves the metrics of an earlier one aside, which is said.
    """
    if path is None:
        yield None
        return
    if path == STANDARD_OUTPUT:
        yield _StandardOutput()  # type: ignore[misc]  # of a stream, what write_metrics needs
        return
    try:
        if path.is_file() and path.stat().st_size > 0:
            if step > 0:
                os.truncate(path, _metrics_until(path, step))
            else:
                aside = move_aside(path)
                LOG.info("the metrics of an earlier training, %s, are in %s now", path, aside)
        stream = path.open("ab" if step > 0 else "wb", buffering=0)
    except OSError as error:
        raise MetricsError(path, error) from error
    with stream:
        yield stream


class _StandardOutput:
    """Python's own stream, whatever it stands for, as one of bytes that is not buffered."""

    name = "-"

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:
        sys.stdout.write(data.decode())
        sys.stdout.flush()
        return len(data)

    def truncate(self, size: int | None) -> None:
        """What was written stays."""


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


def write_metrics(
    stream: Any, first: int, losses: NDArray[np.float64], measured: dict[str, float]
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
