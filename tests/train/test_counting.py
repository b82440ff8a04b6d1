"""The counting model against a plain one, made of dictionaries."""

from collections import Counter, defaultdict
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.corpus import Tokenizer, default_corpus, read_documents
from tapegpt.counting import CountingModel

BEGIN = "^"


class Plain:
    """The formulas of Chen and Goodman, gram by gram."""

    def __init__(self, texts, alphabet, context):
        self.alphabet, self.context = alphabet, context
        grams = Counter()
        for text in texts:
            padded = BEGIN * context + text
            for i in range(context, len(padded)):
                grams[padded[i - context : i + 1]] += 1
        self.counts = [grams]
        for _ in range(context):
            self.counts.insert(0, Counter(gram[1:] for gram in self.counts[0]))
        self.follows = [defaultdict(dict) for _ in self.counts]
        for follows, counts in zip(self.follows, self.counts, strict=True):
            for gram, count in counts.items():
                follows[gram[:-1]][gram[-1]] = count

    def share(self, context, token):
        length = len(context)
        shorter = self.share(context[1:], token) if length else 1 / len(self.alphabet)
        counts = self.follows[length].get(context)
        if not counts:
            return shorter
        total = sum(counts.values())
        if length == 0:
            return (counts.get(token, 0) + shorter) / (total + 1)
        discount = self.discounts(length)
        left = sum(discount[min(count, 3)] for count in counts.values()) / total
        own = counts.get(token, 0)
        return (own - discount[min(own, 3)]) / total + left * shorter

    def discounts(self, length):
        n = Counter(self.counts[length].values())
        y = n[1] / max(n[1] + 2 * n[2], 1)
        d = [i - (i + 1) * y * n[i + 1] / max(n[i], 1) for i in (1, 2, 3)]
        return [0, *(x if 0 < x < i else i / 2 for i, x in zip((1, 2, 3), d, strict=True))]

    def losses(self, text):
        padded = BEGIN * self.context + text
        return [
            -log(self.share(padded[i - self.context : i], padded[i]))
            for i in range(self.context, len(padded))
        ]


def ids(text):
    return np.array(["abc".index(character) for character in text], np.int64)


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=6),
    other=st.text("abc", min_size=1, max_size=20),
    context=st.integers(0, 4),
)
@settings(max_examples=100)
def test_losses_are_those_of_dictionaries(texts, other, context):
    model = CountingModel([ids(text) for text in texts], 3, context)
    expected = Plain(texts, "abc", context).losses(other)
    assert model.losses([ids(other)]) == pytest.approx(expected, rel=1e-9)


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
