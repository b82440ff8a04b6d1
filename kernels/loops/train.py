"""Training steps without Python between them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.optimizers import update
from tapegpt.kernels.loops.schedules import scheduled_rate
from tapegpt.kernels.loops.thread_group import LOSS, all_reduce_sum, broadcast_parameters, partition
from tapegpt.kernels.ops.dropout import dropout_key


@jit
def of_networks(program, batch):
    """loss_and_gradient of an ensemble, network by network: each finds its values in the cache."""
    tape_arrays, networks = program.tape_arrays, program.networks
    loss_record = 0
    for i in range(len(networks)):
        begin, end, loss_record, loss = networks[i]
        forward_sweep(tape_arrays, begin, end, batch)
        forward_sweep(tape_arrays, loss_record, loss_record + 1, batch)
        tape_arrays.grads[loss] = 1 / len(networks)
        reverse_sweep(tape_arrays, loss_record, loss_record + 1, batch)
        reverse_sweep(tape_arrays, begin, end, batch)
    forward_sweep(tape_arrays, loss_record + 1, program.ends[batch.end_position], batch)
    return tape_arrays.values[program.roots[batch.end_position]]


@jit
def loss_and_gradient(program, batch):
    """The loss of the packed batch; its gradient is added to the parameters' gradients."""
    values, grads = program.tape_arrays.values, program.tape_arrays.grads
    if len(program.networks) > 0:
        return of_networks(program, batch)
    end = program.ends[batch.end_position]
    root, top = program.roots[batch.end_position], program.tops[batch.end_position]
    forward_sweep(program.tape_arrays, 0, end, batch)
    for i in range(len(program.clear)):
        grads[program.clear[i, 0] : min(top, program.clear[i, 1])] = 0
    grads[root] = 1
    reverse_sweep(program.tape_arrays, 0, end, batch)
    return values[root]


class Training(NamedTuple):
    """What every step of a training has in common, but for what the optimizer knows."""

    # Document d with its delimiters: tokens[offsets[d] : offsets[d + 1]].
    tokens: NDArray[np.integer]
    offsets: NDArray[np.integer]  # (documents + 1,)
    folds: NDArray[np.int8]  # of every token, see pack_batch
    batch_size: int  # documents in a step, and in a sweep at most
    documents_per_sweep: int
    document_share: float  # what a document and a token weigh in the loss
    token_share: float
    seed: np.uint64  # of what dropout leaves out


@jit
def train_steps(program, group, thread, training, optimizer, schedule, first, losses):
    """Do training steps first, first + 1, ..., one for each column of losses.

    All threads of the group call it, each with its own number and program. A step takes the next
    batch_size documents of the corpus and writes the sum of their losses, weighted by the shares of
    a document and of a token, to losses, a row for each thread. Returns the number of steps done:
    fewer than asked for where training diverged, with the loss of the next step in losses. If that
    loss is not finite, the parameters are as they were before the step; if it is, the update was
    not finite, see `update`.
    """
    inputs = program.tape_arrays.inputs
    batch_size, together = training.batch_size, training.documents_per_sweep
    begin, end = partition(batch_size, thread, len(group.reports))
    for i in range(losses.shape[1]):
        step = first + i
        broadcast_parameters(program, group, thread)
        loss = 0.0
        for at in range(begin, end, together):
            document, count = step * batch_size + at, min(together, end - at)
            batch = pack_batch(
                program,
                training.tokens,
                training.offsets,
                training.folds,
                document,
                count,
                training.document_share,
                training.token_share,
            )
            inputs[program.slots.key] = dropout_key(training.seed, document)
            loss += loss_and_gradient(program, batch)
        inputs[program.slots.key] = 0  # whoever replays the program now wants all of it
        loss = all_reduce_sum(group, thread, LOSS, loss)
        losses[thread, i] = loss
        if not math.isfinite(loss):
            return i
        rate = scheduled_rate(schedule, step)
        if not update(group, thread, program.num_params, optimizer, step + 1, rate):
            return i
    return losses.shape[1]
