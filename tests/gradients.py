"""The loss of a recorded model and its gradients, as the training loop computes them."""

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus import TokenizedCorpus
from tapegpt.kernels.batch import pack_batch
from tapegpt.kernels.steps import loss_and_gradient, update_constants
from tapegpt.program import Recording

Arrays = dict[str, NDArray[np.floating]]


def loss_and_gradients(
    recording: Recording, corpus: TokenizedCorpus, first: int, count: int
) -> tuple[float, Arrays]:
    """The mean over documents first to first + count - 1, and its gradients by parameter."""
    program, most = recording.program, recording.documents_per_sweep
    update_constants(program)
    loss = 0.0
    for begin in range(first, first + count, most):
        together = min(most, first + count - begin)
        window = pack_batch(program, corpus.tokens, corpus.offsets, begin, together, 1 / count, 0.0)
        loss += loss_and_gradient(program, window)
    prefix = program.machine.grads[: program.num_params]
    gradients = {name: view.copy() for name, view in recording.by_name(prefix).items()}
    prefix[:] = 0
    return loss, gradients
