"""What has been seen: runs of tokens, and how often each counts, with and without a fold."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class Missing(NamedTuple):
    """What counts lose without a fold, ascending by gram and fold: (losses,) each."""

    grams: Ids
    folds: Ids
    counts: Ids


class Order(NamedTuple):
    """The contexts of one length and what follows them.

    A context is the place of its last token among the grams of the order below; the empty one is 0.
    """

    grams: Ids  # (grams,), ascending: context * symbols + token
    counts: Ids  # (grams,)
    missing: Missing


class Grams(NamedTuple):
    """All orders, from that of the empty context on."""

    orders: list[Order]
    symbols: int  # the tokens, and one that stands before the beginning of a text
    folds: int


def count_grams(
    texts: Sequence[NDArray[np.integer]],
    symbols: int,
    before: int,
    context: int,
    folds: Sequence[int] | NDArray[np.integer] | None = None,
) -> Grams:
    """Count in texts of tokens below symbols, after contexts of up to so many tokens.

    before: what stands before the beginning of every text. folds: the one of each text, from 0 on.
    """
    tokens, begins = joined(texts, before)
    of_text = np.zeros(len(texts), np.int64) if folds is None else np.asarray(folds, np.int64)
    fold_of = np.repeat(of_text, [len(text) for text in texts])
    number = int(of_text.max(initial=0)) + 1
    grams: list[Ids] = []
    gram_at: list[Ids] = []  # of every order: which gram ends at a position
    contexts = np.zeros(len(tokens), np.int64)
    for _ in range(context + 1):
        distinct, places = _distinct(contexts * symbols + tokens)
        grams.append(distinct)
        gram_at.append(places)
        contexts = following(places, begins)
    ends = gram_at[-1][1:]
    counts = np.bincount(ends, minlength=len(grams[-1]))
    wanted = slice(0 if folds is None else None)
    missing = _summed(ends[wanted], fold_of[wanted], number)
    orders = [Order(grams[-1], counts, missing)]
    for shorter, longer, known in zip(gram_at[-2::-1], gram_at[:0:-1], grams[-2::-1], strict=True):
        suffix = np.zeros(len(counts), np.int64)
        suffix[longer] = shorter
        # Without a fold a longer gram counts no more if all of it was there.
        gone = missing.counts == counts[missing.grams]
        counts = np.bincount(suffix[counts > 0], minlength=len(known))
        missing = _summed(suffix[missing.grams[gone]], missing.folds[gone], number)
        orders.insert(0, Order(known, counts, missing))
    return Grams(orders, symbols, 0 if folds is None else number)


def joined(texts: Sequence[NDArray[np.integer]], before: int) -> tuple[Ids, Ids]:
    """The texts end to end after one token of a beginning, and where each begins; there too."""
    tokens = np.concatenate([np.array([before]), *texts]).astype(np.int64)
    return tokens, np.cumsum([0, 1, *map(len, texts)])[: len(texts) + 1]


def following(places: Ids, begins: Ids) -> Ids:
    """What ends at a position is the context of the next; texts begin as if nothing were before."""
    contexts = np.roll(places, 1)
    contexts[begins[begins < len(places)]] = places[0]
    return contexts


def _distinct(codes: Ids) -> tuple[Ids, Ids]:
    """The distinct codes, ascending, and the place of each code among them."""
    order = np.argsort(codes)
    ascending = codes[order]
    begins = np.ones(len(codes), np.bool_)
    begins[1:] = ascending[1:] != ascending[:-1]
    places = np.empty(len(codes), np.int64)
    places[order] = np.cumsum(begins) - 1
    return ascending[begins], places


def _summed(grams: Ids, folds: Ids, number: int) -> Missing:
    """How often each pair is there."""
    pairs, counts = np.unique(grams * number + folds, return_counts=True)
    return Missing(*np.divmod(pairs, number), counts)


def discounts(counts: Ids, missing: Missing, folds: int) -> Floats:
    """Those of 1, 2, and 3 or more, with all folds and without each: (1 + folds, 3)."""
    grams = np.tile(np.bincount(np.minimum(counts, 5), minlength=6), (1 + folds, 1))
    before = counts[missing.grams]
    for sign, kept in ((-1, before), (1, before - missing.counts)):
        changed = (1 + missing.folds) * 6 + np.minimum(kept, 5)
        grams += sign * np.bincount(changed, minlength=grams.size).reshape(grams.shape)
    return np.array([_discounts(row) for row in grams.tolist()])


def _discounts(grams: list[int]) -> list[float]:
    """The discounts, by how many grams have which count.

    Where there are too few grams to tell, half the count: none may be 0, or what has never been
    seen would be impossible.
    """
    share = grams[1] / max(grams[1] + 2 * grams[2], 1)
    estimates = (i - (i + 1) * share * grams[i + 1] / max(grams[i], 1) for i in (1, 2, 3))
    return [x if 0 < x < i else i / 2 for i, x in enumerate(estimates, start=1)]
