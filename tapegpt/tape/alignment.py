"""Arrays that begin on a cache line."""

import numpy as np

from tapegpt.tape.types import Floats

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned_zeros(count: int, dtype: np.dtype[np.floating]) -> Floats:
    """float[count], zero, its first element on a 64-byte boundary."""
    raw = np.zeros(count + ALIGNMENT // dtype.itemsize, dtype)
    start = -raw.ctypes.data % ALIGNMENT // dtype.itemsize
    return raw[start : start + count]


def aligned_copy(array: Floats) -> Floats:
    """A copy of an array, float[count], on a 64-byte boundary."""
    aligned = aligned_zeros(len(array), array.dtype)
    aligned[:] = array
    return aligned
