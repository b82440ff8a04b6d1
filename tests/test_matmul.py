"""The matrix product, for every shape of remainder and in every way that `linear` calls it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.matmul import PANEL_DEPTH, matmul
from tapegpt.kernels.simd import TILE_COLUMNS, TILE_ROWS, VECTOR_BYTES

DTYPES = ["float32", "float64"]
UNTOUCHED = -12345


def guarded(block, guard):
    """The block's elements in the middle of a flat array, `guard` others before and after."""
    edge = np.full(guard, UNTOUCHED, block.dtype)
    return np.concatenate([edge, block.reshape(-1), edge])


@st.composite
def products(draw):
    """Sizes (rows, depth, vectors in a row of out), around the tile's and the panel's."""
    rows = draw(st.integers(0, 3 * TILE_ROWS + 1))
    depth = draw(st.integers(0, 40) | st.integers(PANEL_DEPTH - 1, 2 * PANEL_DEPTH + 1))
    vectors = draw(st.integers(1, 2 * TILE_COLUMNS + 1))
    return rows, depth, vectors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("start", ["none", "other", "itself"])
@given(sizes=products(), guard=st.integers(0, 9), gap=st.integers(0, 9), seed=st.integers(0, 99))
def test_product_is_exact_and_nothing_else_is_written(
    dtype, transposed, start, sizes, guard, gap, seed
):
    rows, depth, vectors = sizes
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = vectors * lanes
    rng = np.random.default_rng(seed)

    def whole_numbers(*shape):
        # Small ones: every sum is exact, in any order.
        return rng.integers(-9, 10, shape).astype(dtype)

    def with_gaps(block):
        # Padding between rows is not for reading: NaN would spread.
        return np.pad(block, ((0, 0), (0, gap)), constant_values=np.nan)

    a, b, begin = (
        whole_numbers(rows, depth),
        whole_numbers(depth, columns),
        whole_numbers(rows, columns),
    )
    a_row, a_step = (1, rows + gap) if transposed else (depth + gap, 1)
    out = begin if start == "itself" else np.full((rows, columns), 77, dtype)

    a_flat = guarded(with_gaps(a.T if transposed else a), guard)
    room = np.zeros(PANEL_DEPTH * TILE_COLUMNS * lanes, dtype)
    b_flat = np.concatenate([guarded(with_gaps(b), guard + lanes), room])
    out_block, begin_block = guarded(with_gaps(out), guard), guarded(with_gaps(begin), guard)
    out_flat = np.concatenate([out_block, begin_block])
    start0 = {"none": -1, "itself": guard, "other": len(out_block) + guard}[start]
    before = a_flat.copy(), b_flat[: -len(room)].copy()
    matmul(
        a_flat, guard, a_row, a_step,
        b_flat, guard + lanes, columns + gap, len(b_flat) - len(room),
        out_flat, guard, columns + gap, start0,
        rows, depth, columns,
    )  # fmt: skip

    expected = (a @ b + (0 if start == "none" else begin)).astype(dtype)
    expected_flat = np.concatenate([guarded(with_gaps(expected), guard), begin_block])
    np.testing.assert_array_equal(out_flat, expected_flat)
    np.testing.assert_array_equal(a_flat, before[0])
    np.testing.assert_array_equal(b_flat[: -len(room)], before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@given(sizes=products(), seed=st.integers(0, 99))
def test_rounding_error_is_that_of_a_sum(dtype, sizes, seed):
    rows, depth, vectors = sizes
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = vectors * lanes
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, depth)).astype(dtype)
    b = rng.normal(size=(depth, columns)).astype(dtype)
    out = np.zeros(rows * columns, dtype)
    b_flat = np.concatenate(
        [b.reshape(-1), np.zeros((PANEL_DEPTH + 1) * TILE_COLUMNS * lanes, dtype)]
    )
    matmul(
        a.reshape(-1), 0, depth, 1, b_flat, 0, columns, b.size + TILE_COLUMNS * lanes,
        out, 0, columns, -1, rows, depth, columns,
    )  # fmt: skip
    wide = a.astype(np.longdouble), b.astype(np.longdouble)
    error = np.abs(out.reshape(rows, columns) - wide[0] @ wide[1])
    # Higham 2002, section 3.1: a sum of n products in any order is off by n units at most.
    assert (error <= depth * np.finfo(dtype).eps * (np.abs(wide[0]) @ np.abs(wide[1]))).all()
