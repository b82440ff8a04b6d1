"""What a model learns from: documents, or a text as one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from tapegpt.api.words import pythons_words
from tapegpt.corpus import default_corpus, digest_of, read_documents
from tapegpt.corpus.stream import read_text, stream_of
from tapegpt.errors import UsageError


class Corpus:
    """Documents: names, sentences, lines of code.

        Corpus(["emma", "olivia"])
        Corpus("emma\\nolivia\\n")      # a text, one document a line
        Corpus(Path("names.txt"))      # a UTF-8 file, likewise
        Corpus.names()                 # given names, which ship with the package

    Of a text or a file, lines lose the white space around them, and blank ones are left out. Raises
    TapegptError for a file that cannot be read, and where there is no document.
    """

    def __init__(self, source: str | Path | Iterable[str]) -> None:
        with pythons_words():
            if isinstance(source, Path):
                given = read_documents(source)
            elif isinstance(source, str):
                given = [line.strip() for line in source.splitlines()]
            else:
                given = list(source)
        for document in given:
            if not isinstance(document, str):
                raise UsageError(f"a document is a string, not {document!r:.60}")
        self.documents = tuple(document for document in given if document)
        if not self.documents:
            raise UsageError("a corpus has at least one document that is not empty")
        self.characters = "".join(sorted(set().union(*self.documents)))
        self.learnt_from = self.documents  # as the trainer takes it
        self.digest = digest_of(self.documents)

    @classmethod
    def names(cls) -> Corpus:
        """The list of given names that ships with the package."""
        return cls(read_documents(default_corpus()))

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[str]:
        return iter(self.documents)

    def __repr__(self) -> str:
        return f"Corpus({len(self)} documents, {len(self.characters)} characters)"


class Text:
    """A text as one stream of characters, newlines too: a book, a program.

        Text(Path("book.txt"))         # a UTF-8 file
        Text("to be\nor not to be\n")

    A model of a text learns from windows of it, and goes on for as long as one likes. Raises
    TapegptError for a file that cannot be read, and where there is no character.
    """

    def __init__(self, source: str | Path) -> None:
        with pythons_words():
            if isinstance(source, Path):
                self.learnt_from = read_text([source])
            elif isinstance(source, str):
                self.learnt_from = stream_of(source)
            else:
                raise UsageError(f"a text is a string or a Path, not {source!r:.60}")
        self.characters = self.learnt_from.tokenizer.characters
        self.digest = self.learnt_from.digest

    def __len__(self) -> int:
        return len(self.learnt_from)

    def __repr__(self) -> str:
        return f"Text({len(self)} characters, {len(self.characters)} different)"


Source: TypeAlias = Corpus | Text | str | Path | Iterable[str]


def corpus_of(source: Source) -> Corpus | Text:
    """A corpus or a text as it is, or a corpus made of what one can be made of."""
    return source if isinstance(source, (Corpus, Text)) else Corpus(source)
