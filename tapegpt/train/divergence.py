"""What is said where numbers are no longer finite."""

import math

import numpy as np
from numpy.typing import NDArray

from tapegpt.errors import DivergedError
from tapegpt.settings import TrainConfig


def diverged(
    training: TrainConfig, state: NDArray[np.floating], step: int, loss: float
) -> DivergedError:
    """The error of a step, counted from 1, that had this loss.

    state: the optimizer's, which keeps what is wrong with a gradient.
    """
    problem = "the loss is not finite"
    if math.isfinite(loss):
        culprit = "a weight" if np.isfinite(state).all() else "the gradient"
        problem = f"{culprit} is not finite, or too large"
    clip = "" if training.clip_norm else ", or --clip-norm 1"
    return DivergedError(
        f"training diverged at step {step}: {problem} (loss {loss:.6g},"
        f" --learning-rate {training.learning_rate:g}): try a lower rate{clip}"
    )
