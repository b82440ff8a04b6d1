"""The tensors' file of a run, written some rows at a time: it is never in memory whole."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HEADER_ALIGNMENT = 8  # bytes
PIECE = 1 << 20  # bytes of a tensor that are copied at a time


def pieces_of(tensors: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """The file as safetensors writes it.

    tensors: (rows, columns) each of the weights and their like, all of one dtype; and one of
    tokens, (tokens,), unsigned.
    """
    ordered = sorted(tensors.items(), key=lambda named: (-named[1].itemsize, named[0]))
    layout, end = {}, 0
    for name, array in ordered:
        letter = "U" if array.dtype.kind == "u" else "F"
        kind, begin, end = f"{letter}{8 * array.itemsize}", end, end + array.nbytes
        layout[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (begin, end)}
    header = json.dumps(layout, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    yield len(header).to_bytes(8, "little") + header
    for _, array in ordered:
        for rows in some_rows(array):
            yield np.ascontiguousarray(rows).data.cast("B")


def some_rows(array: Array) -> Iterator[Array]:
    """All rows of a matrix, so many at a time that they are about `PIECE` bytes."""
    count = max(1, PIECE // max(1, array[:1].nbytes))
    for first in range(0, len(array), count):
        yield array[first : first + count]
