"""The learning rate from step to step."""

import math
from typing import NamedTuple

from tapegpt.kernels.compile.jit import jit

CONSTANT, LINEAR, EXPONENTIAL, COSINE, WSD = 0, 1, 2, 3, 4


class Schedule(NamedTuple):
    """How the learning rate goes, over a training of `span` steps that begins with step `origin`.

    With a budget of seconds both are estimates at the present pace.
    """

    kind: int
    learning_rate: float  # the largest
    decay: float  # exponential: from one step to the next
    warmup: float  # cosine, wsd: share of the training in which the rate rises
    origin: float
    span: float
    cooldown: float = 1.0  # wsd: share of the training in which the rate falls
    final_rate: float = 0.0  # cosine: share of the rate that is left at the end


# linear: rate (1 - steps / span). exponential: rate decay^steps. cosine, once it has risen: rate
# (final + (1 - final) (1 + cos(pi share)) / 2), share from 0 to 1 over the rest (Loshchilov and
# Hutter 2017). wsd, once it has risen: rate, and in the end rate (1 - steps / span) / cooldown (Hu
# et al. 2024, MiniCPM).
@jit
def scheduled_rate(schedule, step):
    """The learning rate of a step, counted from 0."""
    steps = step - schedule.origin
    if schedule.kind == CONSTANT:
        return schedule.learning_rate
    if schedule.kind == LINEAR:
        return max(0.0, schedule.learning_rate * (1 - steps / schedule.span))
    if schedule.kind == EXPONENTIAL:
        return schedule.learning_rate * schedule.decay**steps
    risen = (steps + 1) / (schedule.warmup * schedule.span)
    if risen < 1:
        return schedule.learning_rate * risen
    if schedule.kind == WSD:
        left = (1 - steps / schedule.span) / schedule.cooldown
        return schedule.learning_rate * min(1.0, max(0.0, left))
    done = (steps / schedule.span - schedule.warmup) / (1 - schedule.warmup)
    falling = (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2
    return schedule.learning_rate * (schedule.final_rate + (1 - schedule.final_rate) * falling)
