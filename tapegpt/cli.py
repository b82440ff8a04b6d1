"""The command line: parse, call, and turn errors into one line and an exit code."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from tapegpt import __version__
from tapegpt.commands.flags import Parser, one_line
from tapegpt.commands.registry import COMMANDS, parser_of
from tapegpt.commands.terminal import printable
from tapegpt.errors import TapegptError, UsageError


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
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("tapegpt: %(message)s"))
    log = logging.getLogger("tapegpt")
    log.addHandler(handler)
    log.setLevel(logging.WARNING if getattr(options, "quiet", False) else logging.INFO)
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
    finally:
        log.removeHandler(handler)


def _fail(options: argparse.Namespace, problem: str, exit_code: int = 1) -> int:
    if options.debug:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
    print(f"tapegpt: error: {one_line(problem, 1000)}", file=sys.stderr)
    return exit_code


def _discard_output() -> None:
    """Have what is still to be written go nowhere, so that nothing fails once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _OneLine(logging.Formatter):
    """Messages name files, whose names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    if arguments and arguments[0] in COMMANDS:
        return _with_config(parser_of(arguments[0]), arguments[1:])
    parser = Parser(
        prog="tapegpt",
        description="A real autograd tape, in Python, that trains a GPT at the speed of the"
        " machine.",
        epilog="The first three: tapegpt train, tapegpt sample, tapegpt info. Each command has a"
        " --help of its own.",
    )
    parser.add_argument("--version", action="version", version=f"tapegpt {__version__}")
    commands = parser.add_subparsers(metavar="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.does)
    if not arguments:
        parser.print_help()
        parser.exit()
    if not arguments[0].startswith("-"):
        parser.unknown("command", arguments[0], COMMANDS)
    return parser.parse(arguments[:1])


def _with_config(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The flags' values; those of a --config file where the command line does not name them."""
    options = parser.parse(arguments)
    if getattr(options, "config", None) is None:
        return options

    from tapegpt.commands.config import arguments_of

    try:
        return parser.parse([*arguments_of(options.config, parser, arguments), *arguments])
    except UsageError as error:
        parser.error(str(error))
    except TapegptError as error:  # of a file: the help says nothing of those
        parser.exit(error.exit_code, f"tapegpt: error: {one_line(str(error), 1000)}\n")
