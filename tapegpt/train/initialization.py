"""The weights that training begins with."""

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tapegpt.models.registry import zeros
from tapegpt.recorders.counter import tables
from tapegpt.settings import ModelConfig

INITIAL_DEVIATION = 0.08  # as in microgpt
DRAWN_TOGETHER = 2**16  # numbers: their lists take a few megabytes


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
        rows = matrix.T if transposed else matrix
        count = max(1, DRAWN_TOGETHER // rows.shape[1])
        for first in range(0, len(rows), count):
            some = rows[first : first + count]
            some[:] = INITIAL_DEVIATION * normals(rng, some.size).reshape(some.shape)


def normals(rng: random.Random, count: int) -> NDArray[np.float64]:
    """The next `count` numbers of `rng.gauss(0, 1)`, to the bit, in a third of the time.

    As there, two uniform numbers make two normal ones (G. Box and M. Muller 1958), and the second
    of a pair waits in the generator's state. Logarithms, cosines and sines are of `math`: NumPy's
    differ in last digits.
    """
    version, _, waiting = rng.getstate()
    before = [] if waiting is None else [waiting]
    pairs = (count - len(before) + 1) // 2
    angles, uniforms = np.array([rng.random() for _ in range(2 * pairs)]).reshape(pairs, 2).T
    radii = np.sqrt(-2.0 * _each(math.log, 1.0 - uniforms))
    angles = angles * math.tau
    drawn = np.stack([_each(math.cos, angles) * radii, _each(math.sin, angles) * radii], 1)
    numbers = np.concatenate([before, drawn.ravel()])
    left = float(numbers[count]) if count < len(numbers) else None
    rng.setstate((version, rng.getstate()[1], left))
    return numbers[:count]


def _each(function: Callable[[float], float], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.fromiter(map(function, numbers.tolist()), np.float64, len(numbers))
