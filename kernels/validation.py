"""How good a model is on documents that it was not trained on."""

from tapegpt.kernels.batch import pack_batch
from tapegpt.kernels.jit import jit
from tapegpt.kernels.steps import update_constants
from tapegpt.kernels.sweep import forward_sweep


@jit
def loss_per_token(program, tokens, offsets, documents_per_sweep):
    """The mean loss, in nats, of all tokens that the documents have within the block."""
    values, documents = program.machine.values, len(offsets) - 1
    update_constants(program)
    loss, count = 0.0, 0
    for first in range(0, documents, documents_per_sweep):
        together = min(documents_per_sweep, documents - first)
        window = pack_batch(program, tokens, offsets, first, together, 0.0, 1.0)
        forward_sweep(program.machine, program.ends[0], program.ends[window[1]], window)
        loss += values[program.common_roots[window[1]]]
        count += window[3]
    return loss / count
