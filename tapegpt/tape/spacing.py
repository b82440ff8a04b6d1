"""How ids lie beside each other, on which it depends whether one record can name them."""

import numpy as np

from tapegpt.tape.types import Ids


def consecutive(nodes: list[int]) -> bool:
    """Whether every id is one more than the one before it."""
    first, count = nodes[0], len(nodes)
    return nodes[-1] == first + count - 1 and nodes == [*range(first, first + count)]


def evenly_spaced(ids: Ids) -> tuple[int, ...]:
    """(first, row, step) if ids[i, j] is first + i row + j step, with a step of 1 or 0, else ()."""
    rows, columns = ids.shape
    first = int(ids[0, 0])
    row = int(ids[1, 0]) - first if rows > 1 else 0
    step = int(columns > 1 and ids[0, 1] != first)
    expected = first + row * np.arange(rows)[:, None] + step * np.arange(columns)
    return (first, row, step) if (ids == expected).all() else ()
