"""--config: flags from a TOML file."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapegpt.bounds import did_you_mean, show
from tapegpt.errors import TapegptError, UsageError

if TYPE_CHECKING:
    from tapegpt.commands.flags import Parser

BUDGETS = {"--steps", "--seconds"}  # one takes the place of the other
LARGEST = 1 << 20  # bytes


def arguments_of(path: Path, parser: "Parser", given: Sequence[str]) -> list[str]:
    """The arguments that the file stands for, but for flags that the command line gives.

    A key is a flag without its dashes, with - or _; true sets a flag that has no value, and a list
    gives a flag several times. Raises `UsageError`, and `TapegptError` for a file that cannot be
    read.
    """
    named = parser.flags_in(given)
    if named & BUDGETS:
        named |= BUDGETS
    arguments: list[str] = []
    for key, value in _read(path).items():
        name = f"--{key.replace('_', '-')}"
        if name not in parser.known_flags - {"--config", "--help", "--debug"}:
            names = sorted(flag[2:] for flag in parser.known_flags)
            raise UsageError(
                f"--config {str(path)!r} has {show(key)}, which is no flag of this command"
                f"{did_you_mean(key, names)}"
            )
        if name not in named:
            arguments += _spelled(path, name, value, parser)
    return arguments


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UsageError(f"--config {str(path)!r} is too large: choose a file of settings")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise TapegptError(
            f"cannot read --config {str(path)!r}: {error.strerror}: choose another file"
        ) from error
    except (ValueError, RecursionError) as error:  # of tomllib and of decode
        raise UsageError(f"--config {str(path)!r} is not TOML: {error}") from error


def _spelled(path: Path, name: str, value: Any, parser: "Parser") -> Iterator[str]:
    takes_value = name in parser.flags_with_value
    values = value if isinstance(value, list) and takes_value else [value]
    for each in values:
        if isinstance(each, bool) and not takes_value:
            negated = f"--no-{name[2:]}"
            if each:
                yield name
            elif negated in parser.known_flags:
                yield negated
        elif isinstance(each, str | int | float) and not isinstance(each, bool) and takes_value:
            yield f"{name}={each}"
        else:
            raise UsageError(
                f"--config {str(path)!r} has {name[2:]} = {show(value)}: choose"
                f" {'a number or a string' if takes_value else 'true or false'}"
            )
