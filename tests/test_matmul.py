"""The matrix product, for every shape of remainder and in every way that `linear` calls it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.matmul import (
    IDENTITY,
    PACKED_BYTES,
    PACKED_ROWS,
    PANEL_DEPTH,
    RELU,
    matmul,
)
from tapegpt.kernels.simd import PAIR_TILE, SINGLE_TILE, TAIL_ROWS, VECTOR_BYTES, WIDE_TILE

DTYPES = ["float32", "float64"]
UNTOUCHED = -12345
TALLEST = max(rows for rows, _ in (WIDE_TILE, PAIR_TILE, SINGLE_TILE))
WIDEST = WIDE_TILE[1]
WHERE_POSITIVE = 0  # or any other index


def guarded(block, guard):
    """The block's elements in the middle of a flat array, `guard` others before and after."""
    edge = np.full(guard, UNTOUCHED, block.dtype)
    return np.concatenate([edge, block.reshape(-1), edge])


@st.composite
def products(draw):
    """Sizes (rows, depth, vectors in a row of out), around the tiles' and the panel's."""
    rows = draw(st.integers(0, 2 * TALLEST + TAIL_ROWS) | st.integers(PACKED_ROWS - 1, PACKED_ROWS))
    depth = draw(st.integers(0, 40) | st.integers(PANEL_DEPTH - 1, 2 * PANEL_DEPTH + 1))
    vectors = draw(st.integers(1, 2 * WIDEST + 1))
    return rows, depth, vectors


gaps = st.integers(0, 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("start", ["none", "other", "itself"])
@given(
    sizes=products(),
    activation=st.sampled_from([IDENTITY, RELU, WHERE_POSITIVE]),
    guard=gaps,
    a_gap=gaps,
    b_gap=gaps | st.just(PACKED_BYTES),
    out_gap=gaps,
    seed=st.integers(0, 99),
)
def test_product_is_exact_and_nothing_else_is_written(
    dtype, transposed, start, sizes, activation, guard, a_gap, b_gap, out_gap, seed
):
    rows, depth, vectors = sizes
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = vectors * lanes
    rng = np.random.default_rng(seed)

    def whole_numbers(*shape):
        # Small ones: every sum is exact, in any order.
        return rng.integers(-9, 10, shape).astype(dtype)

    def with_gaps(block, gap):
        # Padding between rows is not for reading: NaN would spread.
        return np.pad(block, ((0, 0), (0, gap)), constant_values=np.nan)

    a, b = whole_numbers(rows, depth), whole_numbers(depth, columns)
    begin, condition = whole_numbers(rows, columns), whole_numbers(rows, columns)
    out = begin if start == "itself" else np.full((rows, columns), 77, dtype)

    a_flat = guarded(with_gaps(a.T if transposed else a, a_gap), guard)
    a_row, a_step = (1, rows + a_gap) if transposed else (depth + a_gap, 1)
    condition_block = guarded(with_gaps(condition, out_gap), guard)
    b_block = guarded(with_gaps(b, b_gap), guard)
    room = np.zeros(PANEL_DEPTH * WIDEST * lanes, dtype)
    b_flat = np.concatenate([condition_block, b_block, guarded(room, guard)])
    packed = len(condition_block) + len(b_block) + guard
    out_block = guarded(with_gaps(out, out_gap), guard)
    begin_block = guarded(with_gaps(begin, out_gap), guard)
    out_flat = np.concatenate([out_block, begin_block])
    start0 = {"none": -1, "itself": guard, "other": len(out_block) + guard}[start]
    a_before, b_before = a_flat.copy(), b_flat.copy()
    # B's array begins with the condition.
    given_activation = guard if activation == WHERE_POSITIVE else activation
    matmul(
        a_flat, guard, a_row, a_step,
        b_flat, len(condition_block) + guard, columns + b_gap, packed,
        out_flat, guard, columns + out_gap, start0,
        rows, depth, columns, given_activation,
    )  # fmt: skip

    expected = (a @ b + (0 if start == "none" else begin)).astype(dtype)
    if activation == RELU:
        expected = np.maximum(expected, 0)
    elif activation == WHERE_POSITIVE:
        expected = np.where(condition > 0, expected, 0)
    expected_block = guarded(with_gaps(expected, out_gap), guard)
    np.testing.assert_array_equal(out_flat, np.concatenate([expected_block, begin_block]))
    np.testing.assert_array_equal(a_flat, a_before)
    b_flat[packed : packed + len(room)] = 0
    np.testing.assert_array_equal(b_flat, b_before)


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
    b_flat = np.concatenate([b.reshape(-1), np.zeros(PANEL_DEPTH * WIDEST * lanes, dtype)])
    matmul(
        a.reshape(-1), 0, depth, 1, b_flat, 0, columns, b.size,
        out, 0, columns, -1, rows, depth, columns, IDENTITY,
    )  # fmt: skip
    wide = a.astype(np.longdouble), b.astype(np.longdouble)
    error = np.abs(out.reshape(rows, columns) - wide[0] @ wide[1])
    # Higham 2002, section 3.1: a sum of n products in any order is off by n units at most.
    assert (error <= depth * np.finfo(dtype).eps * (np.abs(wide[0]) @ np.abs(wide[1]))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [IDENTITY, RELU, WHERE_POSITIVE])
def test_nan_stays_nan(dtype, activation):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    a, out = np.full(TALLEST + 1, np.nan, dtype), np.zeros((TALLEST + 1) * lanes, dtype)
    b = np.ones(out.size + PANEL_DEPTH * WIDEST * lanes, dtype)
    matmul(
        a, 0, 1, 1, b, 0, lanes, out.size, out, 0, lanes, -1, len(a), 1, lanes, activation
    )  # fmt: skip
    assert np.isnan(out).all()
