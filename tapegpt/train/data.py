"""What a training learns from and is measured with: documents, or windows of a text.

Both are given to kernels as documents end to end, see `TokenizedCorpus`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus import Corpus
from tapegpt.corpus.documents import (
    NO_FOLDS,
    Piece,
    Remark,
    TokenizedCorpus,
    digest_of,
    remarks_on,
    shuffled,
    summary_of,
    tokenize,
)
from tapegpt.corpus.stream import TokenStream
from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.corpus.windows import EVALUATION, TRAINING, Part
from tapegpt.counting.texts import MOST, folds_in_documents
from tapegpt.errors import UsageError
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.split import split

HELD_OUT_AT_MOST = 1_000_000  # characters of a text, where nobody has chosen a share


def with_held_out(training: TrainConfig, corpus: Corpus, chosen: bool) -> TrainConfig:
    """The settings; of a long text, where no --val-fraction was chosen, with a smaller one."""
    if chosen or not isinstance(corpus, TokenStream):
        return training
    fraction = min(training.val_fraction, HELD_OUT_AT_MOST / len(corpus))
    return replace(training, val_fraction=fraction)


class TrainingData(Protocol):
    """The examples of a training, numbered from 0 in the order in which steps take them."""

    tokenizer: Tokenizer
    digest: str  # what tells a corpus from others
    size: int  # documents, or characters of a text
    per_pass: int  # examples in a pass over what is trained on
    summary: str  # one line
    remarks: list[Remark]
    mean_length: float  # positions of an example

    def numbered(self, first: int, count: int) -> TokenizedCorpus:
        """Documents of which that in the place i modulo their number is example i."""

    def lengths(self, first: int, count: int) -> NDArray[np.int64]:
        """How many positions examples first to first + count - 1 have: (count,)."""

    def held_out(self) -> Iterator[Piece]:
        """What val_loss is measured on."""

    def counted(self, most: int) -> list[NDArray[np.int32]]:
        """What is trained on, at most so many tokens of a text."""

    def predicted(self, context: int) -> tuple[list[NDArray[np.int32]], int]:
        """What is held out, and how many tokens of it are only read, at most `context`."""

    def test(self) -> Iterator[Piece]:
        """What test_loss is measured on."""

    def for_counts(self) -> NDArray[np.integer]:
        """What a network's counts are of, see `table_of`: at most MOST tokens."""


def training_data(
    corpus: Corpus,
    model: ModelConfig,
    training: TrainConfig,
    rng: random.Random,
    alphabet: str = "",
) -> TrainingData:
    """The examples that the settings make of a corpus.

    rng: shuffles documents, as microgpt does. alphabet: characters to have beside those of the
    corpus. Raises `UsageError` where nothing is left to train on.
    """
    if isinstance(corpus, TokenStream):
        return Text(corpus.with_characters(alphabet), model, training)
    return Documents(corpus, model, training, rng, alphabet)


