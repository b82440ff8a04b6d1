"""Windows of a text: what a step learns from, and what an evaluation predicts.

A window is a block of tokens and the one that follows: every position predicts the next token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus.documents import NO_FOLDS, Piece, TokenizedCorpus
from tapegpt.corpus.stream import TokenStream
from tapegpt.counting.texts import folds_in_text

TOKENS_PER_PIECE = 1 << 20  # of an evaluation, read at a time
TRAINING, EVALUATION = 0, 1  # what windows are drawn for


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text, from the character `begin` up to but not including `end`."""

    stream: TokenStream
    begin: int
    end: int
    block: int
    # For counts: tokens before each window, and those of the text that are counted, if windows are
    # to be asked about without them.
    before: int = 0
    counted: range = range(0)

    def __len__(self) -> int:
        return self.end - self.begin

    def drawn(self, seed: int, purpose: int, first: int, count: int) -> TokenizedCorpus:
        """Windows number first to first + count - 1 of all that the seed draws, any with any start.

        Window i lies in the place i modulo count, where `pack_batch` takes it as document i.
        """
        numbers = np.roll(np.arange(first, first + count, dtype=np.uint64), first % count)
        random = mixed(mixed(np.uint64(seed) + np.uint64(purpose)) + numbers * ODD)
        begins = self.begin + random % np.uint64(len(self) - self.block)
        return self._windows(begins.astype(np.int64))

    def pieces(self) -> Iterator[Piece]:
        """Windows that predict every token of the part once.

        They overlap by half a block, in which they only read: each token is predicted from as many
        before it at least, if need be from before this part. The first block of a text alone has
        less, and its first token nothing to be predicted from.
        """
        first, context = self.begin, self.block // 2
        if first <= context:
            read, first = max(0, first - 1), min(self.block + 1, self.end)
            if read < first - 1:
                yield Piece(self._window(0, first), read)
        begins = np.arange(first, self.end, self.block - context) - context - 1
        at_once = max(1, TOKENS_PER_PIECE // (self.block + 1))
        whole = int((begins + self.block + 1 <= self.end).sum())
        for i in range(0, whole, at_once):
            yield Piece(self._windows(begins[i : min(whole, i + at_once)]), context)
        for begin in begins[whole:]:  # the last of all
            yield Piece(self._window(int(begin), self.end), context)

    def _window(self, begin: int, end: int) -> TokenizedCorpus:
        return self._of_length(np.array([begin]), end - begin)

    def _windows(self, begins: NDArray[np.int64]) -> TokenizedCorpus:
        return self._of_length(begins, self.block + 1)

    def _of_length(self, begins: NDArray[np.int64], length: int) -> TokenizedCorpus:
        """Windows end to end, each after the tokens before it: they begin where offsets say."""
        first, row = begins - self.before, self.before + length
        if first.min(initial=0) < 0:
            tokens = np.stack([self._from(int(place), row) for place in first])
        else:
            tokens = self.stream.windows(first, row)
        offsets = self.before + np.arange(len(begins) + 1) * row
        offsets[-1] = tokens.size  # the others end with a whole block
        folds = NO_FOLDS
        if self.counted:
            folds = folds_in_text(first[:, None] + np.arange(row), self.counted)
        return TokenizedCorpus(tokens.ravel(), offsets, folds.ravel())

    def _from(self, place: int, length: int) -> NDArray[np.int32]:
        """So many tokens from a place on, which may lie before the text."""
        missing = max(0, -place)
        tokens = self.stream.windows(np.array([max(0, place)]), length - missing)[0]
        beginning = np.full(missing, self.stream.tokenizer.vocab_size, np.int32)
        return np.concatenate([beginning, tokens])


ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


def mixed(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """64 bits, each of which depends on every bit of x (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        y = np.atleast_1d(x) + ODD
        y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return y ^ (y >> np.uint64(31))
