"""Settings of a training as the kernels take them: numbers instead of names."""

import math

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.loops import optimizers, schedules
from tapegpt.kernels.loops.optimizers import Optimizer
from tapegpt.kernels.loops.schedules import Schedule
from tapegpt.settings import TrainConfig

OPTIMIZERS = {"adam": optimizers.ADAM, "adamw": optimizers.ADAM, "sgd": optimizers.SGD}
SCHEDULES = {
    "linear": schedules.LINEAR,
    "exponential": schedules.EXPONENTIAL,
    "cosine": schedules.COSINE,
    "constant": schedules.CONSTANT,
}

TIMED_STEPS = 1000  # decays of a training that has seconds as its budget


def kernel_optimizer(config: TrainConfig, state: NDArray[np.floating]) -> Optimizer:
    """The optimizer of a training; state: (arrays, num_params), see `OPTIMIZER_STATE`."""
    return Optimizer(
        kind=OPTIMIZERS[config.optimizer],
        state=state,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay if config.optimizer == "adamw" else 0.0,
        momentum=config.momentum,
        averaging=config.averaging,
        clip_norm=math.inf if config.clip_norm is None else config.clip_norm,
    )


def kernel_schedule(
    config: TrainConfig, learning_rate: float, origin: float, span: float
) -> Schedule:
    """The schedule of a training that begins with step `origin` and has `span` steps."""
    timed = config.seconds is not None
    return Schedule(
        kind=SCHEDULES[config.schedule],
        learning_rate=learning_rate,
        decay=config.decay ** (TIMED_STEPS / span) if timed else config.decay,
        warmup=config.warmup,
        origin=origin,
        span=span,
    )
