"""Texts that go on and on, shown as they are drawn: `tapegpt sample` of a run with --text, or with
--length, --stop or -i.
"""

import codecs
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tapegpt.checkpoint import Run
from tapegpt.commands.terminal import harmless
from tapegpt.errors import TapegptError, UsageError
from tapegpt.settings import SampleConfig

BETWEEN = "\n----\n"  # texts of several lines
LOG = logging.getLogger("tapegpt")


def draw(saved: Run, config: SampleConfig) -> int:
    """Draw and print. Returns the exit code."""
    from tapegpt.sampling.stream import sample_text

    between = BETWEEN if saved.training.text else "\n"
    TextWriter(sys.stdout, saved.training.bytes).write_all(sample_text(saved, config), between)
    return 0


def answer(saved: Run, config: SampleConfig) -> int:
    """Continue each line that is typed. Returns the exit code."""
    from tapegpt.sampling.stream import Sampler

    sampler = Sampler(saved, config)
    writer = TextWriter(sys.stdout, saved.training.bytes)
    for line in _lines():
        try:
            writer.write_all([sampler.text(config.prompt + line)])
        except TapegptError as error:  # of a character that the run does not know
            LOG.warning("%s", error)
    return 0


def _lines() -> Iterator[str]:
    """The lines of standard input; a terminal is asked for them."""
    while True:
        if sys.stdin.isatty():
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\r\n")


def prompt_in(path: Path, saved: Run) -> str:
    """The text of a file as a training reads it, but for a newline at its end."""
    try:
        data = path.read_bytes()
        if saved.training.bytes:
            return data.decode("utf-8", "surrogateescape")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"--prompt-file {str(path)!r} cannot be read: {problem}: choose another"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


class TextWriter:
    r"""Writes texts piece by piece: as they are into a file or a pipe, harmless on a terminal.

    of_bytes: characters are bytes, and those are UTF-8 to a terminal.
    """

    def __init__(self, stream: TextIO, of_bytes: bool) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._of_bytes = of_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write_all(self, texts: Iterable[Iterable[str]], between: str = BETWEEN) -> None:
        """Write each, and a newline after the last."""
        for number, pieces in enumerate(texts):
            self._write(between if number > 0 else "")
            for piece in pieces:
                self._write(piece)
        self._write("\n")

    def _write(self, text: str) -> None:
        if self._of_bytes and not self._terminal:
            self._stream.flush()
            self._stream.buffer.write(text.encode("latin-1"))
            self._stream.buffer.flush()
            return
        if self._of_bytes:
            text = self._decoder.decode(text.encode("latin-1"))
        if self._terminal:
            text = "\n".join(map(harmless, text.split("\n")))
        self._stream.write(text)
        self._stream.flush()
