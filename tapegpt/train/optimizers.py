"""The optimizers: a row of facts for each, whose kernel is in kernels/loops/optimizers.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tapegpt.kernels.loops.muon import Muon
    from tapegpt.kernels.loops.optimizers import Optimizer as KernelOptimizer
    from tapegpt.models.model import Model
    from tapegpt.settings import TrainConfig


class Optimizer(NamedTuple):
    """What is known of an optimizer before Numba is imported."""

    name: str  # what --optimizer calls it
    kernel: str  # the name of its kind among the kernels
    state: tuple[str, ...]  # arrays like the parameters, as a saved run names them
    settings: tuple[str, ...]  # those of TrainConfig that it uses, and not every optimizer
    learning_rate: float  # the largest of the schedule, unless the model has one of its own
    # The setting m, if any, for which it remembers a gradient for 1 / (1 - m) steps, so that each
    # takes 1 - m of that rate.
    memory: str | None = None

    def rate_for(self, model: Model) -> float:
        """The learning rate that trains a model well, over the steps that one is remembered."""
        return model.learning_rates.get(self.name, self.learning_rate)


_ADAM = ("beta1", "beta2", "epsilon")
_DECAY = ("weight_decay", "cautious_decay")
_ROWS = (
    Optimizer("adam", "ADAM", ("adam.m", "adam.v"), _ADAM, 0.01),
    Optimizer("adamw", "ADAM", ("adam.m", "adam.v"), (*_ADAM, *_DECAY), 0.01),
    Optimizer("sgd", "SGD", ("sgd.velocity",), ("momentum",), 0.1, memory="momentum"),
    Optimizer(
        "muon",
        "MUON",
        ("muon.m", "muon.v"),
        (*_ADAM, *_DECAY, "momentum", "adam_rate"),
        0.02,
    ),
)
OPTIMIZERS: Mapping[str, Optimizer] = {row.name: row for row in _ROWS}


def kernel_optimizer(
    config: TrainConfig, state: NDArray[np.floating], muon: Muon
) -> KernelOptimizer:
    """The optimizer of a training as kernels take it.

    state: (arrays, num_params), those of the optimizer and then, if any, the averaged weights.
    """
    from tapegpt.kernels.loops import optimizers

    optimizer = OPTIMIZERS[config.optimizer]

    def used(name: str) -> float:
        return getattr(config, name) if name in optimizer.settings else 0.0

    return optimizers.Optimizer(
        kind=getattr(optimizers, optimizer.kernel),
        state=state,
        beta1=used("beta1"),
        beta2=used("beta2"),
        epsilon=used("epsilon"),
        weight_decay=used("weight_decay"),
        momentum=used("momentum"),
        averaging=config.averaging,
        clip_norm=math.inf if config.clip_norm is None else config.clip_norm,
        muon=muon,
        cautious_decay=bool(used("cautious_decay")),
    )
