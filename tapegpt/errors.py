"""Errors that end a command with one line and an exit code."""


class TapegptError(Exception):
    """A problem that the user can act on: bad data, a file that cannot be used."""

    exit_code = 1


class UsageError(TapegptError):
    """A setting that cannot be right."""

    exit_code = 2


class DivergedError(TapegptError):
    """Training has produced a value that is not finite."""

    exit_code = 3
