"""The matrix product, for every shape of remainder and in every way that `linear` calls it."""

import matrix_unit
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.compile.cpu import MATRIX_UNIT
from tapegpt.kernels.ops.product.amx import (
    AMX_LEAST,
    SIDE,
    amx_matmul,
    amx_room,
    large_matmul,
)
from tapegpt.kernels.ops.product.matmul import (
    BLOCK_DEPTH,
    BLOCK_ROWS,
    DEEP_BLOCK_DEPTH,
    FEW_ROWS,
    GROUP_BYTES,
    LONG_COLUMNS,
    PACKED_BYTES,
    PACKED_ROWS,
    PANEL_DEPTH,
    ROWS_TOGETHER,
    matmul,
    matmul_room,
)
from tapegpt.kernels.ops.product.matrix import IDENTITY, RELU, Left, Result, Right, Shape
from tapegpt.kernels.simd import (
    PAIR_TILE,
    SINGLE_TILE,
    TAIL_ROWS,
    VECTOR_BYTES,
    WIDE_TILE,
)
from tapegpt.setting import DTYPES

# The unit itself, and an emulated one.
with_unit = pytest.mark.skipif(not MATRIX_UNIT, reason="no AMX here")
with_emulated_unit = pytest.mark.skipif(VECTOR_BYTES != 64, reason="the unit wants such vectors")
EMULATED = matrix_unit.emulated_amx_matmul
UNITS = {
    "unit": (amx_matmul, large_matmul, with_unit),
    "emulated-unit": (EMULATED, matrix_unit.emulated_large_matmul, with_emulated_unit),
}
every_product = pytest.mark.parametrize(
    ("multiply", "dtype"),
    [
        *(pytest.param(matmul, dtype, id=dtype) for dtype in ("float32", "float64")),
        *(
            pytest.param(multiply, "float32", marks=marks, id=name)
            for name, (multiply, _, marks) in UNITS.items()
        ),
    ],
)
every_unit = pytest.mark.parametrize(
    ("amx_matmul", "large_matmul"),
    [pytest.param(*multiply, marks=marks, id=name) for name, (*multiply, marks) in UNITS.items()],
)
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


