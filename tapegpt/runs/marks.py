"""Whether a text that a run draws is new, or one of its documents."""

from collections import Counter

from tapegpt.corpus.windows import Part
from tapegpt.runs.text import Parts

NEW = "new"
PLACES = {"training": "in the training part", "held out": "held out", "test": "in the test part"}


class Marks:
    """Finds texts among the documents of a run, and counts what it found."""

    def __init__(self, parts: Parts, block_size: int) -> None:
        self._spelled = PLACES if parts.held_out or parts.test else {"training": "in the corpus"}
        self._places: dict[str, str] = {}
        # A document that is in several parts counts as one to learn from.
        for place, documents in reversed(list(zip(PLACES, parts, strict=True))):
            assert not isinstance(documents, Part)  # which has no documents to find again
            for document in documents:
                self._places[document[:block_size]] = place  # no text is longer
        self._counts: Counter[str] = Counter()

    def mark(self, text: str) -> str:
        """`NEW`, or one of `PLACES`."""
        place = self._places.get(text, NEW)
        self._counts[place] += 1
        return place

    def spelled(self, mark: str) -> str:
        """A mark in words: of a corpus that is all trained on they name no part."""
        return self._spelled.get(mark, mark)

    @property
    def summary(self) -> str:
        """How many of the texts so far are documents."""
        known = self._counts.total() - self._counts[NEW]
        found = [f"{self._counts[place]} {PLACES[place]}" for place in PLACES]
        where = ", ".join(text for text in found if not text.startswith("0 "))
        are = "is" if known == 1 else "are"
        of = f"{known} of {self._counts.total()} {are} in the corpus"
        return f"{of}: {where}" if where and self._spelled is PLACES else of
