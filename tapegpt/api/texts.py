"""Documents to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tapegpt.api.words import pythons_words
from tapegpt.corpus import default_corpus, read_documents
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


def corpus_of(source: Corpus | str | Path | Iterable[str]) -> Corpus:
    """A corpus as it is, or one made of what a corpus can be made of."""
    return source if isinstance(source, Corpus) else Corpus(source)
