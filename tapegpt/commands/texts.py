"""Texts that were drawn, as a terminal or a file is shown them."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tapegpt.commands.terminal import harmless
from tapegpt.runs.marks import Marks

WIDEST = 24  # characters of a text before its mark
CUT = "\u2026"  # ends a text that ends with the block


def print_texts(
    texts: Iterable[str],
    block_size: int,
    marks: Marks | None = None,
    column: bool = False,
    stream: TextIO | None = None,
) -> int:
    r"""Print each on a line, and return how many there were.

    Into a file or a pipe they go as they are; a second column, after a tab, has their marks if that
    is wanted. On a terminal they are harmless (\x1b), those that the block cuts end in an ellipsis,
    and each is marked.
    """
    stream, count = stream or sys.stdout, 0
    terminal = stream.isatty()
    for text in texts:
        count += 1
        mark = "" if marks is None else marks.mark(text)
        line = text
        if terminal:
            line = harmless(text) + (CUT if len(text) >= block_size else "")
            if marks is not None:
                line = f"{line:{min(block_size, WIDEST) + 1}}  {marks.spelled(mark)}"
        elif column:
            line = f"{text}\t{mark}"
        print(line, file=stream)
    return count
