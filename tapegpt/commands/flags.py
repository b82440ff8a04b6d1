"""The flags of a command: made of its settings, and read whatever their values begin with."""

import argparse
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tapegpt.bounds import Choice, Switch, did_you_mean, flag
from tapegpt.commands.terminal import printable
from tapegpt.models.registry import import_model
from tapegpt.setting import Setting, settings_of


class Parser(argparse.ArgumentParser):
    """A parser that says in one short line what is wrong, and wants flags in full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._with_value: dict[str, bool] = {}  # whether it may be the next argument with a dash
        self._groups: dict[str, Any] = {}
        self._meant = ("", "")

    def add_setting(self, name: str, known: Setting, default: object) -> None:
        """A flag for a setting of a configuration."""
        bound = known.bound
        if isinstance(bound, Switch):
            action = argparse.BooleanOptionalAction
            self.group(known.group).add_argument(
                flag(name), action=action, help=known.help + _notes(known, None), default=None
            )
            return
        metavar = "|".join(bound.known) if isinstance(bound, Choice) else bound.metavar
        help = known.help + _notes(known, default)
        self.add_value(flag(name), bound.parse, metavar, known.group, help)

    def add_path(
        self,
        name: str,
        metavar: str,
        help: str,
        default: Path | None = None,
        several: bool = False,
    ) -> None:
        """A flag for a file or a folder, of which ~ may be a part; several: a list of them."""
        self.add_value(
            name, path, metavar, "files", help, dash=False, default=default, several=several
        )

    def add_run(self, help: str) -> None:
        """An argument for the folder of a run, which is out where there is none."""
        self.add_argument(
            "run", type=path, nargs="?", metavar="RUN", help=f"{help} (default: out)",
            default=Path("out"),
        )  # fmt: skip

    def add_value(
        self,
        name: str,
        parse: Callable[[str], object],
        metavar: str,
        group: str,
        help: str,
        dash: bool = True,
        default: object = None,
        several: bool = False,
    ) -> None:
        """A flag with a value, which `parse` makes of its text; several: it may come again."""
        self._with_value[name] = dash
        self.group(group).add_argument(
            name,
            action="append" if several else "store",
            type=lambda text: parse(text[1:]),  # after the = that `_joined` puts there
            metavar=metavar,
            help=help.replace("%", "%%"),
            default=default,
        )

    def group(self, name: str) -> Any:
        """The group of flags that the help shows under this title."""
        if name not in self._groups:
            self._groups[name] = self.add_argument_group(name)
        return self._groups[name]

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The flags' values; exits with one line if an argument is none of them."""
        options, unknown = self.parse_known_args(self._joined(arguments))
        if unknown:
            name = unknown[0].partition("=")[0]
            if name.startswith("-"):
                self.unknown("flag", name, self._option_string_actions)
            self._unknown_argument(unknown[0])
        return options

    def expect_bare(self, file: str, folder: str) -> None:
        """The flags that a file, or a folder, is meant for that has none before it."""
        self._meant = (file, folder)

    def _unknown_argument(self, argument: str) -> NoReturn:
        name = self._meant[os.path.isdir(argument)]
        meant = f" (did you mean {name} {shlex.quote(argument)}?)" if name else ""
        self.error(f"unknown argument {argument!r}{meant}")

    @property
    def known_flags(self) -> set[str]:
        """All flags, such as --steps."""
        return set(self._option_string_actions)

    @property
    def flags_with_value(self) -> set[str]:
        """Those that take one."""
        return set(self._with_value)

    def flags_in(self, arguments: Sequence[str]) -> set[str]:
        """The flags that these arguments give."""
        names = {argument.partition("=")[0] for argument in self._joined(arguments)}
        return names & self.known_flags

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> NoReturn:
        """Exit with one line that says what may have been meant."""
        self.error(f"unknown {kind} {name!r}{did_you_mean(name, known)}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tapegpt: error: {one_line(message, 200)}: see {self.prog} --help\n")

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Each flag together with its value, which argparse then takes for nothing else."""
        joined, rest = [], iter(arguments)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if name in self._with_value:
                if not equals:
                    value = self._next(name, next(rest, None))
                argument = f"{name}=={value}"
            joined.append(argument)
        return joined

    def _next(self, name: str, value: str | None) -> str:
        if value is None:
            self.error(f"{name} wants a value")
        is_flag = value.partition("=")[0] in self._option_string_actions
        dashed = value.startswith("-") and value != "-"
        if is_flag or (dashed and not self._with_value[name]):
            self.error(f"{name} wants a value: if {value!r} is meant, write {name}={value}")
        return value


def add_settings(parser: Parser, *kinds: type) -> None:
    """A flag for every setting of these configurations."""
    for kind in kinds:
        for name, (known, default) in settings_of(kind).items():
            parser.add_setting(name, known, default)


def given(options: argparse.Namespace, *kinds: type) -> dict[str, Any]:
    """The settings of these configurations that the command line names, each checked alone."""
    named = {}
    for kind in kinds:
        for name, (known, _) in settings_of(kind).items():
            value = getattr(options, name, None)
            if value is not None:
                if name == "model" and ":" in value:
                    import_model(value)
                named[name] = known.bound.check(name, value)
    return named


def path(text: str) -> Path:
    """A path; ~ and ~user at its beginning are home folders, as in a shell."""
    if not text or "\0" in text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"there is no such home folder as in {text!r}: write ./{text} if it is a name"
        )
    return Path(expanded)


def one_line(text: str, longest: int) -> str:
    """The text, printable and without its middle if need be, whatever values it quotes."""
    shown = printable(text)
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]}...{shown[-half:]}"


def _notes(known: Setting, default: object) -> str:
    notes = [f"with {flag(only.other)} {' or '.join(only.values)}" for only in known.only]
    shown = known.default or (f"{default:g}" if isinstance(default, float) else default)
    if shown not in (None, ""):
        notes.append(f"default {shown}")
    return f" ({'; '.join(notes)})" if notes else ""
