"""What a model says of a text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.corpus import TokenizedCorpus, tokenize
from tapegpt.errors import UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.compile.indirect_call import FORWARD
from tapegpt.kernels.loops.validation import held_out_loss
from tapegpt.train.workers import Threads


def logits_of(run: Run, text: str) -> NDArray[np.floating]:
    """The logits at every position of a text: (len(text) + 1, characters + 1).

    Of a model of a stream, which has no token for start and end, (len(text), characters).
    """
    tokenizer, block = run.tokenizer, run.model.block_size
    if tokenizer.delimited:
        corpus, positions = tokenize([text], tokenizer), len(text) + 1
    else:  # the last token is one to be predicted, whichever it is
        tokens = np.append(tokenizer.encode(text), np.int32(0))
        positions = len(text)
        corpus = TokenizedCorpus(tokens, np.array([0, len(tokens)]))
    if not 1 <= positions <= block:
        longest = block + len(text) - positions
        raise UsageError(
            f"the text has {len(text)} characters, but the model sees {block} positions: choose"
            f" one of {1 + len(text) - positions} to {longest} characters"
        )
    model = replace(run.model, dropout=0.0)
    compiled = compiled_model(model, tokenizer.vocab_size, "vector", run.training.dtype, 1)
    for name, weights in compiled.weights.items():
        weights[:] = run.weights[name]
    compiled.load([FORWARD])
    losses = np.zeros((1, 2))
    Threads(compiled, 1).call(held_out_loss, *corpus, 0, 1, losses)
    program = compiled.program
    # Of one document a row is a position.
    first, row = int(program.logits[0]), program.logits_row
    values = program.tape_arrays.values[first : first + positions * row]
    return values.reshape(-1, row)[:, : tokenizer.vocab_size].copy()
