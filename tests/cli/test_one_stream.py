"""`--text` and `--bytes`: training, going on, measuring and sampling from the command line."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from command_line import metrics

from tapegpt.checkpoint import load

TEXT = "the cat sat on the mat,\nthe dog lay by the log.\n\n" * 40
SMALL = ["--block-size", "8", "--n-embd", "8", "--batch-size", "4", "--steps", "20"]


@pytest.fixture
def text(call):
    Path("text.txt").write_text(TEXT)
    return ["train", "--text", "--data", "text.txt", *SMALL]


def test_a_text_trains_and_goes_on(call, text):
    out, err = call(*text, "--metrics", "m.jsonl")
    assert f"text: {len(TEXT)} characters, alphabet {len(set(TEXT))}; the first" in err
    assert out.endswith("\n") and len(out) == 501
    assert set(out) <= set(TEXT)
    run = load(Path("out"))
    assert (run.training.text, run.training.val_fraction) == (True, 0.1)
    assert load(Path("out/best")).best_loss == run.best_loss
    lines = metrics(Path("m.jsonl"))
    assert lines[-1]["val_loss"] == pytest.approx(run.best_loss, abs=1)

    call(*text, "--out", "half", "--steps", "8", "--metrics", "half.jsonl")
    call("train", "--resume", "--out", "half", "--steps", "20", "--metrics", "half.jsonl")
    resumed = load(Path("half"))
    assert [line["loss"] for line in metrics(Path("half.jsonl"))][:8] != []
    assert resumed.step == 20
    _, err = call("train", "--resume", "--out", "half", "--steps", "30", "--data", __file__, code=1)
    assert f"trained on another corpus of {len(TEXT)} characters" in err


def test_a_resumed_text_has_the_same_bits(call, text):
    constant = [*text, "--schedule", "constant"]
    call(*constant, "--out", "whole")
    call(*constant, "--out", "parts", "--steps", "7")
    call("train", "--resume", "--out", "parts", "--steps", "20")
    whole, parts = load(Path("whole")), load(Path("parts"))
    assert all((whole.tensors[name] == parts.tensors[name]).all() for name in whole.tensors)


def test_the_data_of_a_text_may_be_many_files(call, text, monkeypatch):
    call(*text)
    Path("a").write_text(TEXT[:98])
    Path("b.gz").write_bytes(gzip.compress(TEXT[98:294].encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT[294:].encode())))
    several = ["--data", "a", "--data", "b.gz", "--data", "-"]
    call(*text[:2], *several, *SMALL, "--out", "same")
    assert load(Path("same")).documents == len(TEXT)


def test_a_run_of_a_text_is_measured_and_told(call, text):
    call(*text, "--test-fraction", "0.2")
    out, _ = call("eval", "--json")
    parts = json.loads(out)["measured"]
    lengths = [round(share * len(TEXT)) for share in (0.7, 0.1, 0.2)]
    assert [part["characters"] for part in parts] == [lengths[0] - 1, *lengths[1:]]
    best = load(Path("out/best")).best_loss
    assert parts[1]["nats_per_token"] == pytest.approx(best, rel=1e-5)
    Path("other").write_text("the mat sat on the dog,\n")
    assert json.loads(call("eval", "--json", "--data", "other")[0])["measured"][0]["tokens"] == 23
    assert f"{len(TEXT)} characters" in call("info")[0]
    _, err = call("train", "--init-from", "out", "--no-text", "--out", "new", code=2)
    assert "reads a text with --text: so must this one" in err
    call("train", "--init-from", "out", "--steps", "2", "--data", "text.txt", "--out", "new")
    assert load(Path("new")).training.text


def test_samples_of_a_text(call, text, monkeypatch):
    call(*text)
    sample = ["sample", "--temperature", "0"]
    out, _ = call(*sample, "--length", "30", "--prompt", "the cat sat on the ")
    assert out.startswith("the cat sat on the ") and len(out) == 50
    Path("prompt").write_text("the cat sat on the \n")
    assert call(*sample, "--length", "30", "--prompt-file", "prompt")[0] == out
    assert len(call("sample")[0]) == 501
    two = call("sample", "--length", "5", "--num-samples", "2")[0]
    assert two[5:11] == "\n----\n"
    assert len(call(*sample, "--prompt", "the", "--stop", " ")[0]) <= 501
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\nQ\nthe cat sat on the \n"))
    out, err = call(*sample, "--length", "3", "-i")
    assert out.count("\n") >= 2 and out.startswith("the")
    assert "character 'Q'" in err
    _, err = call("sample", "--prompt", "a", "--prompt-file", "prompt", code=2)
    assert "--prompt and --prompt-file do not go together" in err
    _, err = call("sample", "--prompt-file", "missing", code=2)
    assert "--prompt-file 'missing' cannot be read" in err


def test_documents_may_be_longer_than_the_block_in_samples(call):
    Path("names").write_text("abcdefghij\n" * 30)
    call("train", "--data", "names", *SMALL)
    out, _ = call("sample", "--num-samples", "3", "--length", "40", "--prompt", "abcdefghijab")
    assert [text[:12] for text in out.splitlines()] == ["abcdefghijab"] * 3
    _, err = call("sample", "--prompt", "abcdefgh", code=2)
    assert "shorten it to 7, or choose a --length" in err


def test_bytes_are_printed_as_they_are(call, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding="utf-8"))
    Path("data").write_bytes(bytes([0, 255]) * 500)
    flags = [*SMALL, "--steps", "60", "--learning-rate", "0.05", "--temperature", "0"]
    call("train", "--bytes", "--data", "data", *flags)
    assert len(raw.getvalue()) == 501
    run = load(Path("out"))
    assert (run.training.text, run.training.bytes, run.vocab_size) == (True, True, 256)
    call("eval")
    raw.truncate(raw.seek(0))
    call("sample", "--length", "9", "--prompt", "\0", "--temperature", "0")
    assert raw.getvalue() == b"\0" + b"\xff\0" * 4 + b"\xff\n"


def test_other_files_are_refused_with_the_remedy(call, refused):
    Path("data").write_bytes(b"ab\0" * 100)
    words = "is not text: it has a NUL"
    refused("train", "--text", "--data", "data", code=1, names=[words, "or --bytes"])
    Path("data").write_bytes(b"ab")
    refused("train", "--text", "--data", "data", names="a text of 2 characters is shorter than")
    refused("train", "--eval-windows", "5", names="--eval-windows 5 is for --text alone")


def test_long_lines_are_pointed_to_text(call):
    Path("book").write_text("a line that is much longer than a block of sixteen characters\n" * 9)
    _, err = call("train", "--data", "book", "--steps", "1")
    assert "405 of 549 characters are never seen" in err
    assert "; --text would read them as one stream" in err
