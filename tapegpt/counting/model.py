"""The model, which says how likely every token of a text is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.counting.grams import Floats, Grams, Ids, count_grams, discounts, following, joined


class Shares(NamedTuple):
    """What follows the contexts of one length, see `Order`."""

    grams: Ids  # (grams,)
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
        counted = count_grams(texts, self._symbols, vocab_size, context)
        self._orders = _shares(counted)

    def losses(self, texts: Sequence[NDArray[np.integer]]) -> Floats:
        """Minus the logarithm of every token's probability, in nats: (all tokens,)."""
        tokens, begins = joined(texts, self._vocab_size)
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
            contexts = following(np.where(seen, places, -1), begins)
        losses: Floats = -np.log(shares[1:])
        return losses


def _shares(counted: Grams) -> list[Shares]:
    """Of every order; the empty context has seen any token once more: none is impossible."""
    result: list[Shares] = []
    contexts = 1
    for order in counted.orders:
        context, counts = order.grams // counted.symbols, order.counts
        totals = np.bincount(context, counts, contexts)
        if not result:
            first = Shares(order.grams, counts / (totals[0] + 1), 1 / (totals + 1))
            result.append(first)
        else:
            (three,) = discounts(counts, order.missing, 0)
            lost = np.array([0.0, *three])[np.minimum(counts, 3)]
            seen = np.maximum(totals, 1)  # a context that nothing follows leaves all
            rests = np.where(totals > 0, np.bincount(context, lost, contexts) / seen, 1)
            result.append(Shares(order.grams, (counts - lost) / seen[context], rests))
        contexts = len(order.grams)
    return result
