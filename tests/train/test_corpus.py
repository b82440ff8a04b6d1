import os
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.corpus import (
    Tokenizer,
    default_corpus,
    digest_of,
    read_again,
    read_documents,
    remarks_on,
    shuffled,
    tokenize,
)
from tapegpt.errors import TapegptError

# Code points of every width, combining marks, and all that some program takes for a line's end.
CHARACTERS = st.one_of(
    st.sampled_from("ab \t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\ufeff\u0301é漢😀\U0010ffff"),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
)
DOCUMENTS = st.lists(st.text(CHARACTERS), min_size=1).filter(any)
HOSTILE = {
    "missing": "No such file",
    "folder": "is a directory",
    "empty": "is empty",
    "mark": "holds only blank lines",
    "blank": "holds only blank lines",
    "nul": r"is not text: it has a NUL at byte 11 \(0x00\) on line 4",
    "latin-1": r"is not UTF-8 at byte 6 \(0xe9\) on line 2",
    "marked": r"is not UTF-8 at byte 4 \(0xff\) on line 1",
    "cut": r"is not UTF-8 at byte 1 \(0xe2\) on line 1",
    "surrogate": r"is not UTF-8 at byte 2 \(0xed\) on line 2",
    "utf-16": r"is not UTF-8 at byte 0 \(0xff\) on line 1",
    "x" * 1000: "cannot be read",
    "a\0b": "cannot be read",
}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    contents = {
        "empty": b"",
        "mark": b"\xef\xbb\xbf",
        "blank": b" \n\r\n\t\r\xe2\x80\xa8\n",
        "nul": b"ann\r\nbob\r\n\r\0",
        "latin-1": b"ann\nzo\xe9\n",
        "marked": b"\xef\xbb\xbfa\xff",
        "cut": b"a\xe2\x82",
        "surrogate": b"a\r\xed\xa0\x80",
        "utf-16": b"\xff\xfea\0n\0n\0",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def line_of(error: pytest.ExceptionInfo[TapegptError]) -> str:
    message = str(error.value)
    assert message.isprintable(), "one line that a terminal can show"
    return message


def test_shipped_names() -> None:
    data = default_corpus().read_bytes()
    names = data.decode().split("\n")
    assert names.pop() == ""
    assert len(names) >= 2000
    assert all(re.fullmatch("[a-z]+", name) for name in names)
    assert names == sorted(set(names))
    assert read_documents(default_corpus()) == names
    readme = Path(__file__).parents[2] / "data" / "README.md"
    assert f"{len(names):,} names" in readme.read_text()


@settings(deadline=None)
@given(st.text(CHARACTERS).filter(lambda text: text.strip() and text[0] != "\ufeff"))
def test_reads_what_microgpt_reads(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("corpus") / "text"
    path.write_bytes(text.encode())
    with open(path, encoding="utf-8") as file:
        expected = [line.strip() for line in file if line.strip()]
    assert read_documents(path, as_written=True) == expected
    if "\ufeff" not in text:
        composed = [unicodedata.normalize("NFC", document).strip() for document in expected]
        assert read_documents(path) == composed


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(tmp_path: Path, end: bytes, last: bool) -> None:
    path = tmp_path / "names"
    path.write_bytes(end.join([b"ann", b"", b"  bob\t", b" ", b"a b"]) + end * last)
    assert read_documents(path) == ["ann", "bob", "a b"]


@pytest.mark.parametrize("between", ["\n", "\r\n", "", "\n\n"])
def test_a_byte_order_mark_begins_a_document(tmp_path: Path, between: str) -> None:
    """As where files are joined, the first of which may have no line end."""
    path = tmp_path / "names"
    path.write_bytes(f"\ufeffann{between}\ufeff\ufeffbob\n\ufeff".encode())
    assert read_documents(path) == ["ann", "bob"]


def test_characters_are_composed(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("zo\u00eb\nzoe\u0308\n\u212bse\nq\u0308\n", encoding="utf-8")
    assert read_documents(path) == ["zo\u00eb", "zo\u00eb", "\u00c5se", "q\u0308"]
    assert read_documents(path, as_written=True)[1] == "zoe\u0308"


def test_a_run_finds_the_documents_that_it_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("zoe\u0308\n\ufeffann\n", encoding="utf-8")
    as_written, read = ["zoe\u0308", "\ufeffann"], ["zo\u00eb", "ann"]
    assert read_again(path, digest=digest_of(as_written)) == as_written
    assert read_again(path, digest=digest_of(read)) == read
    assert read_again(path, digest=digest_of(["others"])) == read


def remarks(*arguments):
    return [(remark.text, remark.is_warning) for remark in remarks_on(*arguments)]


def test_documents_that_are_cut_are_counted() -> None:
    assert remarks(["a" * 15], ["a"], 16) == []
    assert remarks(["a" * 16, "a" * 84], [], 16) == [
        (
            "--block-size 16 cuts 2 of 2 documents: 68 of 100 characters are never seen;"
            " --block-size 85 would see all; --text would read them as one stream",
            True,
        )
    ]
    text, is_warning = remarks(["a" * 17] + ["a" * 10] * 100, [], 16)[0]
    assert "cuts 1 of 101 documents: 1 of 1017 characters" in text
    assert "--text" not in text
    assert not is_warning


def test_held_out_documents_that_are_trained_on_are_counted() -> None:
    assert remarks(["a", "b"], ["c"], 16) == []
    text, is_warning = remarks(["a", "b", "a"], ["a", "c", "a"], 16)[0]
    assert text.startswith("2 of 3 held-out documents are in the training part as well: ")
    assert is_warning


def test_reads_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("ann\n")
    (tmp_path / "link").symlink_to("names")
    assert read_documents(tmp_path / "link") == ["ann"]


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_in_one_line(hostile: Path, name: str) -> None:
    with pytest.raises(TapegptError, match=HOSTILE[name]) as error:
        read_documents(hostile / name)
    line = line_of(error)
    assert line.startswith(f"corpus {str(hostile / name)!r} ")
    assert line.endswith(": choose a UTF-8 text file with one document a line")


def test_refuses_a_path_that_would_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(TapegptError) as error:
        read_documents(tmp_path / "a\nb\udcff\x1b[31m")
    assert r"a\nb\udcff\x1b[31m" in line_of(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_refuses_a_pipe_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(TapegptError, match="is not a regular file") as error:
            read_documents(path)
        line_of(error)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read: Permission denied: choose"),
        (MemoryError(), "does not fit into memory: choose a smaller file"),
    ],
)
def test_refuses_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, words: str
) -> None:
    def open(path: Path, mode: str) -> None:
        raise problem

    (tmp_path / "names").write_text("ann\n")
    monkeypatch.setattr(Path, "open", open)
    with pytest.raises(TapegptError, match=words) as error:
        read_documents(tmp_path / "names")
    line_of(error)


def test_shuffled_is_microgpts_shuffle_of_a_copy() -> None:
    documents = [str(i) for i in range(100)]
    expected = documents.copy()
    state = random.getstate()
    random.seed(42)
    random.shuffle(expected)
    random.setstate(state)
    original = tuple(documents)
    assert shuffled(documents, random.Random(42)) == expected != documents
    assert tuple(documents) == original


@settings(deadline=None)
@given(DOCUMENTS)
def test_tokenizer_is_microgpts(documents: list[str]) -> None:
    characters = sorted(set("".join(documents)))
    tokenizer = Tokenizer.from_documents(documents)
    assert tokenizer.characters == "".join(characters)
    assert (tokenizer.bos, tokenizer.vocab_size) == (len(characters), len(characters) + 1)
    for document in documents:
        ids = tokenizer.encode(document)
        assert ids.dtype == np.int32
        assert ids.tolist() == [characters.index(character) for character in document]
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == document


@settings(deadline=None)
@given(DOCUMENTS)
def test_tokenize_is_microgpts(documents: list[str]) -> None:
    tokenizer = Tokenizer.from_documents(documents)
    characters, bos = tokenizer.characters, tokenizer.bos
    corpus = tokenize(documents, tokenizer)
    assert corpus.tokens.dtype == np.int32
    assert corpus.offsets.dtype == np.int64
    assert corpus.offsets[0] == 0
    assert corpus.offsets[-1] == len(corpus.tokens)
    assert len(corpus.offsets) == len(documents) + 1
    for i, document in enumerate(documents):
        tokens = corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]]
        assert tokens.tolist() == [bos] + [characters.index(c) for c in document] + [bos]


