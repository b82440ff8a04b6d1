"""The weights that training begins with."""

import random
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tapegpt.models.registry import zeros
from tapegpt.recorders.counter import tables
from tapegpt.settings import ModelConfig

INITIAL_DEVIATION = 0.08  # as in microgpt


def draw_weights(
    weights: Mapping[str, NDArray[np.floating]],
    model: ModelConfig,
    order: str,
    rng: random.Random,
) -> None:
    """Draw normal weights, one matrix after the other: (outputs, inputs).

    order: by-output draws a matrix row by row, as microgpt does; by-input column by column, as its
    NumPy port does, but for tables that are looked up.
    """
    looked_up, zero = tables(model), zeros(model)
    for name, matrix in weights.items():
        if name in zero:
            continue
        transposed = order == "by-input" and name not in looked_up
        for row in matrix.T if transposed else matrix:
            row[:] = [rng.gauss(0, INITIAL_DEVIATION) for _ in row]
