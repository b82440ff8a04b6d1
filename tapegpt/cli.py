"""The command line: parse, call, and turn errors into one line and an exit code.

Imports stand where they are used: the help is to answer at once.
"""

import os
import sys
from collections.abc import Sequence

from tapegpt.commands.overview import DOES, SHOWN
from tapegpt.errors import TapegptError, UsageError

TYPE_CHECKING = False  # as type checkers know it: to import typing takes as long as the help
if TYPE_CHECKING:
    from argparse import Namespace

    from tapegpt.commands.flags import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # A stream is None where whoever started us has closed it; this one is open to the end.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    options.arguments = arguments

    import logging

    from tapegpt.commands.messages import shown

    with shown(logging.WARNING if getattr(options, "quiet", False) else logging.INFO):
        return _run(options)


def _run(options: "Namespace") -> int:
    try:
        code = options.command(options)
        sys.stdout.flush()
        return int(code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone: nothing is wrong here, and nothing more can be said.
        _discard_output()
        return 1
    except TapegptError as error:
        return _fail(options, str(error), error.exit_code)
    except MemoryError:
        return _fail(options, "out of memory: make the model or the batch smaller")
    except OSError as error:  # of no file that the command line names: those have their own lines
        _discard_output()
        return _fail(options, f"{error.filename or 'output'}: {error.strerror or error}")


def _fail(options: "Namespace", problem: str, exit_code: int = 1) -> int:
    from tapegpt.commands.flags import one_line
    from tapegpt.commands.terminal import printable

    if options.debug:
        import traceback

        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
    print(f"tapegpt: error: {one_line(problem, 1000)}", file=sys.stderr)
    return exit_code


def _discard_output() -> None:
    """Have what is still to be written go nowhere, so that nothing fails once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: Sequence[str]) -> "Namespace":
    if arguments and arguments[0] in DOES:
        from tapegpt.commands.registry import parser_of

        return _with_config(parser_of(arguments[0]), arguments[1:])
    shown = arguments[0] if arguments else "--help"
    if shown in SHOWN:
        print(SHOWN[shown])
        sys.exit(0)

    from tapegpt.commands.flags import Parser

    parser = Parser(prog="tapegpt")
    if shown.startswith("-"):
        parser.unknown("flag", shown.partition("=")[0], SHOWN)
    parser.unknown("command", shown, DOES)


def _with_config(parser: "Parser", arguments: Sequence[str]) -> "Namespace":
    """The flags' values; those of a --config file where the command line does not name them."""
    options = parser.parse(arguments)
    if getattr(options, "config", None) is None:
        return options

    from tapegpt.commands.config import arguments_of
    from tapegpt.commands.flags import one_line

    try:
        return parser.parse([*arguments_of(options.config, parser, arguments), *arguments])
    except UsageError as error:
        parser.error(str(error))
    except TapegptError as error:  # of a file: the help says nothing of those
        parser.exit(error.exit_code, f"tapegpt: error: {one_line(str(error), 1000)}\n")
