"""Documents: read from files, one a line, and turned into ids.

A character is a Unicode code point. The vocabulary is the sorted distinct characters of the corpus,
followed by one token, BOS, that begins and ends every document.
"""

import hashlib
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus.files import pieces, refusal, size_of
from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.errors import TapegptError
from tapegpt.system.host import bytes_available

BYTE_ORDER_MARK = "\ufeff"
NOTEWORTHY = 0.01  # share of a corpus of which a warning is worth it, and not only a remark
MOST = 1 / 4  # share of a corpus that is never seen, from which on it is no list of short lines
MEMORY = 28  # bytes, at most, for each of a corpus: documents, tokens, and what they are made of
REMEDY = "choose a UTF-8 text file with one document a line"


def read_documents(*paths: Path | Traversable, as_written: bool = False) -> list[str]:
    r"""The lines of UTF-8 text files, without surrounding white space, blank lines left out.

    Lines end at \n, \r\n or \r alone, as in Python's text files, and where a byte-order mark says
    that another file was joined. Characters are composed (NFC): an accented letter is one character
    however it is written. as_written: none of the latter two. Raises `TapegptError` if a file
    cannot be read, is not a regular file or not text, or holds no document.
    """
    read = [(path, _read(path)) for path in paths]
    return [line for path, data in read for line in _lines(path, data, as_written)]


def read_again(*paths: Path | Traversable, digest: str) -> list[str]:
    """The documents of files, as a run with this digest of them has read them.

    Some runs are older than the care for byte-order marks and decomposed characters.
    """
    read = [(path, _read(path)) for path in paths]
    documents = [line for path, data in read for line in _lines(path, data)]
    if digest_of(documents) != digest:
        as_written = [line for path, data in read for line in _lines(path, data, True)]
        if digest_of(as_written) == digest:
            return as_written
    return documents


def _lines(path: Path | Traversable, data: bytes, as_written: bool = False) -> list[str]:
    """The documents that a file of these bytes holds, see `read_documents`."""
    mark = BYTE_ORDER_MARK.encode()
    start = len(mark) if data.startswith(mark) else 0
    try:
        text = data[start:].decode()
    except UnicodeDecodeError as error:
        raise _no_text(path, "is not UTF-8", data, start + error.start) from None
    if "\0" in text:
        raise _no_text(path, "is not text: it has a NUL", data, data.index(b"\0"))
    if not as_written and not text.isascii():
        text = unicodedata.normalize("NFC", text.replace(BYTE_ORDER_MARK, "\n"))
    # The blank line that this puts into \r\n is left out with the others.
    lines = text.replace("\r", "\n").split("\n")
    documents = [stripped for line in lines if (stripped := line.strip())]
    if not documents:
        raise _refusal(path, "holds only blank lines" if data else "is empty")
    return documents


def digest_of(documents: Sequence[str]) -> str:
    """What tells a corpus from others."""
    return hashlib.sha256("\n".join(documents).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Remark:
    """What is odd about a corpus, on one line, and the share of it that is concerned."""

    text: str
    share: float

    @property
    def is_warning(self) -> bool:
        """Whether it is worth saying to those who want to hear of warnings alone."""
        return self.share >= NOTEWORTHY


def summary_of(documents: Sequence[str], tokenizer: Tokenizer) -> str:
    """How many documents and characters there are, on one line."""
    lengths = [len(document) for document in documents]
    return (
        f"data: {len(documents)} documents, {sum(lengths)} characters, longest {max(lengths)},"
        f" alphabet {len(tokenizer.characters)}, {len(documents) - len(set(documents))} duplicates"
    )


def remarks_on(
    training: Sequence[str], held_out: Sequence[str], block_size: int
) -> Iterator[Remark]:
    """What a user should know of documents before a network learns from them."""
    count = len(training) + len(held_out)
    lengths = np.fromiter(map(len, chain(training, held_out)), np.int64, count)
    longest, total = int(lengths.max()), int(lengths.sum())
    cut = int((lengths + 1 > block_size).sum())  # BOS takes a position too
    if cut:
        unseen = int((lengths - block_size).clip(min=0).sum())
        text = "; --text would read them as one stream" if unseen / total > MOST else ""
        yield Remark(
            f"--block-size {block_size} cuts {cut} of {count} documents: {unseen} of {total}"
            f" characters are never seen; --block-size {longest + 1} would see all{text}",
            unseen / total,
        )
    known = set(training) if held_out else ()
    repeated = sum(document in known for document in held_out)
    if repeated:
        yield Remark(
            f"{repeated} of {len(held_out)} held-out documents are in the training part as well:"
            " what was learned by heart counts in their loss; leave out repeated lines",
            repeated / len(held_out),
        )


def shuffled(documents: Sequence[str], rng: random.Random) -> list[str]:
    """A copy in the order that `rng.shuffle` puts it in."""
    copy = list(documents)
    rng.shuffle(copy)
    return copy


NO_FOLDS = np.zeros(0, np.int8)


class TokenizedCorpus(NamedTuple):
    """Documents end to end: document i is `tokens[offsets[i]:offsets[i + 1]]`, BOS at both ends."""

    tokens: NDArray[np.int32]  # [total]
    offsets: NDArray[np.int64]  # [documents + 1]
    folds: NDArray[np.int8] = NO_FOLDS  # of every token, from 1 on, see CountTable; 0 for none


class Piece(NamedTuple):
    """Documents to measure a loss on; their first `context` positions are only read."""

    corpus: TokenizedCorpus
    context: int


def tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> TokenizedCorpus:
    """All documents as ids, whatever their length.

    Raises `TapegptError` for a character that is not in the alphabet.
    """
    lengths = np.fromiter(map(len, documents), np.int64, len(documents))
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths + 2, out=offsets[1:])
    is_character = np.ones(offsets[-1], np.bool_)
    is_character[offsets[:-1]] = False
    is_character[offsets[1:] - 1] = False
    tokens = np.full(offsets[-1], tokenizer.bos, np.int32)
    tokens[is_character] = tokenizer.encode("".join(documents))
    return TokenizedCorpus(tokens, offsets)


def _read(path: Path | Traversable) -> bytes:
    """The bytes of a file that leaves room in memory for what is made of them."""
    read: list[bytes] = []
    total = 0
    try:
        for piece in pieces(path, REMEDY):
            read.append(piece)
            total += len(piece)
            if MEMORY * max(total, size_of(path)) > bytes_available():
                raise MemoryError
        return b"".join(read)
    except MemoryError:
        remedy = "choose a smaller file, or --text, which reads it as one stream"
        raise refusal(path, "does not fit into memory", remedy) from None


def _no_text(path: Path | Traversable, problem: str, data: bytes, offset: int) -> TapegptError:
    before = data[:offset].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    line = before.count(b"\n") + 1
    return _refusal(path, f"{problem} at byte {offset} (0x{data[offset]:02x}) on line {line}")


def _refusal(path: Path | Traversable, problem: str) -> TapegptError:
    return refusal(path, problem, REMEDY)