def test_a_corpus_of_one_character() -> None:
    tokenizer = Tokenizer.from_documents(["aa", "a"])
    assert (tokenizer.characters, tokenizer.bos, tokenizer.vocab_size) == ("a", 1, 2)
    corpus = tokenize(["aa", "a"], tokenizer)
    assert corpus.tokens.tolist() == [1, 0, 0, 1, 1, 0, 1]
    assert corpus.offsets.tolist() == [0, 4, 7]
    with pytest.raises(TapegptError, match="U\\+0062"):
        tokenizer.encode("ab")


def test_no_documents_are_no_tokens() -> None:
    corpus = tokenize([], Tokenizer("ab"))
    assert len(corpus.tokens) == 0
    assert corpus.offsets.tolist() == [0]


def test_one_line_of_ten_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("ab cd😀" * 1_000_000, encoding="utf-8")
    documents = read_documents(path)
    tokenizer = Tokenizer.from_documents(documents)
    corpus = tokenize(documents, tokenizer)
    assert tokenizer.characters == " abcd😀"
    assert corpus.offsets.tolist() == [0, 6_000_002]
    assert corpus.tokens[0] == corpus.tokens[-1] == 6
    assert (corpus.tokens[1:-1].reshape(-1, 6) == [1, 2, 0, 3, 4, 5]).all()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abé", r"'é' \(U\+00E9\)"),  # above the alphabet
        ("a b", r"' ' \(U\+0020\)"),  # below
        ("acb?", r"'c' \(U\+0063\)"),  # between, and the first of two
        ("😀", r"'😀' \(U\+1F600\)"),
        ("a\n", r"'\\n' \(U\+000A\)"),
        ("\udce9", r"'\\udce9' \(U\+DCE9\)"),  # a byte of a command line that is not UTF-8
    ],
)
def test_refuses_an_unknown_character(text: str, shown: str) -> None:
    words = rf"character {shown} is not in the alphabet: use only 'abd'"
    with pytest.raises(TapegptError, match=words) as error:
        Tokenizer("abd").encode(text)
    line_of(error)
    with pytest.raises(TapegptError, match=words):
        tokenize(["ab", text], Tokenizer("abd"))


def test_shows_a_long_alphabet_shortly() -> None:
    tokenizer = Tokenizer("".join(map(chr, range(0x4E00, 0x9000))))
    with pytest.raises(TapegptError, match=r"use only '一丁.*\.\.\.$") as error:
        tokenizer.encode("a")
    assert len(line_of(error)) < 120


@pytest.mark.parametrize("token", [-1, 2, 2**40])
def test_refuses_to_decode_what_is_no_character(token: int) -> None:
    words = f"token {token} is not a character: choose ids from 0 to 1"
    with pytest.raises(TapegptError, match=words):
        Tokenizer("ab").decode([0, token])


@pytest.mark.parametrize("characters", ["", "ba", "aab", "b\na"])
def test_refuses_an_alphabet_that_is_none(characters: str) -> None:
    with pytest.raises(TapegptError, match="alphabet") as error:
        Tokenizer(characters)
    line_of(error)
    with pytest.raises(TapegptError, match="alphabet has no characters"):
        Tokenizer.from_documents([])
