"""Parameter updates, over the whole prefix of parameters at once."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels import simd
from tapegpt.kernels.compile.indirect_call import as_pointer, call_matrices
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.loops.muon import Muon
from tapegpt.kernels.loops.thread_group import (
    FAULTS,
    SQUARES,
    SUMMED,
    add_gradients,
    all_reduce_sum,
    partition,
)

ADAM, SGD, MUON = 0, 1, 2
STEPS_PER_AVERAGE = 8  # the weights of neighbouring steps hardly differ


class Optimizer(NamedTuple):
    """What makes an update of a gradient. AdamW is Adam with weight_decay above 0."""

    kind: int
    # (arrays, num_params): Adam's m and v, of matrices Muon's momentum and nothing, or SGD's
    # velocity; then, if any, the averaged weights
    state: NDArray[np.floating]
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    momentum: float
    clip_norm: float  # infinite where gradients of any length will do
    averaging: float  # share of the steps that the averaged weights look back on, 0 for none
    muon: Muon
    cautious_decay: bool = False  # only weights that the step brings nearer to 0 decay
    clears: bool = True  # the gradients, after the update; Muon does so always


@jit
def update(group, thread, count, optimizer, step, learning_rate):
    """Move parameters 0 to count - 1 against their gradients; set these to 0 if optimizer.clears.

    All threads of the group call it, and each moves a part of them. step counts from 1; count is a
    whole number of vectors. Returns whether all parameters are finite afterwards: a gradient that
    is not finite makes its parameter infinite or NaN.
    """
    values, grads = as_pointer(group.values), as_pointer(group.grads)
    begin, end = partition(count // simd.lanes(values), thread, len(group.reports))
    begin, end = begin * simd.lanes(values), end * simd.lanes(values)
    add_gradients(group, begin, end)
    if optimizer.clip_norm < math.inf:
        clip_gradient(group, thread, begin, end, optimizer.clip_norm)
    if optimizer.kind == ADAM:
        finite = adam(values, grads, optimizer, begin, end, step, learning_rate)
    elif optimizer.kind == SGD:
        finite = sgd(values, grads, optimizer, begin, end, step, learning_rate)
    else:
        # A barrier: Muon reads whole matrices, whose gradients several threads have added up.
        all_reduce_sum(group, thread, SUMMED, 0.0)
        finite = muon(values, grads, optimizer, begin, end, step, learning_rate, thread)
    finite = all_reduce_sum(group, thread, FAULTS, 0.0 if finite else 1.0) == 0
    if finite and optimizer.averaging > 0 and step % STEPS_PER_AVERAGE == 0:
        n = step // STEPS_PER_AVERAGE
        average(values, as_pointer(optimizer.state[-1]), begin, end, n, optimizer.averaging)
    return finite


@jit
def clip_gradient(group, thread, begin, end, longest):
    """Scale the gradient of all parameters down to the norm `longest`, if it is longer.

    begin, end: a thread's part of it. If the norm is not finite, the gradient stays as it is and
    the update reports it.
    """
    grads = as_pointer(group.grads)
    squares = 0.0  # float64: those of large float32 gradients overflow
    for i in range(begin, end):
        squares += np.float64(grads[i]) ** 2
    norm = math.sqrt(all_reduce_sum(group, thread, SQUARES, squares))
    if longest < norm < math.inf:
        for i in range(begin, end):
            grads[i] *= longest / norm


# m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
# w = (1 - rate weight_decay) w - rate m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
@jit
def adam(values, grads, optimizer, begin, end, step, learning_rate):
    """Adam (Kingma and Ba 2015), with decoupled weight decay AdamW (Loshchilov and Hutter 2019).

    begin and end are whole vectors. All that is moved decays, embeddings and biases too. Returns
    whether the parameters are finite. In float64 they may be although a square overflowed.
    """
    m, v = as_pointer(optimizer.state[0]), as_pointer(optimizer.state[1])
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    # sqrt(v / scale^2) = sqrt(v) / scale: a product less for every vector.
    scale = math.sqrt(1 - beta2**step)
    rate = learning_rate * scale / (1 - beta1**step)
    old, new = simd.splat(values, beta2), simd.splat(values, 1 - beta2)
    decay = learning_rate * optimizer.weight_decay
    if optimizer.cautious_decay:
        decay_cautiously(values, grads, m, beta1, begin, end, decay)
        decay = 0.0
    kept = simd.splat(values, 1 - decay)
    zero = total = simd.splat(values, 0)
    for i in range(begin, end, simd.lanes(values)):
        g = simd.load(grads, i)
        # Without a gradient the moments decay, but not into the subnormal numbers.
        mean = simd.clear_tiny(simd.load(m, i) * beta1 + g * (1 - beta1))
        square = simd.fma(g * new, g, simd.fma(simd.load(v, i), old, simd.tiny(values)))
        simd.store(m, i, mean)
        simd.store(v, i, square)
        root = simd.quick_root(square) + optimizer.epsilon * scale
        moved = simd.fma(simd.load(values, i), kept, mean * -rate / root)
        simd.store(values, i, moved)
        if optimizer.clears:
            simd.store(grads, i, zero)
        total = total + moved
    return math.isfinite(simd.sum_lanes(total))


# w = (1 - share) w where w (beta1 m + (1 - beta1) g) > 0
@jit
def decay_cautiously(values, grads, m, beta1, begin, end, share):
    """Cautious weight decay (L. Chen and others 2025): of weights that the step moves towards 0.

    It comes before Adam's loop, which overwrites m and the gradients. A pass of its own leaves that
    loop as short as it is.
    """
    lost = simd.splat(values, -share)
    for i in range(begin, end, simd.lanes(values)):
        w, mean = simd.load(values, i), simd.load(m, i) * beta1 + simd.load(grads, i) * (1 - beta1)
        simd.store(values, i, simd.fma(simd.where_positive(w * mean, w), lost, w))


@jit
def muon(values, grads, optimizer, begin, end, step, learning_rate, thread=0):
    """Muon for a thread's matrices, see muon.py, and Adam for the others from begin to end - 1.

    Returns whether all of these are finite.
    """
    own = optimizer.muon
    total = call_matrices(
        own.kernel,
        values,
        grads,
        as_pointer(optimizer.state[0]),
        as_pointer(own.rooms),
        thread * own.room,
        as_pointer(own.matrices),
        len(own.matrices),
        thread,
        optimizer.momentum,
        learning_rate,
        learning_rate * optimizer.weight_decay,
        optimizer.cautious_decay,
    )
    finite, rate = math.isfinite(total), learning_rate * own.other_rate
    for i in range(0, len(own.others), 2):
        first, last = max(begin, own.others[i]), min(end, own.others[i + 1])
        if first < last and not adam(values, grads, optimizer, first, last, step, rate):
            finite = False
    return finite


# velocity = momentum velocity + g, w = w - rate velocity
@jit
def sgd(values, grads, optimizer, begin, end, step, learning_rate):
    """Stochastic gradient descent with momentum (Polyak 1964).

    Returns whether the parameters are finite.
    """
    velocity = as_pointer(optimizer.state[0])
    kept, back = simd.splat(values, optimizer.momentum), simd.splat(values, -learning_rate)
    zero = total = simd.splat(values, 0)
    for i in range(begin, end, simd.lanes(values)):
        speed = simd.clear_tiny(simd.fma(simd.load(velocity, i), kept, simd.load(grads, i)))
        simd.store(velocity, i, speed)
        moved = simd.fma(speed, back, simd.load(values, i))
        simd.store(values, i, moved)
        if optimizer.clears:
            simd.store(grads, i, zero)
        total = total + moved
    return math.isfinite(simd.sum_lanes(total))


# What moves parameters begin to end - 1, whole vectors, by the kind of the optimizer.
MOVES = {ADAM: adam, SGD: sgd, MUON: muon}


# mean = mean + (w - mean) / (1 + share (n - 1))
@jit
def average(values, mean, begin, end, n, share):
    """Polynomial-decay averaging (Shamir and Zhang 2013): add the n-th weights to the mean.

    The mean covers about the last `share` of all that were added.
    """
    weight = 1 / (1 + share * (n - 1))
    for i in range(begin, end, simd.lanes(values)):
        before = simd.load(mean, i)
        simd.store(mean, i, before + (simd.load(values, i) - before) * weight)
