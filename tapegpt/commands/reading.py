"""How far the corpus has been read: a moving line on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path

from tapegpt.commands.terminal import printable
from tapegpt.corpus.files import Watcher

PATIENCE = 1.0  # seconds before there is a line
MOVES, LINES = 0.1, 5.0  # seconds from one line to the next, on a terminal and elsewhere


@contextmanager
def reading(quiet: bool) -> Iterator[Watcher | None]:
    """What `corpus.files.pieces` tells how far it has come, while the block reads."""
    if quiet:
        yield None
        return
    shown = _Shown()
    try:
        yield shown.update
    finally:
        shown.close()


class _Shown:
    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._begin = time.perf_counter()
        self._next = self._begin + PATIENCE
        self._width = 0  # of what stands on the terminal's line

    def update(self, path: Path | Traversable, done: int, whole: int) -> None:
        """So many bytes of a file are read, of `whole` where that is known."""
        now = time.perf_counter()
        if now < self._next:
            return
        share = f", {100 * done // whole} %" if whole else ""
        name, seconds = printable(path.name), now - self._begin
        line = f"reading {name}: {done // 1_000_000} MB{share}, {seconds:.0f} s"
        if self._moving:
            print(f"\r{line:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width, self._next = len(line), now + MOVES
        else:
            print(line, file=sys.stderr)
            self._next = now + LINES

    def close(self) -> None:
        """Leave the line empty."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
