"""What a terminal is shown: text and names of files may hold commands to it."""

import re

# C0 without the tab, DEL and C1; line and paragraph separators; what turns the direction of text.
COMMANDS = re.compile("[\0-\x08\n-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    r"""The text without commands to a terminal (\x1b instead)."""
    return COMMANDS.sub(_escaped, text)


def printable(text: str) -> str:
    """The text on one line, whatever values it quotes: what is not printable is escaped."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escaped(match: re.Match[str]) -> str:
    return _escape(match[0])


def _escape(character: str) -> str:
    return repr(character)[1:-1]
