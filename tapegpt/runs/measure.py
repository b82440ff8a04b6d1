"""How well a saved run predicts a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tapegpt.checkpoint import Run
from tapegpt.corpus import tokenize
from tapegpt.corpus.documents import Piece
from tapegpt.corpus.windows import Part
from tapegpt.errors import TapegptError
from tapegpt.graph.compile import compiled_model
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


def measure(run: Run, text: Sequence[str] | Part) -> Measured:
    """Measure the weights that the run predicts with.

    Raises `TapegptError` for a character that the run does not know.
    """
    tokenizer = run.tokenizer
    if isinstance(text, Part):
        pieces = replace(text, stream=text.stream.with_tokenizer(tokenizer)).pieces()
        documents, cut = 0, 0
    else:
        corpus = tokenize(text, tokenizer)
        lengths = np.diff(corpus.offsets) - 2
        pieces = iter([Piece(corpus, 0)])
        documents, cut = len(text), int((lengths - run.model.block_size).clip(min=0).sum())
    together = most_documents(run.model.block_size)
    model = replace(run.model, dropout=0.0)
    try:
        compiled = compiled_model(
            model, tokenizer.vocab_size, "vector", run.training.dtype, together
        )
    except MemoryError as error:
        raise TapegptError("the run does not fit into memory: use a larger machine") from error
    for name, weights in compiled.weights.items():
        weights[:] = run.weights[name]
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
