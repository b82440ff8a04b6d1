"""What counting alone knows of the next token: an interpolated modified Kneser-Ney model.

The share of a token after a context of k tokens is its discounted count there, and what the
discounts leave over goes by the share after the k - 1 nearest of them:

    p_k(x | c) = (count(c x) - discount) / count(c) + rest(c) p_k-1(x | shorter c)

The longest contexts count how often a token follows, shorter ones after how many different tokens
the context and the token have been seen together. The method is that of Chen and Goodman, "An
Empirical Study of Smoothing Techniques for Language Modeling" (1998).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Order(NamedTuple):
    """The contexts of one length. A context is the place of its last token among the grams of the
    order below; the empty one is 0.
    """

    grams: Ids  # (grams,), ascending: context * symbols + token
    shares: Floats  # (grams,), of the token after the context, less the discount
    rests: Floats  # (contexts,), what is left for the shorter context


class CountingModel:
    """Counts of what follows contexts of up to so many tokens.

    >>> text = np.array([0, 1, 0, 1, 0, 1, 0])
    >>> model = CountingModel([text], vocab_size=2, context=2)
    >>> model.losses([np.array([0, 1, 0, 1])]).round(1)
    array([0.3, 0.1, 0.2, 0.1])
    """

    def __init__(self, texts: Sequence[NDArray[np.integer]], vocab_size: int, context: int) -> None:
        """Count in texts of token ids below vocab_size: (length,) each."""
        self._vocab_size, self._context = vocab_size, context
        self._symbols = vocab_size + 1  # one more stands before the beginning of a text
        tokens, counted = self._padded(texts)
        gram_at = []  # of every order: which gram ends at a position
        grams: list[Ids] = []
        contexts = np.zeros(len(tokens), np.int64)
        for _ in range(context + 1):
            distinct, places = _distinct(contexts * self._symbols + tokens)
            grams.append(distinct)
            gram_at.append(places)
            contexts = _next(places)
        counts = [np.bincount(gram_at[-1][counted], minlength=len(grams[-1]))]
        for shorter, longer in zip(gram_at[-2::-1], gram_at[:0:-1], strict=True):
            end = np.zeros(len(counts[0]), np.int64)
            end[longer] = np.arange(len(tokens))  # one of the positions where a gram ends
            counts.insert(0, np.bincount(shorter[end[counts[0] > 0]], minlength=shorter.max() + 1))
        contexts_of = [1, *map(len, grams)]
        self._orders = [
            _order(distinct, count, self._symbols, number)
            for distinct, count, number in zip(grams, counts, contexts_of, strict=False)
        ]

    def losses(self, texts: Sequence[NDArray[np.integer]]) -> Floats:
        """Minus the logarithm of every token's probability, in nats: (all tokens,)."""
        tokens, counted = self._padded(texts)
        shares = np.full(len(tokens), 1 / self._vocab_size)
        contexts = np.zeros(len(tokens), np.int64)  # -1: never seen
        for order in self._orders:
            gram = contexts * self._symbols + tokens
            places = np.searchsorted(order.grams, gram)
            places[places == len(order.grams)] = 0
            known = contexts >= 0
            seen = known & (order.grams[places] == gram)
            shares *= np.where(known, order.rests[contexts], 1.0)
            shares += np.where(seen, order.shares[places], 0.0)
            contexts = _next(np.where(seen, places, -1))
        losses: Floats = -np.log(shares[counted])
        return losses

    def _padded(self, texts: Sequence[NDArray[np.integer]]) -> tuple[Ids, Mask]:
        """The texts end to end, each after as many symbols of a beginning as a context has, and
        which of them are tokens.
        """
        before = np.full(self._context, self._vocab_size)
        tokens = np.concatenate([part for text in texts for part in (before, text)])
        return tokens.astype(np.int64), tokens != self._vocab_size


def _distinct(codes: Ids) -> tuple[Ids, Ids]:
    """The distinct codes, ascending, and the place of each code among them."""
    order = np.argsort(codes)
    ascending = codes[order]
    begins = np.ones(len(codes), np.bool_)
    begins[1:] = ascending[1:] != ascending[:-1]
    places = np.empty(len(codes), np.int64)
    places[order] = np.cumsum(begins) - 1
    return ascending[begins], places


def _next(places: Ids) -> Ids:
    """What ends at a position is the context of the next one."""
    contexts = np.roll(places, 1)
    contexts[0] = 0
    return contexts


def _order(grams: Ids, counts: Ids, symbols: int, contexts: int) -> Order:
    context = grams // symbols
    totals = np.bincount(context, counts, contexts)
    if contexts == 1:  # no context: an imagined token more, any of them, so that none is impossible
        return Order(grams, counts / (totals[0] + 1), 1 / (totals + 1))
    discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    seen = np.maximum(totals, 1)  # a context that nothing follows leaves all to the shorter one
    left = np.bincount(context, discounts, contexts)
    return Order(grams, (counts - discounts) / seen[context], np.where(totals > 0, left / seen, 1))


def _discounts(counts: Ids) -> list[float]:
    """Those of counts of 1, 2, and 3 or more, by how many grams have which count.

    Where there are too few grams to tell, half the count: none may be 0, or what has never been
    seen would be impossible.
    """
    grams = np.bincount(counts, minlength=5).tolist()
    share = grams[1] / max(grams[1] + 2 * grams[2], 1)
    estimates = (i - (i + 1) * share * grams[i + 1] / max(grams[i], 1) for i in (1, 2, 3))
    return [x if 0 < x < i else i / 2 for i, x in enumerate(estimates, start=1)]
