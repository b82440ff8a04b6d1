"""Texts as a terminal, a file and a pipe are shown them."""

import io

import pytest

from tapegpt.commands.texts import print_texts
from tapegpt.runs.marks import NEW, Marks
from tapegpt.runs.text import Parts

PARTS = Parts(["anna", "bob", "maximilian"], ["bob", "carl"], ["dora"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_where_texts_are_from():
    terminal, marks = Terminal(), Marks(PARTS, 8)
    texts = ["anna", "bob", "carl", "dora", "emil", "maximili", "emilemil", "\x1b[2J"]
    assert print_texts(texts, 8, marks, stream=terminal) == 8
    assert terminal.getvalue().splitlines() == [
        "anna       in the training part",
        "bob        in the training part",
        "carl       held out",
        "dora       in the test part",
        "emil       new",
        "maximili\u2026  in the training part",
        "emilemil\u2026  new",
        "\\x1b[2J    new",
    ]
    assert marks.summary == (
        "5 of 8 are in the corpus: 3 in the training part, 1 held out, 1 in the test part"
    )


def test_a_corpus_that_is_all_trained_on_has_no_parts():
    terminal, marks = Terminal(), Marks(Parts(["anna"], [], []), 8)
    print_texts(["anna", "emil"], 8, marks, stream=terminal)
    assert terminal.getvalue().splitlines() == ["anna       in the corpus", "emil       new"]
    assert marks.summary == "1 of 2 is in the corpus"


@pytest.mark.parametrize("column", [False, True])
def test_a_file_gets_the_texts_as_they_are(column):
    file, marks = io.StringIO(), Marks(PARTS, 8)
    print_texts(["anna", "maximili", "\x1b"], 8, marks, column, stream=file)
    rows = [("anna", "training"), ("maximili", "training"), ("\x1b", NEW)]
    assert file.getvalue() == "".join(
        f"{text}\t{mark}\n" if column else f"{text}\n" for text, mark in rows
    )


def test_without_marks(capsys):
    terminal = Terminal()
    assert print_texts(["anna", "maximili"], 8, stream=terminal) == 2
    assert terminal.getvalue() == "anna\nmaximili\u2026\n"
    assert print_texts([], 8) == 0
    assert Marks(PARTS, 8).summary == "0 of 0 are in the corpus"
