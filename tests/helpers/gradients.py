"""Training's kernels on their own: the loss of a recorded model and its gradients, and a group."""

import numpy as np
from numpy.typing import NDArray

from tapegpt.corpus import TokenizedCorpus
from tapegpt.graph.compile import CompiledModel
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.thread_group import ThreadGroup
from tapegpt.kernels.loops.train import loss_and_gradient

Floats = NDArray[np.floating]
Arrays = dict[str, Floats]


def loss_and_gradients(
    compiled: CompiledModel, corpus: TokenizedCorpus, first: int, count: int
) -> tuple[float, Arrays]:
    """The mean over documents first to first + count - 1, and its gradients by parameter."""
    compiled.load()
    program, most = compiled.program, compiled.documents_per_sweep
    loss = 0.0
    for begin in range(first, first + count, most):
        together = min(most, first + count - begin)
        window = pack_batch(program, *corpus, begin, together, 1 / count, 0.0)
        loss += loss_and_gradient(program, window)
    prefix = program.tape_arrays.grads[: program.num_params]
    gradients = {name: view.copy() for name, view in compiled.by_name(prefix).items()}
    prefix[:] = 0
    return loss, gradients


def group(values: Floats, *grads: Floats) -> ThreadGroup:
    """Threads that share these parameters: as many as there are gradients."""
    count = len(grads)
    others = np.stack(grads[1:]) if count > 1 else np.zeros((0, len(values)), values.dtype)
    return ThreadGroup(values, grads[0], others, np.zeros((count, 8)), np.zeros(1, np.int64))
