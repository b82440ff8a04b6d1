"""Corpora, as `train` takes them or refuses them."""

import gzip
import io
import sys
from pathlib import Path

import pytest
from command_line import SKY

from tapegpt.checkpoint import load
from tapegpt.commands import train
from tapegpt.corpus import read_documents
from tapegpt.runs import text


def corpus(content):
    path = Path("corpus.txt")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n \r\n\t\n", "only blank lines"),
        (b"\xef\xbb\xbf", "only blank lines"),
        (b"abc\nd\xffe\n", "is not UTF-8 at byte 5 (0xff) on line 2"),
        (b"abc\0", "has a NUL at byte 3"),
        (b"a\xed\xa0\x80", "is not UTF-8"),
        (b"\n" * 1_000_000, "only blank lines"),
    ],
    ids=str,
)
def test_text_that_cannot_be_used(refused, content, problem):
    refused("train", "--data", corpus(content), code=1, names=["'corpus.txt'", problem])


def test_files_that_cannot_be_used(refused):
    refused("train", "--data", "missing.txt", code=1, names="'missing.txt' cannot be read")
    refused("train", "--data", ".", code=1, names="'.' is a directory")


@pytest.mark.parametrize(
    ("content", "alphabet"),
    [
        (b"aaa\na\n", "a"),
        (b"\xef\xbb\xbfab\r\nba\r\n\r\n", "ab"),
        (b"ab" * 5_000_000 + b"\nba\n", "ab"),
        (b"a document that is much longer than the block\nanother\n", None),
        ("\U0001f600\U0001f468\u200d\U0001f469\nq\u0301\u0627\u0644\u05d0\n".encode(), None),
        (b"ab\n" + b"\n" * 1_000_000 + b"ba\n", "ab"),
        (b"'\"\\{}%s\n", None),
    ],
    ids=["one character", "BOM and CRLF", "10 MB line", "long", "emoji", "blank lines", "quotes"],
)
def test_text_that_trains(call, content, alphabet):
    out, _ = call("train", "--steps", "3", "--data", corpus(content))
    samples = out.split("\n")[:-1]
    assert len(samples) == 20
    assert max(map(len, samples)) <= 16
    assert set("".join(samples)) <= set(alphabet or content.decode())
    text, _ = call("sample", "--num-samples", "2", "--prompt", content.decode("utf-8-sig")[0])
    assert text


def test_prompts_are_spelled_as_the_corpus_is_read(call):
    corpus("zoe\u0308\nzo\u00eb\nq\u0308\n".encode() * 9)
    call("train", "--steps", "20", "--data", "corpus.txt")
    for prompt in ("zo\u00eb", "zoe\u0308"):
        out, _ = call("sample", "--num-samples", "2", "--prompt", prompt)
        assert [text[:3] for text in out.splitlines()] == ["zo\u00eb"] * 2


def test_remarks_on_the_corpus(call):
    """Few characters that are never seen are no warning."""
    flags = ["train", "--steps", "2", "--data", corpus(b"a" * 50 + b"\nb\nb\nb\nb\n")]
    held_out = [*flags, "--val-fraction", "0.5"]
    for quiet in ([], ["--quiet"]):
        _, err = call(*flags, *quiet)
        assert "tapegpt: --block-size 16 cuts 1 of 5 documents: 34 of 54 characters" in err
        assert "held-out documents are in the training part as well" in call(*held_out, *quiet)[1]
    few = ["train", "--steps", "2", "--data", SKY]
    assert "--block-size 16 cuts 1 of" in call(*few)[1]
    assert call(*few, "--quiet")[1] == ""


def test_a_run_from_before_characters_were_composed_goes_on(call, monkeypatch):
    path = corpus("\ufeffzoe\u0308\n\ufeffann\n".encode() * 9)
    with monkeypatch.context() as patch:
        patch.setattr(text, "read_documents", lambda path: read_documents(path, as_written=True))
        call("train", "--steps", "3", "--data", path)
    assert "\u0308" in load(Path("out")).characters
    call("train", "--resume", "--steps", "5", "--data", path)
    assert load(Path("out")).step == 5


def test_more_threads_than_processors_are_said(call, monkeypatch):
    flags = ["train", "--steps", "2", "--data", SKY, "--batch-size", "4", "--quiet"]
    monkeypatch.setattr(train, "processors", lambda: 2)
    assert call(*flags, "--threads", "2")[1] == ""
    _, err = call(*flags, "--threads", "3")
    assert err == "tapegpt: --threads 3 is more than there are processors: --threads 2 is as fast\n"


def test_several_files_are_one_corpus(call, monkeypatch):
    Path("one.txt").write_text("ann\nbob")
    Path("two.txt.gz").write_bytes(gzip.compress(b"cid\n"))
    train = ["train", "--steps", "2", "--data", "one.txt", "--data", "two.txt.gz"]
    call(*train)
    assert load(Path("out")).documents == 3
    call("train", "--resume", "--steps", "3", "--data", corpus(b"ann\nbob\ncid"))
    for file in ("one.txt", "two.txt.gz"):
        _, err = call(*train, "--metrics", file, code=2)
        assert f"--metrics {file!r} is the text to train on" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ann\nbob\n")))
    assert "2 documents" in call("train", "--steps", "2", "--data", "-")[1]
