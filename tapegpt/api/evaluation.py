"""What a model says of a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.corpus import TokenizedCorpus, tokenize
from tapegpt.errors import UsageError
from tapegpt.kernels.compile.indirect_call import FORWARD
from tapegpt.kernels.loops.validation import held_out_loss
from tapegpt.runs.network import network_of
from tapegpt.train.workers import Threads


def logits_of(run: Run, text: str) -> NDArray[np.floating]:
    """The logits at every position of a text: (len(text) + 1, characters + 1).

    Of a model of a stream, which has no token for start and end, (len(text), characters).
    """
    tokenizer, block = run.tokenizer, run.model.block_size
    compiled = network_of(run, 1)
    if tokenizer.delimited:
        corpus, positions = tokenize([text], tokenizer), len(text) + 1
    else:  # the last token is one to be predicted, whichever it is
        before = compiled.program.slots.before
        beginning = np.full(before, tokenizer.vocab_size, np.int32)
        tokens = np.concatenate([beginning, tokenizer.encode(text), np.zeros(1, np.int32)])
        positions = len(text)
        corpus = TokenizedCorpus(tokens, np.array([before, len(tokens)]))
    if not 1 <= positions <= block:
        longest = block + len(text) - positions
        raise UsageError(
            f"the text has {len(text)} characters, but the model sees {block} positions: choose"
            f" one of {1 + len(text) - positions} to {longest} characters"
        )
    compiled.load([FORWARD])
    losses = np.zeros((1, 2))
    Threads(compiled, 1).call(held_out_loss, *corpus, 0, 1, losses)
    program = compiled.program
    # Of one document a row is a position.
    first, row = int(program.logits[0]), program.logits_row
    values = program.tape_arrays.values[first : first + positions * row]
    return values.reshape(-1, row)[:, : tokenizer.vocab_size].copy()
