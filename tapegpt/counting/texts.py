"""What of a corpus is counted, and in which folds: a tenth is asked about without itself."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.counting.grams import Ids
from tapegpt.counting.table import CountTable

FOLDS = 10
MOST = 1 << 22  # tokens that are counted of a corpus: some ten seconds


def table_of(
    tokens: NDArray[np.integer], tokenizer: Tokenizer, orders: int, crossed: bool
) -> CountTable:
    """Counts of documents that each end with BOS, or of a text.

    tokens: (tokens,). crossed: whether a fold can be left out.
    """
    folds: NDArray[np.integer]
    if tokenizer.delimited:
        texts = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos) + 1)[:-1]
        before, folds = tokenizer.bos, _folds_of(len(texts))
    else:
        texts = [tokens[begin:end] for begin, end in pairwise(_edges(len(tokens)))]
        before, folds = tokenizer.vocab_size, np.arange(FOLDS)
    return CountTable(texts, tokenizer.vocab_size, orders, before, folds if crossed else None)


def folds_in_documents(offsets: NDArray[np.int64], counted: int) -> NDArray[np.int8]:
    """The fold of every token, from 1 on, if the first `counted` documents are counted; else 0."""
    of_document = np.zeros(len(offsets) - 1, np.int8)
    of_document[:counted] = 1 + _folds_of(counted)
    return np.repeat(of_document, np.diff(offsets))


def folds_in_text(places: Ids, counted: range) -> NDArray[np.int8]:
    """The fold of the token at every place, from 1 on; 0 outside of what is counted."""
    edges = counted.start + _edges(len(counted))
    folds = 1 + np.searchsorted(edges[1:], places, side="right")
    return np.where((places >= edges[0]) & (places < edges[-1]), folds, 0).astype(np.int8)


def _folds_of(documents: int) -> NDArray[np.int8]:
    return (np.arange(documents) * FOLDS // max(1, documents)).astype(np.int8)


def _edges(length: int) -> Ids:
    """Where the folds of a text begin, and where the last ends."""
    return np.arange(FOLDS + 1) * length // FOLDS
