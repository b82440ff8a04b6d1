"""What a setting may be, and the one line that says what is wrong with a value.

Named tuples are made in a tenth of the time of dataclasses: the help is to answer at once.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from tapegpt.errors import UsageError


class Bound(Protocol):
    """What a setting may be."""

    @property
    def metavar(self) -> str:
        """How the help shows a value."""

    def parse(self, text: str) -> object:
        """The value that the command line spells so; the text itself where it is none."""

    def check(self, name: str, value: object) -> object:
        """The value as it is kept; `UsageError` for one that the setting may not have."""


class Whole(NamedTuple):
    """A whole number from low to high."""

    low: int
    high: int
    metavar: str = "N"

    def parse(self, text: str) -> object:
        return _parsed(int, text)

    def check(self, name: str, value: object) -> object:
        wanted = f"a whole number from {self.low} to {self.high}"
        if type(value) is not int:
            raise refusal(name, value, "is not a whole number", wanted)
        if not self.low <= value <= self.high:
            raise refusal(name, value, "is out of range", wanted)
        return value


class Number(NamedTuple):
    """A number that is valid."""

    valid: Callable[[float], bool]
    wanted: str
    metavar: str = "X"

    def parse(self, text: str) -> object:
        return _parsed(float, text)

    def check(self, name: str, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusal(name, value, "is not a number", self.wanted)
        if not self.valid(value):
            raise refusal(name, value, "is out of range", self.wanted)
        try:
            return float(value) + 0.0  # 1 and 1.0 are the same setting, and 0 and -0.0
        except OverflowError:
            raise refusal(name, value, "is out of range", self.wanted) from None


class Choice(NamedTuple):
    """One of some words."""

    known: tuple[str, ...]
    metavar: str = "NAME"

    def parse(self, text: str) -> object:
        return text

    def check(self, name: str, value: object) -> object:
        if type(value) is not str or value not in self.known:
            problem = f"is unknown{did_you_mean(value, self.known)}"
            raise refusal(name, value, problem, " or ".join(self.known))
        return value


class Switch(NamedTuple):
    """On or off: a flag without a value, and one with --no- that turns it off again."""

    metavar: str = ""

    def parse(self, text: str) -> object:
        return text

    def check(self, name: str, value: object) -> object:
        if type(value) is not bool:
            raise refusal(name, value, "is neither on nor off", "true or false")
        return value


class Text(NamedTuple):
    """Any string."""

    metavar: str = "TEXT"

    def parse(self, text: str) -> object:
        return text

    def check(self, name: str, value: object) -> object:
        if type(value) is not str:
            raise refusal(name, value, "is not text", "a string")
        return value


def flag(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + name.replace("_", "-")


def refusal(name: str, value: object, problem: str, wanted: str) -> UsageError:
    """The error of a setting's value."""
    return UsageError(f"{flag(name)} {show(value)} {problem}: choose {wanted}")


def did_you_mean(text: object, known: Iterable[str]) -> str:
    """A question after the name of something unknown; nothing if nothing is like it."""
    from difflib import get_close_matches  # where something is wrong, and not before

    written = str(text)[:60]
    names = [name for name in known if written and name.startswith(written)]
    names = names or get_close_matches(written, list(known), n=1)
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def show(value: object) -> str:
    """The value on one short line, however hostile it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        text = f"of {value.bit_length()} bits"  # Python refuses to print very long integers
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parsed(kind: Callable[[str], object], text: str) -> object:
    try:
        return kind(text)
    except ValueError:
        return text
