"""What a model says of a text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.corpus import Tokenizer, tokenize
from tapegpt.errors import UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.compile.indirect_call import FORWARD
from tapegpt.kernels.loops.validation import held_out_loss
from tapegpt.train.workers import Threads


def logits_of(run: Run, text: str) -> NDArray[np.floating]:
    """The logits at every position of a text: (len(text) + 1, characters + 1)."""
    tokenizer, block = Tokenizer(run.characters), run.model.block_size
    if len(text) >= block:
        raise UsageError(
            f"the text has {len(text)} characters, but the model sees {block} positions: shorten it"
            f" to {block - 1}"
        )
    corpus = tokenize([text], tokenizer)
    model = replace(run.model, dropout=0.0)
    compiled = compiled_model(model, tokenizer.vocab_size, "vector", run.training.dtype, 1)
    for name, weights in compiled.weights.items():
        weights[:] = run.weights[name]
    compiled.load([FORWARD])
    losses = np.zeros((1, 2))
    Threads(compiled, 1).call(held_out_loss, corpus.tokens, corpus.offsets, 1, losses)
    program = compiled.program
    # Of one document a row is a position.
    first, row = int(program.logits[0]), program.logits_row
    values = program.tape_arrays.values[first : first + (len(text) + 1) * row]
    return values.reshape(-1, row)[:, : tokenizer.vocab_size].copy()
