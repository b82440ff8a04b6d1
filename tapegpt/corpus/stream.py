"""A text as one stream of characters: read once, and kept as small numbers in a mapped file.

Every character, the newline included, is a token. Lines end at \\n, as in Python's text files, and
characters are composed (NFC); what ends without a newline gets one before the next file.

A token is stored as its character's code: the characters are numbered as they appear, so that one
pass is enough, and a code takes a byte where there are no more than 256 of them. The file has no
name, and goes with the process.
"""

import codecs
import hashlib
import io
import mmap
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import closing
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus.files import Watcher, pieces, refusal
from tapegpt.corpus.tokenizer import ALL_BYTES, Tokenizer, code_points
from tapegpt.errors import TapegptError

IN_MEMORY = 1 << 26  # bytes of codes that need no file
BYTE_ORDER_MARK = "\ufeff"
TEXT_REMEDY = "choose a UTF-8 text file, or --bytes, which takes any file"
BYTES_REMEDY = "choose another file"
# A look at a mapped file brings about so many bytes around it into the process (Linux 6.18, ext4).
# Beyond this sum all of them are given back: they stay in the system's cache.
MAPPED_AROUND, MAPPED = 1 << 20, 1 << 27

Codes = NDArray[np.unsignedinteger[Any]]


class TokenStream:
    """The tokens of a text: read it with `read_text` or `read_bytes`."""

    def __init__(
        self, tokenizer: Tokenizer, digest: str, codes: Codes, ids: NDArray[np.int32], mapped: Any
    ) -> None:
        self.tokenizer = tokenizer
        self.digest = digest  # what tells a text from others
        self._codes = codes  # (characters,)
        self._ids = ids  # of every code
        self._mapped: mmap.mmap | None = mapped
        self._touched = 0  # bytes of the mapped file in this process, at most

    def __len__(self) -> int:
        return len(self._codes)

    def with_characters(self, more: str) -> "TokenStream":
        """The same text with an alphabet that has these characters too."""
        both = "".join(sorted({*self.tokenizer.characters, *more}))
        return self.with_tokenizer(Tokenizer(both, delimited=False))

    def with_tokenizer(self, tokenizer: Tokenizer) -> "TokenStream":
        """The same text in another alphabet. Raises `TapegptError` if that lacks a character."""
        ids = tokenizer.encode(self.tokenizer.characters)[self._ids]
        return TokenStream(tokenizer, self.digest, self._codes, ids, self._mapped)

    def restricted(self, tokenizer: Tokenizer) -> "TokenStream":
        """The same text in another alphabet, without the characters that that lacks."""
        known = set(tokenizer.characters)
        kept = np.array([character in known for character in self.tokenizer.characters])
        shared = "".join(c for c in self.tokenizer.characters if c in known)
        ids = np.full(len(kept), -1, np.int32)
        ids[kept] = tokenizer.encode(shared)
        codes = self._codes[kept[self._ids][self._codes]]
        return TokenStream(tokenizer, self.digest, codes, ids[self._ids], None)

    def windows(self, begins: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """The tokens from each of these places on: (windows, length)."""
        if self._mapped is not None:
            self._touched += len(begins) * (MAPPED_AROUND + length * self._codes.itemsize)
            if self._touched > MAPPED:
                self._mapped.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
        codes = self._codes[begins[:, None] + np.arange(length)]
        tokens: NDArray[np.int32] = self._ids[codes]
        return tokens


def read_text(paths: Sequence[Path | Traversable], watch: Watcher | None = None) -> TokenStream:
    """The characters of UTF-8 files, one after the other.

    Raises `TapegptError` if a file cannot be read or is no text, or if all are empty.
    """
    with closing(_Codes()) as codes:
        for path in paths:
            if codes.last not in ("", "\n"):
                codes.add("\n")
            for text in _texts(path, watch):
                codes.add(text)
        if codes.last == "":
            raise refusal(paths[0], "is empty", TEXT_REMEDY)
        return codes.stream()


def read_bytes(paths: Sequence[Path | Traversable], watch: Watcher | None = None) -> TokenStream:
    """The bytes of files, one after the other: 256 symbols, whose characters are U+0000 to U+00FF.

    Raises `TapegptError` if a file cannot be read, or if all are empty.
    """
    digest = hashlib.sha256()
    with closing(_Spool()) as file:
        for path in paths:
            for piece in pieces(path, BYTES_REMEDY, watch):
                digest.update(piece)
                file.write(piece)
        if file.size == 0:
            raise refusal(paths[0], "is empty", BYTES_REMEDY)
        codes, mapped = file.mapped(1)
    tokenizer = Tokenizer(ALL_BYTES, delimited=False)
    ids = np.arange(256, dtype=np.int32)
    return TokenStream(tokenizer, digest.hexdigest(), codes, ids, mapped)


def stream_of(text: str) -> TokenStream:
    """The characters of a string. Raises `TapegptError` if it is empty."""
    with closing(_Codes()) as codes:
        codes.add(composed(io.IncrementalNewlineDecoder(None, translate=True).decode(text, True)))
        if codes.last == "":
            raise TapegptError("the text is empty: choose a longer one")
        return codes.stream()


def _texts(path: Path | Traversable, watch: Watcher | None) -> Any:
    """The text of a file, some at a time: str."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    done, rest = 0, ""
    for piece in chain(pieces(path, TEXT_REMEDY, watch), [b""]):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            begin = done - (len(error.object) - len(piece))
            problem = f"is not UTF-8 at byte {begin + error.start}"
            byte = error.object[error.start]
            raise refusal(path, f"{problem} (0x{byte:02x})", TEXT_REMEDY) from None
        if "\0" in text:
            raise refusal(path, f"is not text: it has a NUL after byte {done}", TEXT_REMEDY)
        done += len(piece)
        text = rest + text
        # An accent that comes first in the next piece belongs to the last character of this one.
        end = _last_start(text) if piece else len(text)
        text, rest = text[:end], text[end:]
        yield text if text.isascii() else composed(text)


def first_unknown(path: Path | Traversable, known: str) -> tuple[str, int] | None:
    """The first character of a file, line ends aside, that is not known; and its line, from 1 on.

    None where there is none.
    """
    line, alphabet = 1, {*known, "\n"}
    for text in _texts(path, None):
        if unknown := set(text) - alphabet:
            place = min(map(text.index, unknown))
            return text[place], line + text.count("\n", 0, place)
        line += text.count("\n")
    return None


def composed(text: str) -> str:
    """The text with accented letters as one character each, without byte-order marks."""
    return unicodedata.normalize("NFC", text.replace(BYTE_ORDER_MARK, ""))


def _last_start(text: str) -> int:
    """Where the last character is that composes with none before it; 0 where there is none.

    Marks do, and of letters the second and the third of a Hangul syllable alone.
    """
    for i in range(len(text) - 1, 0, -1):
        if unicodedata.category(text[i])[0] != "M" and not "\u1160" <= text[i] <= "\u11ff":
            return i
    return 0


class _Spool:
    """Bytes in memory, or in a file without a name where they are many."""

    def __init__(self) -> None:
        self.size = 0
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115

    def write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise TapegptError(
                f"the text does not fit into the folder of temporary files: {error.strerror}:"
                " name one with more space in TMPDIR"
            ) from None
        self.size += len(data)

    def close(self) -> None:
        """A map of the file stays."""
        self._file.close()

    def read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)

    def mapped(self, width: int) -> tuple[Codes, mmap.mmap | None]:
        """All of it as numbers of so many bytes, and the map if it is a file."""
        dtype = np.dtype(f"u{width}")
        if self.size <= IN_MEMORY:
            return np.frombuffer(self.read(0, self.size), dtype), None
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        codes = np.frombuffer(mapped, dtype)
        # Elsewhere than on Linux the system decides by itself what it keeps.
        return codes, mapped if hasattr(mmap, "MADV_DONTNEED") else None


class _Codes:
    """Characters numbered as they appear, and written as these codes."""

    def __init__(self) -> None:
        self.last = ""  # character
        self._characters = ""  # by code
        self._code_of = np.full(sys.maxunicode + 1, -1, np.int32)
        self._of_ascii = bytearray(256)  # the code of each, where one byte is enough
        self._width = 1
        self._file = _Spool()
        self._digest = hashlib.sha256()

    def close(self) -> None:
        """What `stream` has made stays."""
        self._file.close()

    def add(self, text: str) -> None:
        """Write what comes next."""
        if not text:
            return
        self.last = text[-1]
        data = text.encode()
        self._digest.update(data)
        if text.isascii():
            self._know(set(data.translate(None, self._characters.encode())))
            if self._width == 1:
                self._file.write(data.translate(self._of_ascii))
                return
        points = code_points(text)
        codes = self._code_of[points]
        if codes.min() < 0:
            self._know(set(points[codes < 0].tolist()))
            codes = self._code_of[points]
        self._file.write(codes.astype(f"u{self._width}").data.cast("B"))

    def _know(self, points: set[int]) -> None:
        """Number characters that have not come before."""
        new = sorted(point for point in points if self._code_of[point] < 0)
        for code, point in enumerate(new, len(self._characters)):
            self._code_of[point] = code
            if point < 128 and code < 256:
                self._of_ascii[point] = code
        self._characters += "".join(map(chr, new))
        count = len(self._characters)
        width = 1 if count <= 1 << 8 else 2 if count <= 1 << 16 else 4
        if width > self._width:
            self._widen(width)

    def _widen(self, width: int) -> None:
        """Write again what is written, with more bytes for each."""
        wider, piece = _Spool(), 1 << 22
        for at in range(0, self._file.size, piece):
            codes = np.frombuffer(self._file.read(at, piece), f"u{self._width}")
            wider.write(codes.astype(f"u{width}").data.cast("B"))
        self._file.close()
        self._file, self._width = wider, width

    def stream(self) -> TokenStream:
        """All that was written."""
        tokenizer = Tokenizer("".join(sorted(self._characters)), delimited=False)
        codes, mapped = self._file.mapped(self._width)
        ids = tokenizer.encode(self._characters)
        return TokenStream(tokenizer, self._digest.hexdigest(), codes, ids, mapped)
