"""The counting model, and the table of its features, against a plain one made of dictionaries."""

import copy
import pickle

import numpy as np
import pytest
from counting_reference import Plain
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.corpus import Tokenizer, default_corpus, read_documents
from tapegpt.counting import CountingModel, CountTable
from tapegpt.counting.texts import folds_in_documents, folds_in_text
from tapegpt.errors import TapegptError
from tapegpt.tape import Tape, TapeError


def ids(text):
    return np.array(["abc".index(character) for character in text], np.int64)


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=6),
    other=st.text("abc", min_size=1, max_size=20),
    context=st.integers(0, 4),
)
@settings(max_examples=100)
def test_losses_are_those_of_dictionaries(texts, other, context):
    texts, other = [ids(text) for text in texts], ids(other)
    model = CountingModel(texts, 3, context)
    expected = Plain(texts, 3, context).losses(other)
    assert model.losses([other]) == pytest.approx(expected, rel=1e-9)


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=6),
    before=st.text("abc", max_size=8),
    context=st.integers(0, 4),
)
def test_probabilities_sum_to_one(texts, before, context):
    model = CountingModel([ids(text) for text in texts], 3, context)
    losses = [model.losses([ids(before + token)])[-1] for token in "abc"]
    assert np.exp(-np.array(losses)).sum() == pytest.approx(1)


def test_a_text_does_not_go_on_in_the_next():
    model = CountingModel([ids("abcabcabc")], 3, 3)
    apart = model.losses([ids("ab"), ids("ca")])
    assert apart == pytest.approx([*model.losses([ids("ab")]), *model.losses([ids("ca")])])
    assert apart[2] > model.losses([ids("abca")])[2]


def test_more_context_knows_more_of_names():
    names = read_documents(default_corpus())
    tokenizer = Tokenizer.from_documents(names)
    documents = [np.append(tokenizer.encode(name), tokenizer.bos) for name in names]
    train, held_out = documents[::2], documents[1::2]
    losses = [
        CountingModel(train, tokenizer.vocab_size, context).losses(held_out).mean()
        for context in range(4)
    ]
    assert losses == sorted(losses, reverse=True)


TEXT = "abcabacabcbbacaabcabcacbabcab"


def features(table, last, fold=0, dtype="float64"):
    """(rows, columns), after texts that end so: each of as many letters as a context has."""
    tape = Tape(dtype)
    tokens = np.array([ids(text)[::-1] for text in last]).T.tolist()
    return tape.value(tape.counted_features(table, tokens, [fold] * len(last)))


@given(
    texts=st.lists(st.text("abc", max_size=30), min_size=1, max_size=6),
    folds=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    last=st.text("abc", min_size=4, max_size=4),
    context=st.integers(1, 4),
)
@settings(max_examples=50)
def test_features_are_those_of_dictionaries(texts, folds, last, context):
    texts, folds = [ids(text) for text in texts], folds[: len(texts)]
    table = CountTable(texts, 3, context, 3, folds)
    tokens = ids(last)[-context:]
    for fold in range(max(folds) + 2):
        kept = [text for text, own in zip(texts, folds, strict=True) if own + 1 != fold]
        expected = Plain(kept, 3, context).features(tuple(tokens.tolist()))
        assert features(table, [last[-context:]], fold)[0] == pytest.approx(np.array(expected))


def test_the_last_order_has_the_probabilities_of_the_model():
    parts, context = [ids(TEXT[:15]), ids(TEXT[15:])], 3
    table = CountTable(parts, 3, context, 3)
    for last in ("aab", "cab", "bca"):
        logs = 5 * features(table, [last])[0, 6:9]
        losses = [CountingModel(parts, 3, 3).losses([ids(last + x)])[-1] for x in "abc"]
        assert np.exp(logs).sum() == pytest.approx(1)
        assert logs == pytest.approx(-np.array(losses))


def test_features_in_float32():
    table = CountTable([ids(TEXT)], 3, 3, 3, [0])
    whole, short = (features(table, ["abc", "ccc"], 0, t) for t in ("float64", "float32"))
    assert short == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("fold", [0, 4, 9])
def test_a_fold_knows_nothing_of_itself(fold):
    """What is asked of a fold is the same whatever its own text is."""
    rng = np.random.default_rng(fold)
    parts = np.array_split(rng.integers(0, 3, 200), 10)
    table = CountTable(parts, 3, 3, 3, range(10))
    parts[fold] = rng.integers(0, 3, 35)
    other = CountTable(parts, 3, 3, 3, range(10))
    last = ["".join(rng.choice(list("abc"), 3)) for _ in range(20)]
    assert np.array_equal(features(table, last, fold + 1), features(other, last, fold + 1))
    assert not np.array_equal(features(table, last), features(other, last))


def test_tenths():
    offsets = np.arange(0, 70, 3)  # 23 documents, of which 20 are counted
    folds = folds_in_documents(offsets, 20)
    assert folds[::3].tolist() == [1 + i // 2 for i in range(20)] + [0] * 3
    assert np.array_equal(folds, np.repeat(folds[::3], 3))
    assert folds_in_documents(np.array([0, 2, 4, 6]), 3)[::2].tolist() == [1, 4, 7]
    places = np.arange(-5, 40)
    assert folds_in_text(places, range(5, 35)).tolist() == [
        1 + (i - 5) // 3 if 5 <= i < 35 else 0 for i in places
    ]


def test_nothing_counted_says_nothing():
    for texts in ([], [ids("")]):
        logs = features(CountTable(texts, 3, 2, 3), ["ab"])
        assert np.exp(5 * logs[0, :6]) == pytest.approx([1 / 3] * 6)
        assert logs[0, 6:].tolist() == [0] * 4


def test_a_table_stays_where_it_is():
    table = CountTable([ids(TEXT)], 3, 2, 3)
    tape = Tape()
    node = tape.counted_features(table, [[0], [1]])
    other = copy.deepcopy(tape)
    assert np.array_equal(tape.value(node), other.value(node.id))
    with pytest.raises(TapegptError, match="cannot be pickled"):
        pickle.dumps(tape)
    with pytest.raises(ValueError, match="read-only"):
        table.nodes[0] = 1


def test_what_cannot_be_counted_is_refused():
    for text, orders in ([3], 2), ([-1], 2), ([0], 0):
        with pytest.raises(TapegptError, match="below vocab_size, after one"):
            CountTable([ids(""), np.array(text)], 3, orders, 3)


def test_refusals_of_features():
    table = CountTable([ids(TEXT)], 3, 2, 3)
    tape = Tape()
    with pytest.raises(TapeError, match="wants 2 tokens a row, not 1"):
        tape.counted_features(table, [[0]])
    with pytest.raises(TapeError, match="is not between 0 and 3"):
        tape.counted_features(table, [[0], [4]])
    with pytest.raises(TapeError, match="is not between 0 and 0"):
        tape.counted_features(table, [[0], [1]], [1])
    with pytest.raises(TapeError, match="does not fit"):
        tape.counted_features(table, [[0, 1], [1]])
    apart = tape.input([0], 4), tape.input([0], 4), tape.input([0], 4)
    with pytest.raises(TapeError, match="one after the other"):
        tape.counted_features(table, apart[::2])
    x, gates, bias, wide = (tape.array(np.ones(s)) for s in ((2, 3), (2, 2), (1, 2), (2, 6)))
    with pytest.raises(TapeError, match="as many rows"):
        tape.gated_sum(x, bias, bias, wide, 1.0)
    with pytest.raises(TapeError, match="no bias and features"):
        tape.gated_sum(x, gates, bias, x, 1.0)