def room_for(multiply, dtype, rows, depth, columns, transposed=False):
    """What a product packs its operands in."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    count = matmul_room(rows, depth, columns, lanes, transposed)
    return np.zeros(count if multiply is matmul else amx_room(rows, depth), dtype)


def fewer(sizes):
    """The emulated unit takes long."""
    rows, depth, vectors = sizes
    return rows, depth, min(vectors, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(1, FEW_ROWS + 1))
@pytest.mark.parametrize("depth", [0, 1, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 3])
@pytest.mark.parametrize("start", [-1, 0])
def test_few_rows_with_rows_longer_than_a_block(dtype, rows, depth, start):
    rng, columns = np.random.default_rng(0), 2 * LONG_COLUMNS + VECTOR_BYTES
    a, b, out = (
        rng.integers(-9, 10, shape).astype(dtype)
        for shape in ((rows, depth), (depth, columns), (rows, columns))
    )
    expected = a @ b + (out if start == 0 else 0)
    matmul(
        Left(a.ravel(), 0, depth, 1),
        Right(b.ravel() if depth else np.zeros(1, dtype), 0, columns, False),
        Result(out.ravel(), 0, columns, start, IDENTITY),
        Shape(rows, depth, columns),
        0,
    )
    np.testing.assert_array_equal(out, expected)


@every_product
@pytest.mark.parametrize("transposed", [None, "a", "b"])
@pytest.mark.parametrize("start", ["none", "other", "itself"])
@given(
    sizes=products(),
    narrower=st.integers(0, 15),
    activation=st.sampled_from([IDENTITY, RELU, WHERE_POSITIVE]),
    guard=gaps,
    a_gap=gaps,
    b_gap=gaps | st.just(PACKED_BYTES),
    out_gap=gaps,
    seed=st.integers(0, 99),
)
def test_product_is_exact_and_nothing_else_is_written(
    multiply, dtype, transposed, start, sizes, narrower, activation, guard, a_gap, b_gap, out_gap,
    seed,
):  # fmt: skip
    rows, depth, vectors = fewer(sizes) if multiply is EMULATED else sizes
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    width = vectors * lanes
    columns = width - narrower % lanes
    rng = np.random.default_rng(seed)

    def whole_numbers(*shape):
        # Small ones: every sum is exact, in any order.
        return rng.integers(-9, 10, shape).astype(dtype)

    def padded(block):
        return np.pad(block, ((0, 0), (0, -block.shape[1] % lanes)))

    def with_gaps(block, gap):
        # What lies between rows is not for reading: NaN would spread.
        return np.pad(block, ((0, 0), (0, gap)), constant_values=np.nan)

    a, b = whole_numbers(rows, depth), whole_numbers(depth, columns)
    begin, condition = (padded(whole_numbers(rows, columns)) for _ in range(2))
    out = begin if start == "itself" else np.full((rows, width), 77, dtype)

    a_rows = a.T if transposed == "a" else padded(a) if transposed == "b" else a
    a_flat = guarded(with_gaps(a_rows, a_gap), guard)
    a_row, a_step = a_rows.shape[1] + a_gap, 1
    if transposed == "a":
        a_row, a_step = a_step, a_row
    condition_block = guarded(with_gaps(condition, out_gap), guard)
    b_rows = padded(b.T if transposed == "b" else b)
    b_block = guarded(with_gaps(b_rows, b_gap), guard)
    room = room_for(multiply, dtype, rows, depth, columns, transposed == "a")
    b_flat = np.concatenate([condition_block, b_block, guarded(room, guard)])
    packed = len(condition_block) + len(b_block) + guard
    out_block = guarded(with_gaps(out, out_gap), guard)
    begin_block = guarded(with_gaps(begin, out_gap), guard)
    out_flat = np.concatenate([out_block, begin_block])
    start0 = {"none": -1, "itself": guard, "other": len(out_block) + guard}[start]
    a_before, b_before = a_flat.copy(), b_flat.copy()
    # B's array begins with the condition.
    given_activation = guard if activation == WHERE_POSITIVE else activation
    multiply(
        Left(a_flat, guard, a_row, a_step),
        Right(b_flat, len(condition_block) + guard, b_rows.shape[1] + b_gap, transposed == "b"),
        Result(out_flat, guard, width + out_gap, start0, given_activation),
        Shape(rows, depth, columns),
        packed,
    )

    # Not a @ b: on some machines BLAS leaves floating-point flags behind, and NumPy warns of them.
    expected = padded(np.einsum("ij,jk", a, b)) + (0 if start == "none" else begin)
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
@pytest.mark.parametrize("transposed", [None, "a", "b"])
@pytest.mark.parametrize("start", [-1, 0])
@pytest.mark.parametrize("depth", [2 * BLOCK_DEPTH - 5, 2 * DEEP_BLOCK_DEPTH - 5])
def test_product_of_several_blocks(dtype, transposed, start, depth):
    rng, itemsize = np.random.default_rng(1), np.dtype(dtype).itemsize
    lanes = VECTOR_BYTES // itemsize
    rows = BLOCK_ROWS + TALLEST + 1
    columns = GROUP_BYTES // itemsize + WIDEST * lanes + lanes
    far = PACKED_BYTES // itemsize
    a, b = np.zeros((rows, depth), dtype), np.zeros((depth, columns), dtype)
    a[:], b[:] = (rng.integers(-9, 10, x.shape) for x in (a, b))
    # Rows that are far apart, so that both are packed.
    a_flat, b_flat = (
        np.pad(x.T if name == transposed else x, ((0, 0), (0, far)))
        for x, name in ((a, "a"), (b, "b"))
    )
    a_row, a_step = (1, rows + far) if transposed == "a" else (depth + far, 1)
    b_row, b_size = b_flat.shape[1], b_flat.size
    room = matmul_room(rows, depth, columns, lanes, transposed == "a")
    b_flat = np.concatenate([b_flat.ravel(), np.zeros(room, dtype), [UNTOUCHED]]).astype(dtype)
    out = rng.integers(-9, 10, (rows, columns)).astype(dtype)
    expected = a @ b + (out if start == 0 else 0)
    matmul(
        Left(a_flat.ravel(), 0, a_row, a_step),
        Right(b_flat, 0, b_row, transposed == "b"),
        Result(out.ravel(), 0, columns, start, IDENTITY),
        Shape(rows, depth, columns),
        b_size,
    )
    np.testing.assert_array_equal(out, expected)
    assert b_flat[-1] == UNTOUCHED
    assert b_flat[b_size : b_size + room].any()


@given(
    sizes=st.tuples(*[st.integers(1, 600)] * 3),
    more=st.tuples(*[st.integers(0, 600)] * 3),
    lanes=st.sampled_from([2, 4, 8, 16]),
    transposed=st.booleans(),
)
def test_room_for_more_is_room_for_less(sizes, more, lanes, transposed):
    """A batch may have fewer rows than it was recorded for."""
    larger = [size + extra for size, extra in zip(sizes, more, strict=True)]
    assert matmul_room(*sizes, lanes, transposed) <= matmul_room(*larger, lanes, transposed)


@every_product
@given(sizes=products(), seed=st.integers(0, 99))
def test_rounding_error_is_that_of_a_sum(multiply, dtype, sizes, seed):
    rows, depth, vectors = fewer(sizes) if multiply is EMULATED else sizes
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = vectors * lanes
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, depth)).astype(dtype)
    b = rng.normal(size=(depth, columns)).astype(dtype)
    out = np.zeros(rows * columns, dtype)
    b_flat = np.concatenate([b.reshape(-1), room_for(multiply, dtype, rows, depth, columns)])
    multiply(
        Left(a.reshape(-1), 0, depth, 1),
        Right(b_flat, 0, columns, False),
        Result(out, 0, columns, -1, IDENTITY),
        Shape(rows, depth, columns),
        b.size,
    )
    wide = a.astype(np.longdouble), b.astype(np.longdouble)
    error = np.abs(out.reshape(rows, columns) - wide[0] @ wide[1])
    # Higham 2002, section 3.1: a sum of n products in any order is off by n units at most.
    assert (error <= depth * np.finfo(dtype).eps * (np.abs(wide[0]) @ np.abs(wide[1]))).all()


@every_product
@pytest.mark.parametrize("activation", [IDENTITY, RELU, WHERE_POSITIVE])
@pytest.mark.parametrize(
    "nan", [np.uint32(0x7FC00000), np.uint32(0x7FFFFFFF), np.uint32(0xFFFFFFFF)]
)
def test_nan_stays_nan(multiply, dtype, activation, nan):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    a = np.full(TALLEST + 1, np.uint32(nan).view(np.float32), dtype)
    out = np.zeros(len(a) * lanes, dtype)
    room = room_for(multiply, dtype, len(a), 1, lanes)
    b = np.concatenate([np.ones(out.size, dtype), room])
    multiply(
        Left(a, 0, 1, 1),
        Right(b, 0, lanes, False),
        Result(out, 0, lanes, -1, activation),
        Shape(len(a), 1, lanes),
        out.size,
    )
    assert np.isnan(out).all()


@every_product
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_not_finite_does_not_vanish(multiply, dtype, transposed):
    side = max(4, VECTOR_BYTES // np.dtype(dtype).itemsize)
    a, b, out = (np.ones((side, side), dtype) for _ in range(3))
    a[1, 2], b[0, 3] = np.inf, -np.inf
    b_flat = np.concatenate(
        [b.reshape(-1), room_for(multiply, dtype, side, side, side, transposed)]
    )
    a_row, a_step = (1, side) if transposed else (side, 1)
    multiply(
        Left((a.T if transposed else a).reshape(-1), 0, a_row, a_step),
        Right(b_flat, 0, side, False),
        Result(out.reshape(-1), 0, side, -1, IDENTITY),
        Shape(side, side, side),
        b.size,
    )
    expected = np.ones((side, side), bool)
    expected[1], expected[:, 3] = False, False
    np.testing.assert_array_equal(np.isfinite(out), expected)


@every_unit
@pytest.mark.parametrize("transposed", [False, True])
@given(
    exponents=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    depth=st.integers(AMX_LEAST, 3 * AMX_LEAST),
    seed=st.integers(0, 99),
)
def test_the_matrix_unit_is_as_good_as_float32(
    amx_matmul, large_matmul, transposed, exponents, depth, seed
):
    """The errors of all elements together, of numbers of any size, are below multiply-adds'."""
    rng = np.random.default_rng(seed)
    a, b = (
        (rng.normal(size=shape) * 2.0**exponent).astype(np.float32)
        for shape, exponent in zip([(AMX_LEAST, depth), (depth, 2 * SIDE)], exponents, strict=True)
    )
    exact = a.astype(np.float64) @ b.astype(np.float64)
    a_row, a_step = (1, AMX_LEAST) if transposed else (depth, 1)
    a_flat = (a.T if transposed else a).reshape(-1)
    errors = []
    for multiply in (amx_matmul, matmul):
        room = room_for(multiply, "float32", AMX_LEAST, depth, 2 * SIDE, transposed)
        out = np.zeros((AMX_LEAST, 2 * SIDE), np.float32)
        multiply(
            Left(a_flat, 0, a_row, a_step),
            Right(np.concatenate([b.reshape(-1), room]), 0, 2 * SIDE, False),
            Result(out.reshape(-1), 0, 2 * SIDE, -1, IDENTITY),
            Shape(AMX_LEAST, depth, 2 * SIDE),
            b.size,
        )
        errors.append(np.linalg.norm(out - exact))
    assert errors[0] < errors[1]


