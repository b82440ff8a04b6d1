"""The loss on documents that are not trained on."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus.documents import Piece
from tapegpt.graph.compile import CompiledModel
from tapegpt.kernels.compile.indirect_call import FORWARD
from tapegpt.kernels.loops.validation import held_out_loss
from tapegpt.train.workers import Threads


def total_loss(
    compiled: CompiledModel, threads: Threads, pieces: Iterable[Piece]
) -> tuple[float, int]:
    """The sum of the losses of all tokens that the pieces predict, in nats, and their number."""
    compiled.load([FORWARD])
    losses = np.zeros((len(threads), 2))
    for corpus, context in pieces:
        threads.call(held_out_loss, *corpus, context, compiled.documents_per_sweep, losses)
    total, count = losses.sum(axis=0)
    return float(total), int(count)


@contextmanager
def other_weights(
    compiled: CompiledModel,
    weights: Mapping[str, NDArray[np.floating]] | None,
    averaged: NDArray[np.floating] | None,
) -> Iterator[None]:
    """Predict with these weights for a while; else with the averaged ones, if there are some.

    weights: by name. averaged: (num_params,).
    """
    latest = compiled.parameters.copy()
    if weights is not None:
        for name, array in weights.items():
            compiled.weights[name][:] = array
    elif averaged is not None:
        compiled.parameters[:] = averaged
    try:
        yield
    finally:
        compiled.parameters[:] = latest
