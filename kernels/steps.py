"""Training steps without Python between them."""

import math

from tapegpt.kernels.batch import pack_batch
from tapegpt.kernels.jit import jit
from tapegpt.kernels.optimizers import update
from tapegpt.kernels.schedules import scheduled_rate
from tapegpt.kernels.sweep import forward_sweep, reverse_sweep


@jit
def update_constants(program):
    """Recompute what depends on parameters alone, after they have changed."""
    forward_sweep(program.machine, 0, program.ends[0], (0, 0, 0, 0))


@jit
def loss_and_gradient(program, window):
    """The loss of the packed batch; its gradient is added to the parameters' gradients."""
    values, grads = program.machine.values, program.machine.grads
    begin, end = program.ends[0], program.ends[window[1]]
    root, top = program.roots[window[1]], program.tops[window[1]]
    forward_sweep(program.machine, begin, end, window)
    for i in range(len(program.clear)):
        grads[program.clear[i, 0] : min(top, program.clear[i, 1])] = 0
    grads[root] = 1
    reverse_sweep(program.machine, begin, end, window)
    return values[root]


@jit
def train_steps(
    program, tokens, offsets, batch_size, documents_per_sweep, optimizer, schedule, first, losses
):  # fmt: skip
    """Do training steps first, first + 1, ..., one for each element of losses.

    A step takes the next batch_size documents of the corpus and writes the mean of their mean
    losses to losses. Returns the number of steps done: fewer than asked for where a loss was not
    finite, with that loss in losses and the parameters as they were before it.
    """
    for i in range(len(losses)):
        step = first + i
        update_constants(program)
        loss = 0.0
        for begin in range(0, batch_size, documents_per_sweep):
            count = min(documents_per_sweep, batch_size - begin)
            window = pack_batch(
                program, tokens, offsets, step * batch_size + begin, count, 1 / batch_size
            )
            loss += loss_and_gradient(program, window)
        losses[i] = loss
        if not math.isfinite(loss):
            return i
        update(
            program.machine.values, program.machine.grads, program.num_params,
            optimizer, step + 1, scheduled_rate(schedule, step),
        )  # fmt: skip
    return len(losses)
