"""How well a saved run predicts a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tapegpt.checkpoint import Run
from tapegpt.corpus import tokenize
from tapegpt.corpus.documents import Piece
from tapegpt.corpus.windows import Part
from tapegpt.counting.texts import folds_in_documents
from tapegpt.errors import TapegptError
from tapegpt.runs.network import network_of
from tapegpt.train.evaluation import total_loss
from tapegpt.train.sweep_size import most_documents
from tapegpt.train.workers import Threads


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss of a text. A document's end counts as a token and not as a character."""

    documents: int  # 0 where a text is one stream
    characters: int  # those within the block
    characters_cut: int  # beyond it, which are not measured
    tokens: int
    nats_per_token: float
    nats_per_character: float
    perplexity: float  # of a token


def measure(run: Run, text: Sequence[str] | Part, trained_on: bool = False) -> Measured:
    """Measure the weights that the run predicts with.

    trained_on: whether the text is the run's own training part, of which counts know nothing that
    they have from the same tenth. Raises `TapegptError` for a character that the run does not know.
    """
    tokenizer = run.tokenizer
    counted = run.counted if trained_on and run.counted is not None else np.zeros(0, np.uint8)
    if isinstance(text, Part):
        text = replace(
            text,
            stream=text.stream.with_tokenizer(tokenizer),
            before=max(0, run.model.counting - 1),
            counted=range(text.end - len(counted), text.end),
        )
        pieces = text.pieces()
        documents, cut = 0, 0
    else:
        corpus = tokenize(text, tokenizer)
        lengths = np.diff(corpus.offsets) - 2
        if len(counted) > 0:
            number = int((counted == tokenizer.bos).sum())
            corpus = corpus._replace(folds=folds_in_documents(corpus.offsets, number))
        pieces = iter([Piece(corpus, 0)])
        documents, cut = len(text), int((lengths - run.model.block_size).clip(min=0).sum())
    together = most_documents(run.model, tokenizer.vocab_size)
    try:
        compiled = network_of(run, together, crossed=trained_on)
    except MemoryError as error:
        raise TapegptError("the run does not fit into memory: use a larger machine") from error
    total, tokens = total_loss(compiled, Threads(compiled, 1), pieces)
    if tokens == 0:
        raise TapegptError("a text of one character has nothing to predict: choose a longer one")
    characters = tokens if isinstance(text, Part) else int(lengths.sum()) - cut
    return Measured(
        documents=documents,
        characters=characters,
        characters_cut=cut,
        tokens=tokens,
        nats_per_token=total / tokens,
        nats_per_character=total / characters,
        perplexity=math.exp(min(total / tokens, 700)),
    )