@every_unit
def test_the_matrix_unit_rounds_a_single_product_once(amx_matmul, large_matmul):
    """The small parts are added first, and what is left out is as small as it should be."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(1, 2, 16 * SIDE).astype(np.float32) for _ in range(2))
    out = np.zeros((len(a), len(b)), np.float32)
    room = room_for(amx_matmul, "float32", len(a), 1, len(b))
    amx_matmul(
        Left(a, 0, 1, 1),
        Right(np.concatenate([b, room]), 0, len(b), False),
        Result(out.reshape(-1), 0, len(b), -1, IDENTITY),
        Shape(len(a), 1, len(b)),
        len(b),
    )
    exact = np.multiply.outer(a.astype(np.float64), b.astype(np.float64))
    error = np.abs(out - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() < 1
    # That of rounding alone is 1 / sqrt(12).
    assert np.sqrt(np.square(error).mean()) < 0.3


@every_unit
@pytest.mark.parametrize("large", [True, False])
def test_large_products_take_the_matrix_unit(amx_matmul, large_matmul, large):
    """To the same bits."""
    rng = np.random.default_rng(7)
    sizes, expected = (AMX_LEAST, AMX_LEAST + 1, AMX_LEAST), amx_matmul if large else matmul
    for smaller in [(0, 0, 0)] if large else [(1, 0, 0), (0, 2, 0), (0, 0, SIDE)]:
        rows, depth, columns = np.subtract(sizes, smaller).tolist()
        a = rng.normal(size=rows * depth).astype(np.float32)
        b = rng.normal(size=depth * columns + max(amx_room(rows, depth), 2**13))
        outs = np.zeros((2, rows * columns), np.float32)
        for multiply, out in zip((large_matmul, expected), outs, strict=True):
            multiply(
                Left(a, 0, depth, 1),
                Right(b.astype(np.float32), 0, columns, False),
                Result(out, 0, columns, -1, IDENTITY),
                Shape(rows, depth, columns),
                depth * columns,
            )
        np.testing.assert_array_equal(*outs)
