"""What is logged, as the command line shows it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tapegpt.commands.terminal import printable


@contextmanager
def shown(level: int) -> Iterator[None]:
    """Show messages of this level and above on standard error, each on one line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("tapegpt: %(message)s"))
    log = logging.getLogger("tapegpt")
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _OneLine(logging.Formatter):
    """Messages name files, whose names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
