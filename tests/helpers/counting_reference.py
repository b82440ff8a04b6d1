"""The formulas of Chen and Goodman, gram by gram, with dictionaries."""

from collections import Counter, defaultdict
from math import log

import numpy as np


class Plain:
    """Counts of texts of tokens below `size`; `size` itself stands before their beginning."""

    def __init__(self, texts, size, context):
        self.size, self.context = size, context
        grams = Counter()
        for text in texts:
            padded = self.padded(text)
            for i in range(context, len(padded)):
                grams[padded[i - context : i + 1]] += 1
        self.counts = [grams]
        for _ in range(context):
            self.counts.insert(0, Counter(gram[1:] for gram in self.counts[0]))
        self.follows = [defaultdict(dict) for _ in self.counts]
        for follows, counts in zip(self.follows, self.counts, strict=True):
            for gram, count in counts.items():
                follows[gram[:-1]][gram[-1]] = count

    def padded(self, text):
        return (self.size,) * self.context + tuple(int(token) for token in text)

    def share(self, context, token):
        length = len(context)
        shorter = self.share(context[1:], token) if length else 1 / self.size
        counts = self.follows[length].get(context)
        if not counts:
            return shorter
        total = sum(counts.values())
        if length == 0:
            return (counts.get(token, 0) + shorter) / (total + 1)
        discount = self.discounts(length)
        own = counts.get(token, 0)
        return (own - discount[min(own, 3)]) / total + self.left(context) * shorter

    def left(self, context):
        """The share that shorter contexts have."""
        counts = self.follows[len(context)].get(context)
        if not counts:
            return 1.0
        discount = self.discounts(len(context))
        return sum(discount[min(count, 3)] for count in counts.values()) / sum(counts.values())

    def discounts(self, length):
        n = Counter(self.counts[length].values())
        y = n[1] / max(n[1] + 2 * n[2], 1)
        d = [i - (i + 1) * y * n[i + 1] / max(n[i], 1) for i in (1, 2, 3)]
        return [0, *(x if 0 < x < i else i / 2 for i, x in zip((1, 2, 3), d, strict=True))]

    def losses(self, text):
        padded = self.padded(text)
        return [
            -log(self.share(padded[i - self.context : i], padded[i]))
            for i in range(self.context, len(padded))
        ]

    def features(self, last):
        """Of the token that follows those, of which there are at least as many as a context has."""
        contexts = [tuple(last[-k:]) for k in range(1, self.context + 1)]
        logs = [log(self.share(c, token)) / 5 for c in contexts for token in range(self.size)]
        spread = [log(1 + len(self.follows[len(c)].get(c, ()))) for c in contexts]
        return [*logs, *spread, *(1 - self.left(c) for c in contexts)]


def counted_features(texts, size, tokens, left_out):
    """Row by row: tokens[k] are those k + 1 before what follows; text i - 1 is left out for i."""
    tokens = np.asarray(tokens)
    models = [
        Plain([text for i, text in enumerate(texts, start=1) if i != out], size, len(tokens))
        for out in range(len(texts) + 1)
    ]
    rows = [
        models[out].features(tuple(row[::-1].tolist()))
        for row, out in zip(tokens.T, left_out, strict=True)
    ]
    return np.array(rows)
