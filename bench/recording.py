"""A command in a terminal, as a picture: python bench/recording.py docs/first-run.svg COMMAND...

Runs the command in a pseudo-terminal, and draws every line that stays on the screen at the moment
when it came. A viewer that shows no animation shows all of them.
"""

import os
import pty
import re
import shlex
import struct
import sys
import termios
import time
from fcntl import ioctl
from html import escape
from pathlib import Path

COLUMNS, ROWS = 100, 40
WIDTH, HEIGHT, MARGIN = 8.4, 20, 16  # pixels: of a character, of a line, around all
PAUSE = 3.0  # seconds at the end


def record(command: list[str]) -> list[tuple[float, str]]:
    """The lines that the command leaves on the screen, and the seconds until each was whole."""
    process, terminal = pty.fork()
    if process == 0:
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin, lines, rest = time.monotonic(), [], ""
    try:
        while data := os.read(terminal, 65536):
            *whole, rest = (rest + data.decode(errors="replace")).split("\r\n")
            lines += [(time.monotonic() - begin, shown(line)) for line in whole]
    except OSError:  # how Linux says that the other end is closed
        pass
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit(f"{shlex.join(command)} ended with status {status}")
    return lines


def shown(line: str) -> str:
    """What is left of a line after carriage returns and commands to the terminal."""
    written = [part for part in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).split("\r") if part]
    return written[-1].rstrip() if written else ""


def draw(command: list[str], lines: list[tuple[float, str]]) -> str:
    """The picture."""
    last = lines[-1][0] + PAUSE
    typed = f"$ {shlex.join(command)}"
    width = int(2 * MARGIN + WIDTH * max(map(len, [typed, *(line for _, line in lines)])))
    height = 2 * MARGIN + HEIGHT * (len(lines) + 1)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#16181d"/>',
        '<g font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14" fill="#d7dae0"'
        ' xml:space="preserve">',
        f'<text x="{MARGIN}" y="{MARGIN + 14}" fill="#8fd08f">{escape(typed)}</text>',
    ]
    for row, (seconds, line) in enumerate(lines, 1):
        share = min(0.999, seconds / last)
        rows.append(
            f'<text x="{MARGIN}" y="{MARGIN + 14 + HEIGHT * row}">{escape(line)}'
            f'<animate attributeName="opacity" values="0;1;1" keyTimes="0;{share:.3f};1"'
            f' calcMode="discrete" dur="{last:.1f}s" repeatCount="indefinite"/></text>'
        )
    return "\n".join([*rows, "</g>", "</svg>"]) + "\n"


if __name__ == "__main__":
    target, *arguments = sys.argv[1:]
    Path(target).write_text(draw(arguments, record(arguments)), encoding="utf-8")
