"""tapegpt completion: a script for the shell, made by shtab."""

from collections.abc import Mapping

from tapegpt.commands.flags import Parser
from tapegpt.errors import TapegptError


def run(shell: str, parsers: Mapping[str, Parser]) -> int:
    """Print the script. Returns the exit code."""
    try:
        import shtab
    except ImportError as error:
        raise TapegptError(
            "completion wants shtab: pip install shtab, or 'tapegpt[completion]'"
        ) from error
    whole = Parser(prog="tapegpt")
    commands = whole.add_subparsers()
    for name, parser in parsers.items():
        help = parser.description or ""
        commands.add_parser(name, parents=[parser], add_help=False, help=help, description=help)
    print(shtab.complete(whole, shell=shell))
    return 0
