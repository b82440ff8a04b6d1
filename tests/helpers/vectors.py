"""Kernels over whole vectors, called with arrays of any length."""

import numpy as np
import pytest

from tapegpt.kernels.simd import VECTOR_BYTES

needs_extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant,
    reason="long double is no more precise than float64 here",
)


def whole_vectors(x):
    """The array, repeated from its beginning up to a whole number of vectors."""
    count = VECTOR_BYTES // x.itemsize
    return np.resize(x, -(-len(x) // count) * count)


def apply(kernel, x, *arguments):
    """kernel(out, x, *arguments) on every element, in whole vectors; returns out."""
    given = whole_vectors(x)
    out = np.empty_like(given)
    kernel(out, given, *arguments)
    return out[: len(x)]
