"""How good a model is on documents that it was not trained on."""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.interpreter import forward_sweep
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.thread_group import broadcast_parameters, partition


@jit
def held_out_loss(program, group, thread, tokens, offsets, documents_per_sweep, losses):
    """Write a thread's part of the loss of held-out documents, in nats, to its row of losses.

    A row is the sum over the tokens that the documents have within the block, and their number.
    """
    values = program.tape_arrays.values
    begin, end = partition(len(offsets) - 1, thread, len(group.reports))
    broadcast_parameters(program, group, thread)
    for first in range(begin, end, documents_per_sweep):
        together = min(documents_per_sweep, end - first)
        batch = pack_batch(program, tokens, offsets, first, together, 0.0, 1.0)
        forward_sweep(program.tape_arrays, 0, program.ends[batch.end_position], batch)
        losses[thread, 0] += values[program.common_roots[batch.end_position]]
        losses[thread, 1] += batch.end_row
