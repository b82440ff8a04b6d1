"""Rows times packed weights, for every width of panels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.layout import NONE, stride
from tapegpt.kernels.ops.product.matrix import IDENTITY, RELU
from tapegpt.kernels.ops.product.packed import PANEL, pack_weights, packed_product, packed_size

UNTOUCHED = -12345
GUARD = 16


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    n_in=st.integers(1, 40) | st.integers(100, 140),
    vectors=st.integers(1, 2 * PANEL + 7),
    missing=st.integers(0, 15),
    begins=st.sampled_from(["zero", "elsewhere", "in place"]),
    activation=st.sampled_from([IDENTITY, RELU]),
    seed=st.integers(0, 99),
)
def test_a_row_times_packed_weights(dtype, n_in, vectors, missing, begins, activation, seed):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    n_out = max(1, vectors * lanes - missing % lanes)
    row, width = stride(n_in, lanes), vectors * lanes
    sizes = {
        "x": row, "w": n_out * row, "packed": packed_size(n_in, n_out, lanes),
        "start": width, "out": width,
    }  # fmt: skip
    at, total = {}, GUARD
    for name, size in sizes.items():
        at[name], total = total, total + size + GUARD
    values = np.full(total, UNTOUCHED, dtype)
    part = {name: values[at[name] : at[name] + size] for name, size in sizes.items()}
    rng = np.random.default_rng(seed)
    x, w, start = rng.normal(size=n_in), rng.normal(size=(n_out, n_in)), rng.normal(size=n_out)
    part["x"][:], part["w"][:], part["start"][:], part["out"][:] = 0, 0, 0, 0
    part["x"][:n_in] = x
    part["w"].reshape(n_out, row)[:, :n_in] = w
    begin = "out" if begins == "in place" else "start"
    part[begin][:n_out] = start
    begin = NONE if begins == "zero" else at[begin]

    pack_weights(values, at["w"], n_in, n_out, at["packed"])
    before = values.copy()
    packed_product(values, at["x"], n_in, at["packed"], n_out, at["out"], begin, activation)

    expected = w @ x + (0 if begins == "zero" else start)
    expected = np.maximum(expected, 0) if activation == RELU else expected
    limit = (n_in + 2) * np.finfo(dtype).eps * (np.abs(w) @ np.abs(x) + np.abs(start))
    assert (np.abs(part["out"][:n_out] - expected) <= limit).all()
    assert (part["out"][n_out:] == 0).all()
    part["out"][:] = before[at["out"] : at["out"] + width]
    assert (values == before).all()
