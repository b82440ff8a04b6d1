"""A text as one stream: what is read of files, and what windows of it hold."""

import gzip
import io
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.corpus import files, stream
from tapegpt.corpus.stream import read_bytes, read_text
from tapegpt.corpus.windows import EVALUATION, TRAINING, Part
from tapegpt.errors import TapegptError

# Code points of every width, combining marks that come first in a piece, and line ends.
CHARACTERS = st.sampled_from("ab \n\r\t\x0b\x1c\u0085\u2028e\u0301\u0308é漢\u1100\u1161😀")


def written(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"text{i}" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def text_of(tokens: stream.TokenStream) -> str:
    every = tokens.windows(np.array([0]), len(tokens))[0]
    return tokens.tokenizer.decode(every.tolist())


@given(
    texts=st.lists(st.text(CHARACTERS), min_size=1, max_size=3).filter(any),
    piece=st.integers(1, 9),
    in_memory=st.sampled_from([0, 5, 1 << 20]),
)
def test_every_character_is_a_token(tmp_path_factory, texts, piece, in_memory):
    paths = written(tmp_path_factory.mktemp("texts"), *(text.encode() for text in texts))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(files, "PIECE", piece)
        monkeypatch.setattr(stream, "IN_MEMORY", in_memory)
        tokens = read_text(paths)
    expected = ""
    for path in paths:
        if expected and not expected.endswith("\n"):
            expected += "\n"
        with open(path, encoding="utf-8") as file:  # as Python translates line ends
            expected += unicodedata.normalize("NFC", file.read())
    assert text_of(tokens) == expected
    assert tokens.tokenizer.characters == "".join(sorted(set(expected)))
    assert tokens.tokenizer.vocab_size == len(set(expected))
    assert len(tokens) == len(expected)


@pytest.mark.parametrize(("count", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_codes_are_as_narrow_as_the_alphabet_allows(tmp_path, monkeypatch, count, width):
    monkeypatch.setattr(files, "PIECE", 1000)
    monkeypatch.setattr(stream, "IN_MEMORY", 100)
    text = "".join(map(chr, range(0xF0000, 0xF0000 + count))) * 2  # for private use
    tokens = read_text(written(tmp_path, text.encode()))
    assert text_of(tokens) == text
    assert tokens._codes.itemsize == width


def test_byte_order_marks_are_no_characters(tmp_path):
    text = read_text(written(tmp_path, b"\xef\xbb\xbfann", "\ufeffb\ufefföb".encode()))
    assert text_of(text) == "ann\nböb"


def test_any_file_is_bytes(tmp_path):
    content = bytes(range(256)) + b"\r\n\0\xff"
    tokens = read_bytes(written(tmp_path, content, b"\r"))
    assert tokens.windows(np.array([0]), len(tokens))[0].tolist() == [*content, 13]
    assert tokens.tokenizer.vocab_size == 256
    assert tokens.tokenizer.characters == "".join(map(chr, range(256)))


def test_the_digest_is_that_of_the_text(tmp_path):
    one, same, other = written(tmp_path, "a\r\nzoë".encode(), "a\nzoe\u0308".encode(), b"a\nzoe")
    assert read_text([one]).digest == read_text([same]).digest != read_text([other]).digest
    assert read_bytes([one]).digest != read_bytes([same]).digest


def test_compressed_files_and_standard_input(tmp_path, monkeypatch):
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"ann\n"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bob")))
    assert text_of(read_text([tmp_path / "text.gz", Path("-")])) == "ann\nbob"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty: choose a UTF-8 text file, or --bytes, which takes any file"),
        (b"a" * 20 + b"b\0", "is not text: it has a NUL"),
        (b"a" * 20 + b"\xe2\x82", r"is not UTF-8 at byte 20 \(0xe2\)"),
        ("ab€".encode() * 3 + b"\xff", r"is not UTF-8 at byte 15 \(0xff\)"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, content, problem):
    monkeypatch.setattr(files, "PIECE", 4)
    (path,) = written(tmp_path, content)
    with pytest.raises(TapegptError, match=problem):
        read_text([path])


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_gz_file_is_refused(tmp_path, damage):
    data = gzip.compress(b"ann\n" * 1000)
    content = {"cut": data[:-9], "changed": data[:20] + b"\xff" * 9 + data[29:], "other": b"ann"}
    (tmp_path / "text.gz").write_bytes(content[damage])
    with pytest.raises(TapegptError, match=r"is not a whole \.gz file: "):
        read_text([tmp_path / "text.gz"])


def test_reading_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4)
    (path,) = written(tmp_path, b"0123456789")
    seen: list[object] = []
    read_text([path], lambda *what: seen.append(what))
    assert seen == [(path, 4, 10), (path, 8, 10), (path, 10, 10)]


def stream_of(folder: Path, length: int) -> stream.TokenStream:
    """Character i is chr(0x4e00 + i): a window tells where it begins."""
    return read_text(written(folder, "".join(map(chr, range(0x4E00, 0x4E00 + length))).encode()))


@pytest.mark.parametrize("block", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("held_out", [1, 4, 5, 6, 30, 31])
@pytest.mark.parametrize("before", [0, 1, 2, 5, 50])
def test_an_evaluation_predicts_every_character_once(
    tmp_path, monkeypatch, block, held_out, before
):
    monkeypatch.setattr("tapegpt.corpus.windows.TOKENS_PER_PIECE", 25)
    end = before + held_out
    part = Part(stream_of(tmp_path, end), before, end, block)
    predicted = []
    for (tokens, offsets, _), context in part.pieces():
        for begin, end in pairwise(offsets):
            window = tokens[begin:end].tolist()
            assert window == list(range(window[0], window[0] + len(window)))
            assert 1 + context < len(window) <= block + 1
            # Half a block comes before, or all that there is.
            assert window[0] == 0 or context == block // 2
            predicted += window[1 + context :]
    assert predicted == list(range(max(1, before), before + held_out))


def test_windows_are_drawn_by_the_seed_and_their_number(tmp_path):
    part = Part(stream_of(tmp_path, 40), 10, 30, 5)

    def begins(seed, purpose, first, count):
        """Of windows first, first + 1, ..., found as a kernel finds them."""
        tokens, offsets, _ = part.drawn(seed, purpose, first, count)
        assert np.diff(offsets).tolist() == [6] * count
        windows = tokens.reshape(count, 6)
        assert (np.diff(windows) == 1).all()
        return [int(windows[i % count, 0]) for i in range(first, first + count)]

    many = begins(1, TRAINING, 0, 1000)
    assert begins(1, TRAINING, 7, 20) == many[7:27]
    assert begins(1, TRAINING, 999, 1) == many[999:]
    assert begins(2, TRAINING, 0, 20) != many[:20] != begins(1, EVALUATION, 0, 20)
    counts = np.bincount(many, minlength=30)
    assert (counts[:10] == 0).all() and (counts[25:] == 0).all()
    assert counts[10:25].min() > 30  # of 67 on average: any start, equally likely
