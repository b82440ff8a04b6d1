"""Characters to ids and back."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tapegpt.errors import TapegptError

ALL_BYTES = "".join(map(chr, range(256)))  # the alphabet of a text whose characters are bytes


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Characters to ids and back. An id is the character's place in `characters`.

    delimited: whether one more token, BOS, begins and ends every document. A text that is one
    stream has none.
    """

    characters: str  # distinct, ascending
    delimited: bool = True

    def __post_init__(self) -> None:
        if not self.characters:
            raise TapegptError("the alphabet has no characters: train on text that has some")
        if sorted(set(self.characters)) != list(self.characters):
            shown = _shorten(self.characters)
            raise TapegptError(f"the alphabet {shown} is not sorted or repeats itself: sort it")

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> Self:
        """The alphabet of a corpus; `TapegptError` if it has none."""
        return cls("".join(sorted(set().union(*documents))))

    @property
    def bos(self) -> int:
        """The id of the token that begins and ends a document: one more than any character's."""
        return len(self.characters)

    @property
    def vocab_size(self) -> int:
        return vocab_size_of(self.characters, self.delimited)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of the characters of `text`: int32[len(text)], without BOS.

        Raises `TapegptError` for a character that is not in the alphabet.
        """
        ids_by_code = np.full(sys.maxunicode + 1, -1, np.int32)
        ids_by_code[code_points(self.characters)] = np.arange(self.bos)
        ids = ids_by_code[code_points(text)]
        if ids.min(initial=0) < 0:
            character = text[int((ids < 0).argmax())]
            raise TapegptError(
                f"character {character!r} (U+{ord(character):04X}) is not in the alphabet: "
                f"use only {_shorten(self.characters)}"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `encode` makes `ids` of; `TapegptError` for BOS or what is no id."""
        text = []
        for token in ids:
            if not 0 <= token < self.bos:
                raise TapegptError(
                    f"token {token} is not a character: choose ids from 0 to {self.bos - 1}"
                )
            text.append(self.characters[token])
        return "".join(text)


def vocab_size_of(characters: str, delimited: bool) -> int:
    """How many tokens there are: the characters, and BOS where documents are delimited."""
    return len(characters) + delimited


def code_points(text: str) -> NDArray[np.uint32]:
    """uint32[len(text)]; lone surrogates, which a command line can hold, are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _shorten(characters: str) -> str:
    shown = repr(characters)
    return shown if len(shown) <= 60 else shown[:57] + "..."
