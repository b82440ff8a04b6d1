"""How good a model is on documents that it was not trained on."""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.interpreter import forward_sweep
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.thread_group import broadcast_parameters, partition


@jit
def held_out_loss(
    program, group, thread, tokens, offsets, folds, context, documents_per_sweep, losses
):
    """Add a thread's part of the loss of held-out documents, in nats, to its row of losses.

    A row is the sum over the tokens that the documents have within the block, and their number. The
    first `context` positions of every document are read, but what they predict counts nowhere; all
    documents have more.
    """
    values, inputs = program.tape_arrays.values, program.tape_arrays.inputs
    begin, end = partition(len(offsets) - 1, thread, len(group.reports))
    broadcast_parameters(program, group, thread)
    for first in range(begin, end, documents_per_sweep):
        together = min(documents_per_sweep, end - first)
        batch = pack_batch(program, tokens, offsets, folds, first, together, 0.0, 1.0)
        read = inputs[program.slots.starts + context]  # rows of the positions before come first
        if not program.unrolled:
            for r in range(read):
                values[program.weights + r] = 0
        forward_sweep(program.tape_arrays, 0, program.ends[batch.end_position], batch)
        loss = values[program.common_roots[batch.end_position]]
        if program.unrolled and context > 0:
            loss -= values[program.common_roots[context]]
        losses[thread, 0] += loss
        losses[thread, 1] += batch.end_row - read