class Documents:
    """Documents in a random order: the first are trained on, the last held out."""

    def __init__(
        self,
        documents: Sequence[str],
        model: ModelConfig,
        training: TrainConfig,
        rng: random.Random,
        alphabet: str,
    ) -> None:
        ordered = shuffled(documents, rng)
        parts = split(training, len(ordered))
        held_out, test = parts.held_out, parts.test
        self.digest = digest_of(documents)
        self.tokenizer = Tokenizer.from_documents([*ordered, alphabet])
        self.size, self.per_pass = len(ordered), held_out
        self.remarks = list(remarks_on(ordered[:held_out], ordered[held_out:], model.block_size))
        self._block = model.block_size
        self.summary = summary_of(documents, self.tokenizer)
        tokens, offsets, _ = tokenize(ordered, self.tokenizer)
        folds = NO_FOLDS
        if model.counting:
            ends = offsets[1 : held_out + 1]
            self._counted = max(1, int(np.searchsorted(ends, MOST, side="right")))
            folds = folds_in_documents(offsets, self._counted)
        self._trained_on = TokenizedCorpus(tokens, offsets[: held_out + 1], folds)
        self._held_out = TokenizedCorpus(tokens, offsets[held_out : test + 1])
        self._test = TokenizedCorpus(tokens, offsets[test:])
        self.mean_length = float(self.lengths(0, self.per_pass).mean())

    def numbered(self, first: int, count: int) -> TokenizedCorpus:
        return self._trained_on

    def lengths(self, first: int, count: int) -> NDArray[np.int64]:
        which = np.arange(first, first + count) % self.per_pass
        lengths: NDArray[np.int64] = np.diff(self._trained_on.offsets)[which] - 1
        return np.minimum(lengths, self._block)

    def held_out(self) -> Iterator[Piece]:
        yield Piece(self._held_out, 0)

    def test(self) -> Iterator[Piece]:
        yield Piece(self._test, 0)

    def for_counts(self) -> NDArray[np.integer]:
        tokens, offsets, _ = self._trained_on
        first = np.zeros(offsets[self._counted], np.bool_)
        first[offsets[: self._counted]] = True
        return tokens[: len(first)][~first]

    def counted(self, most: int) -> list[NDArray[np.int32]]:
        return self._predicted(self._trained_on)

    def predicted(self, context: int) -> tuple[list[NDArray[np.int32]], int]:
        return self._predicted(self._held_out), 0

    def _predicted(self, corpus: TokenizedCorpus) -> list[NDArray[np.int32]]:
        """What a network learns to predict: all but the first BOS, as far as the block goes."""
        ends = np.minimum(corpus.offsets[1:], corpus.offsets[:-1] + 1 + self._block)
        return [
            corpus.tokens[begin + 1 : end]
            for begin, end in zip(corpus.offsets[:-1], ends, strict=True)
        ]


class Text:
    """A text: windows of its beginning are trained on, the rest is held out."""

    def __init__(self, stream: TokenStream, model: ModelConfig, training: TrainConfig) -> None:
        block = model.block_size
        parts = split(training, len(stream), "characters", least=block + 1)
        self.digest, self.tokenizer = stream.digest, stream.tokenizer
        self.size, self.remarks = len(stream), list[Remark]()
        self.mean_length = float(block)
        self._seed = training.seed
        self._windows = training.eval_windows
        before, counted = max(0, model.counting - 1), range(0)
        if model.counting:
            counted = range(max(0, parts.held_out - MOST), parts.held_out)
        self._trained_on = Part(stream, 0, parts.held_out, block, before, counted)
        self._held_out = Part(stream, parts.held_out, parts.test, block, before)
        self.per_pass = max(1, parts.held_out // block)
        self._test = Part(stream, parts.test, len(stream), block, before)
        held_out, test = len(self._held_out), len(self._test)
        self.summary = (
            f"text: {self.size} characters, alphabet {len(self.tokenizer.characters)}; the first"
            f" {len(self._trained_on)} to train on, the last {held_out + test} held out"
        )
        if self._windows is not None and len(self._held_out) <= block:
            raise UsageError(
                f"--eval-windows {self._windows} wants more than the {len(self._held_out)}"
                f" characters that are held out, for windows of --block-size {block}: leave it out"
            )

    def numbered(self, first: int, count: int) -> TokenizedCorpus:
        return self._trained_on.drawn(self._seed, TRAINING, first, max(1, count))

    def lengths(self, first: int, count: int) -> NDArray[np.int64]:
        return np.full(count, self._trained_on.block)

    def held_out(self) -> Iterator[Piece]:
        if self._windows is None:
            return self._held_out.pieces()
        return iter([Piece(self._held_out.drawn(self._seed, EVALUATION, 0, self._windows), 0)])

    def test(self) -> Iterator[Piece]:
        return self._test.pieces()

    def for_counts(self) -> NDArray[np.integer]:
        counted = self._trained_on.counted
        return _tokens(self._trained_on.stream, counted.start, counted.stop)

    def counted(self, most: int) -> list[NDArray[np.int32]]:
        part = self._trained_on
        return [_tokens(part.stream, max(part.begin, part.end - most), part.end)]

    def predicted(self, context: int) -> tuple[list[NDArray[np.int32]], int]:
        part = self._held_out
        return [_tokens(part.stream, part.begin - context, part.end)], context


def _tokens(stream: TokenStream, begin: int, end: int) -> NDArray[np.int32]:
    tokens: NDArray[np.int32] = stream.windows(np.array([begin]), end - begin)[0]
    return tokens
