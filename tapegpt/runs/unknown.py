"""A text that is measured in the alphabet of a run, which may lack some of its characters."""

from collections.abc import Sequence
from pathlib import Path

from tapegpt.checkpoint import Run
from tapegpt.corpus import Corpus, TokenStream
from tapegpt.corpus.files import STANDARD_INPUT
from tapegpt.corpus.stream import first_unknown
from tapegpt.errors import TapegptError


def known_part(corpus: Corpus, run: Run) -> tuple[Corpus, int]:
    """What the run can read of a corpus, and how much of it is left out.

    Of documents, those with a character that it does not know; of a text, such characters.
    """
    if isinstance(corpus, TokenStream):
        text = corpus.restricted(run.tokenizer)
        return text, len(corpus) - len(text)
    known = set(run.characters)
    documents = [document for document in corpus if known.issuperset(document)]
    return documents, len(corpus) - len(documents)


def check_known(corpus: Corpus, run: Run, paths: Sequence[Path]) -> None:
    """Raise `TapegptError` for what the run cannot read of a corpus in these files.

    It names the first character, its line, and how much has such.
    """
    left_out = known_part(corpus, run)[1]
    if left_out == 0:
        return
    is_text = isinstance(corpus, TokenStream)
    what = "characters are such" if is_text else "documents have such"
    raise TapegptError(
        f"{_first(corpus, run, paths)} is not in the alphabet of the run, and {left_out} of"
        f" {len(corpus)} {what}: --skip-unknown leaves those out"
    )


def _first(corpus: Corpus, run: Run, paths: Sequence[Path]) -> str:
    for path in paths:
        if path == STANDARD_INPUT:  # which is read
            break
        # White space around documents is none of them.
        ignored = "" if isinstance(corpus, TokenStream) else " \t\v\f"
        if found := first_unknown(path, run.characters + ignored):
            character, line = found
            return f"{_named(character)} on line {line} of {str(path)!r}"
    characters = corpus.tokenizer.characters if isinstance(corpus, TokenStream) else "".join(corpus)
    return _named(next(c for c in characters if c not in run.characters))


def _named(character: str) -> str:
    return f"character {character!r} (U+{ord(character):04X})"
