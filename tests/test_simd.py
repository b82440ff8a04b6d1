"""Vectors and tiles, through small kernels: they cannot be seen from Python themselves."""

import operator

import numpy as np
import pytest
from numba.core import config

from tapegpt.kernels import simd
from tapegpt.kernels.jit import jit
from tapegpt.kernels.peak import multiply_add
from tapegpt.kernels.simd import (
    VECTOR_BYTES,
    clamp,
    floor,
    fma,
    group_offsets,
    keep_first,
    lanes,
    load,
    max_lanes,
    maximum,
    padded,
    relu,
    row_offsets,
    row_stride,
    splat,
    sqrt,
    store,
    sum_lanes,
    tile_add,
    tile_fma,
    tile_grow,
    tile_keep_first,
    tile_load,
    tile_store,
    tile_store_first,
    tile_total,
    tile_transpose,
    tile_zeros,
    where_positive,
)

DTYPES = ["float32", "float64"]
FEATURES = {
    "+sse4.2,+avx,+avx2,+avx512f": 64,
    "+sse4.2,+avx,+avx2,-avx512f": 32,
    "+avx": 32,
    "+sse4.2,-avx": 16,
    "+neon": 16,
    "": 16,
}


def lane_count(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def vectors(dtype, count=1, seed=0):
    """`count` vectors of random numbers, one after the other."""
    return np.random.default_rng(seed).normal(size=count * lane_count(dtype)).astype(dtype)


def cycle(dtype, *values):
    """One vector, filled with these values again and again."""
    return np.resize(np.array(values, dtype), lane_count(dtype))


@pytest.mark.parametrize("features", FEATURES)
def test_vectors_are_as_wide_as_the_registers(monkeypatch, features):
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert simd.host_vector_bytes() == FEATURES[features]


def test_vectors_are_narrow_where_numba_has_avx_switched_off(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    monkeypatch.setattr(config, "ENABLE_AVX", 0)
    assert simd.host_vector_bytes() == 16


@jit
def lanes_of(array):
    return lanes(array)


@jit
def padded_width(array, width):
    return padded(array, width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_padded_to_whole_vectors(dtype):
    count = lane_count(dtype)
    array = np.zeros(1, dtype)
    assert lanes_of(array) == count
    widths = range(1, 3 * count + 1)
    assert [padded_width(array, width) for width in widths] == [
        next(whole for whole in range(0, 4 * count, count) if whole >= width) for width in widths
    ]


@jit
def stride_of(array, width):
    return row_stride(array, width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_are_an_odd_number_of_vectors_apart(dtype):
    count = lane_count(dtype)
    array = np.zeros(1, dtype)
    for width in range(1, 40 * count + 1):
        stride = stride_of(array, width)
        whole = padded_width(array, width)
        assert stride - whole in (0, count)
        if whole * array.itemsize >= 256:
            assert stride // count % 2 == 1
        else:
            assert stride == whole


@jit
def copy_vector(source, i, target, j):
    store(target, j, load(source, i))


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_and_store_at_any_element(dtype):
    count = lane_count(dtype)
    source = vectors(dtype, 3)
    for i in range(count + 2):
        for j in range(count + 2):
            target = np.full(3 * count, -7, dtype)
            expected = target.copy()
            expected[j : j + count] = source[i : i + count]
            copy_vector(source, i, target, j)
            np.testing.assert_array_equal(target, expected)


@jit
def splat_number(out, number):
    store(out, 0, splat(out, number))


@pytest.mark.parametrize("dtype", DTYPES)
def test_splat_takes_any_number(dtype):
    out = vectors(dtype)
    for number in (3, 0.1, np.float32(0.1), np.float64(-np.inf), np.nan):
        splat_number(out, number)
        np.testing.assert_array_equal(out, np.full_like(out, number))


@jit
def fma_vectors(out, a, b, c):
    store(out, 0, fma(load(a, 0), load(b, 0), load(c, 0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma(dtype):
    for seed in range(20):
        a, b, c = (vectors(dtype, seed=3 * seed + k) for k in range(3))
        out = np.zeros_like(a)
        fma_vectors(out, a, b, c)
        # Fused or not: at most one rounding of the product, one of the sum.
        error = np.abs(out - (a.astype("longdouble") * b + c))
        assert (error <= np.finfo(dtype).eps * (np.abs(a * b) + np.abs(c))).all()


def make_operator(function):
    @jit
    def apply(out, a, b, scalar):
        x, y, count = load(a, 0), load(b, 0), lanes(out)
        store(out, 0, function(x, y))
        store(out, count, function(x, scalar))
        store(out, 2 * count, function(scalar, y))
        store(out, 3 * count, function(x, 3))
        store(out, 4 * count, function(2.5, y))

    return apply


@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul, operator.truediv])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_take_vectors_and_numbers(dtype, function):
    apply = make_operator(function)
    a, b = vectors(dtype, seed=1), vectors(dtype, seed=2)
    for scalar in (np.dtype(dtype).type(0.3), 0.3, 7):
        out = np.zeros(5 * len(a), dtype)
        apply(out, a, b, scalar)
        same = np.dtype(dtype).type(scalar)
        pairs = [(a, b), (a, same), (same, b), (a, out.dtype.type(3)), (out.dtype.type(2.5), b)]
        expected = np.concatenate([function(x, y) for x, y in pairs])
        assert expected.dtype == dtype
        # A division may be a product with the reciprocal.
        rtol = 2 * np.finfo(dtype).eps if function is operator.truediv else 0
        np.testing.assert_allclose(out, expected, rtol=rtol, atol=0)


@jit
def compare(out, a, b, c):
    x, y, z, count = load(a, 0), load(b, 0), load(c, 0), lanes(out)
    store(out, 0, maximum(x, y))
    store(out, count, relu(x))
    store(out, 2 * count, clamp(x, y, z))
    store(out, 3 * count, where_positive(x, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_and_nan(dtype):
    nan, inf = np.nan, np.inf
    # x, low, high: maximum(x, low), relu(x), clamp(x, low, high), where_positive(x, low)
    cases = {
        (1.0, 2.0, 3.0): (2.0, 1.0, 2.0, 2.0),
        (5.0, 2.0, 3.0): (5.0, 5.0, 3.0, 2.0),
        (-5.0, -2.0, 3.0): (-2.0, 0.0, -2.0, 0.0),
        (2.5, 2.0, 3.0): (2.5, 2.5, 2.5, 2.0),
        (0.0, 4.0, 5.0): (4.0, 0.0, 4.0, 0.0),
        (2.0, 2.0, 2.0): (2.0, 2.0, 2.0, 2.0),
        (inf, 2.0, 3.0): (inf, inf, 3.0, 2.0),
        (-inf, 2.0, 3.0): (2.0, 0.0, 2.0, 0.0),
        (nan, 2.0, 3.0): (nan, nan, nan, 0.0),
        (1.0, nan, 3.0): (1.0, 1.0, 1.0, nan),
        (-1.0, nan, 3.0): (-1.0, 0.0, -1.0, 0.0),
    }
    count = lane_count(dtype)
    rows = list(cases)
    # Every case in every lane.
    for shift in range(len(rows)):
        chosen = [rows[(lane + shift) % len(rows)] for lane in range(count)]
        a, b, c = np.array(chosen, dtype).T.copy()
        out = np.zeros(4 * count, dtype)
        compare(out, a, b, c)
        expected = np.array([cases[case] for case in chosen], dtype).T
        np.testing.assert_array_equal(out.reshape(4, count), expected)


@jit
def keep(out, a, count, other):
    store(out, 0, keep_first(load(a, 0), count, other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_first(dtype):
    a = vectors(dtype)
    a[0] = np.nan
    for count in range(2 * len(a) + 1):
        out = np.zeros_like(a)
        keep(out, a, count, -np.inf)
        np.testing.assert_array_equal(out, [*a[:count], *[-np.inf] * (len(a) - count)])


@jit
def round_and_root(out, a):
    store(out, 0, floor(load(a, 0)))
    store(out, lanes(out), sqrt(load(a, 0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_floor_and_sqrt(dtype):
    for a in (10 * vectors(dtype), cycle(dtype, 4, -0.5, 0, np.inf), cycle(dtype, np.nan, 1e-30)):
        out = np.zeros(2 * len(a), dtype)
        round_and_root(out, a)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(out, [*np.floor(a), *np.sqrt(a)])


@jit
def reduced(a):
    return sum_lanes(load(a, 0)), max_lanes(load(a, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_and_max_of_lanes(dtype):
    count = lane_count(dtype)
    for lane in range(count):
        # Powers of two: every lane has a bit of its own in the sum.
        a = np.roll(2.0 ** np.arange(count), lane).astype(dtype)
        assert reduced(a) == (2**count - 1, 2 ** (count - 1))
        assert reduced(-a) == (1 - 2**count, -1)
    a = cycle(dtype, -np.inf)
    assert reduced(a) == (-np.inf, -np.inf)
    a[-1] = -3
    assert reduced(a) == (-np.inf, -3)


def make_tile_copy(rows, columns):
    @jit
    def copy(source, index, first, limit, stride, target, count):
        tile = tile_zeros(source, rows, columns)
        tile = tile_load(tile, source, index, row_offsets(first, limit, stride, rows))
        unlimited = row_offsets(0, rows, columns * lanes(target), rows)
        tile_store(target, 0, unlimited, tile, count)

    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 1), (6, 2), (3, 3)])
def test_tile_rows_stop_at_the_limit(dtype, rows, columns):
    copy = make_tile_copy(rows, columns)
    width = columns * lane_count(dtype)
    stride, height, index = width + 5, 8, 3
    source = vectors(dtype, height * (columns + 6))
    for first in range(height):
        for limit in range(first + 1, height + 1):
            for count in range(1, rows + 3):
                target = np.full((rows, width), -7, dtype)
                expected = target.copy()
                for r in range(min(count, rows)):
                    start = index + min(first + r, limit - 1) * stride
                    expected[r] = source[start : start + width]
                copy(source, index, first, limit, stride, target.reshape(-1), count)
                np.testing.assert_array_equal(target, expected)


def make_tile_product(rows, columns):
    @jit
    def product(a, a0, a_row, a_step, b, b0, b_row, depth, out, out0, limit):
        a_offsets = row_offsets(0, limit, a_row, rows)
        out_offsets = row_offsets(0, limit, columns * lanes(out), rows)
        tile = tile_zeros(out, rows, columns)
        for k in range(depth):
            tile = tile_fma(tile, a, a0 + k * a_step, a_offsets, b, b0 + k * b_row)
        tile_store(out, out0, out_offsets, tile, limit)

    return product


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 2), (4, 3)])
def test_tile_fma_is_a_matrix_product(dtype, rows, columns):
    product = make_tile_product(rows, columns)
    width, depth, guard = columns * lane_count(dtype), 5, 3
    rng = np.random.default_rng(0)
    # Whole numbers: exact in every order.
    b = rng.integers(-9, 10, (depth, width)).astype(dtype)
    for limit in range(1, rows + 1):
        a = rng.integers(-9, 10, (limit, depth)).astype(dtype)
        expected = np.full(guard + rows * width + guard, -7, dtype)
        expected[guard : guard + limit * width] = (a @ b).reshape(-1)
        for flat, a_row, a_step in ((a, depth, 1), (a.T.copy(), 1, limit)):
            out = np.full_like(expected, -7)
            shifted = np.concatenate([[np.nan], flat.reshape(-1)]).astype(dtype)
            product(
                shifted, 1, a_row, a_step, b.reshape(-1), 0, width, depth, out, guard, limit
            )  # fmt: skip
            np.testing.assert_array_equal(out, expected)


@jit
def transpose(out, a, keep):
    count = lanes(a)
    rows = row_offsets(0, count, count, count)
    tile = tile_transpose(tile_load(tile_zeros(a, count, 1), a, 0, rows))
    tile_store(out, 0, rows, tile_keep_first(tile, keep), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_transpose_and_keep_first(dtype):
    count = lane_count(dtype)
    a = vectors(dtype, count)
    a[-1] = np.nan
    for keep in range(2 * count):
        out = np.full_like(a, -7)
        transpose(out, a, keep)
        expected = a.reshape(count, count).T.copy()
        expected[:, keep:] = 0
        np.testing.assert_array_equal(out.reshape(count, count), expected)


@jit
def grow(a, rows, factor):
    offsets = row_offsets(0, rows, 2 * lanes(a), 3)
    tile = tile_load(tile_zeros(a, 3, 2), a, 0, offsets)
    return tile_total(tile_grow(tile, splat(a, factor)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_grow_and_total(dtype):
    # Exact in any order.
    a = np.exp2(np.arange(6 * lane_count(dtype)) % 20).astype(dtype)
    assert grow(a, 3, 0.5) == (a * 0.5 + 0.5).sum()


@jit
def add_first(source, target, stride, count, columns):
    """target += source in the first `columns` columns of the first `count` rows."""
    empty = tile_zeros(source, 3, 1)
    rows = row_offsets(0, count, stride, 3)
    tile = tile_add(tile_load(empty, source, 0, rows), tile_load(empty, target, 0, rows))
    tile_store_first(target, 0, rows, tile, count, columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_store_first_leaves_the_rest_alone(dtype):
    lane = lane_count(dtype)
    source = np.arange(1, 3 * (lane + 1) + 1, dtype=dtype).reshape(3, lane + 1)
    for count in (1, 2, 3):
        for columns in range(1, lane + 3):
            target = np.full((3, lane + 1), 100, dtype)
            add_first(source.reshape(-1), target.reshape(-1), lane + 1, count, columns)
            expected = np.full((3, lane + 1), 100, dtype)
            written = min(columns, lane)
            expected[:count, :written] += source[:count, :written]
            np.testing.assert_array_equal(target, expected)


@jit
def gather_groups(source, first, limit, width, per_row, stride, target):
    offsets = group_offsets(first, limit, width, per_row, stride, 5)
    tile = tile_load(tile_zeros(source, 5, 1), source, 0, offsets)
    tile_store(target, 0, row_offsets(0, 5, lanes(source), 5), tile, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_offsets_go_row_by_row_and_stop_at_the_limit(dtype):
    lane = lane_count(dtype)
    source = np.arange(200, dtype=dtype)
    for width, per_row, stride in [(3, 2, 8), (1, 1, 4), (2, 5, 11)]:
        for first in range(6):
            for limit in range(first + 1, 10):
                target = np.zeros((5, lane), dtype)
                gather_groups(source, first, limit, width, per_row, stride, target.reshape(-1))
                groups = [min(first + r, limit - 1) for r in range(5)]
                starts = [g // per_row * stride + g % per_row * width for g in groups]
                np.testing.assert_array_equal(target[:, 0], starts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_peak_counts_what_it_computes(dtype):
    array = np.full(1, 0.5, dtype)
    elements = simd.TILE_ROWS * simd.TILE_COLUMNS * lane_count(dtype)
    assert multiply_add(array, 3) == 2 * 3 * elements
    # 0 -> 1/2 -> 3/4 -> 7/8 in every element.
    assert array[0] == elements * 0.875
