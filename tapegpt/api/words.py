"""Errors in Python's words: settings by the names of their arguments, not of flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tapegpt.errors import TapegptError

FLAG = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
# Flags whose argument has another name here.
ARGUMENTS = {"data": "corpus", "out": "path", "run": "path"}


@contextmanager
def pythons_words() -> Iterator[None]:
    """Have errors name arguments."""
    try:
        yield
    except TapegptError as error:
        error.args = tuple(in_words(str(argument)) for argument in error.args)
        raise


def in_words(message: str) -> str:
    """The message with arguments for flags."""

    def argument(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        return ARGUMENTS.get(name, name)

    return FLAG.sub(argument, message)
