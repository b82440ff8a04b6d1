"""Vectors that are put together from lists of indices, parts of vectors, and sums of rows."""

import numpy as np
import pytest

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import (
    VECTOR_BYTES,
    absolute,
    add_listed,
    fma,
    four,
    lanes,
    load,
    load_lanes,
    load_listed,
    row_offsets,
    smallest,
    store,
    store_part,
    tile_fma_lanes,
    tile_fma_rows,
    tile_load,
    tile_row_sums,
    tile_store,
    tile_zeros,
    totals,
    where_nonzero,
    within,
)

DTYPES = ["float32", "float64"]


def lane_count(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def numbers(dtype, count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(dtype)


@jit
def store_some(array, index, source, count):
    store_part(array, index, load(source, 0), count)


@jit
def store_some_of_four(array, index, source, count):
    store_part(array, index, load_lanes(source, 0, 4), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_part_writes_no_more_than_asked_for(dtype):
    for kernel, width in ((store_some, lane_count(dtype)), (store_some_of_four, 4)):
        source = numbers(dtype, max(4, lane_count(dtype)))
        for count in range(1, width + 3):
            array = np.full(width + 8, -7, dtype)
            expected = array.copy()
            expected[3 : 3 + min(count, width)] = source[: min(count, width)]
            kernel(array, 3, source, count)
            np.testing.assert_array_equal(array, expected)


@jit
def listed_plus_total(out, array, integers, at):
    x = load_listed(array, integers, at, 4)
    add_listed(out, integers, at, x + totals(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lists_and_totals(dtype):
    array, out = numbers(dtype, 20), numbers(dtype, 20, seed=1)
    # An index that comes twice gets both.
    integers = np.array([5, 17, 3, 17, 0, 9], np.int64)
    for at in (0, 2):
        listed = integers[at : at + 4]
        expected = out.astype(float)
        np.add.at(expected, listed, array[listed] + float(array[listed].sum()))
        listed_plus_total(out, array, integers, at)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@jit
def all_within(x, limit):
    return within(load(x, 0), x.dtype.type(limit))


@pytest.mark.parametrize("dtype", DTYPES)
def test_within(dtype):
    count = lane_count(dtype)
    x = np.resize(np.array([0.0, -2.9, 2.9], dtype), count)
    assert all_within(x, 3.0)
    for lane in range(count):
        for number in (3.0, -3.0, 5.0, -np.inf, np.nan):
            beyond = x.copy()
            beyond[lane] = number
            assert not all_within(beyond, 3.0)


@jit
def select_and_size(selected, sizes, condition, value):
    store(selected, 0, where_nonzero(load(condition, 0), load(value, 0)))
    store(sizes, 0, absolute(load(value, 0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nonzero_and_absolute(dtype):
    count = lane_count(dtype)
    condition = np.resize(np.array([0.0, 1e-40, np.nan, -0.0, -3.0], dtype), count)
    value = np.resize(np.array([np.inf, -2.0, -0.0, np.nan, 5.0, 3.0, -np.inf], dtype), count)
    selected, sizes = np.empty(count, dtype), np.empty(count, dtype)
    select_and_size(selected, sizes, condition, value)
    np.testing.assert_array_equal(selected, np.where(condition != 0, value, 0))
    np.testing.assert_array_equal(sizes, np.abs(value))


@jit
def smallest_of(array):
    return smallest(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_smallest(dtype):
    assert smallest_of(np.zeros(1, dtype)) == np.finfo(dtype).smallest_subnormal


@jit
def row_sums(out, a, starts, at, column, x, condition):
    tile = tile_fma_rows(
        tile_zeros(a, lanes(a), 1), a, starts, at, column, load(x, 0), load(condition, 0)
    )
    store(out, 0, tile_row_sums(tile))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_listed_rows(dtype):
    count = lane_count(dtype)
    rng = np.random.default_rng(2)
    a, x = numbers(dtype, 20 * count), numbers(dtype, count, seed=1)
    starts = rng.integers(0, 18 * count, count + 3)
    condition = (rng.random(count) < 0.7).astype(dtype)
    out = np.empty(count, dtype)
    for at, column in ((0, 0), (3, 5)):
        rows = a[starts[at : at + count, None] + column + np.arange(count)].astype(float)
        row_sums(out, a, starts, at, column, x, condition)
        expected = (rows * condition) @ x.astype(float)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def make_sums_of_products(rows):
    @jit
    def sums_of_products(a, b, start, factors, out, sums):
        places = row_offsets(0, rows, lanes(a), rows)
        nothing = tile_zeros(a, rows, 1)
        left, right = tile_load(nothing, a, 0, places), tile_load(nothing, b, 0, places)
        before = tile_load(nothing, start, 0, places)
        store(sums, 0, tile_row_sums(fma(left, right, before)))
        tile_store(out, 0, places, tile_fma_lanes(before, left, load(factors, 0)), rows)

    return sums_of_products


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_tile_have_their_own_sums_and_factors(dtype):
    count = lane_count(dtype)
    rng = np.random.default_rng(3)
    for rows in (1, 2, 4, 8, 16):
        if rows > count:
            continue
        a, b, start, out = (rng.integers(-9, 10, (rows, count)).astype(dtype) for _ in range(4))
        factors, sums = rng.integers(-9, 10, count).astype(dtype), np.empty(count, dtype)
        flat = [array.reshape(-1) for array in (a, b, start)]
        make_sums_of_products(rows)(*flat, factors, out.reshape(-1), sums)
        # As many lanes as there are rows, again and again.
        expected = (start + a * b).sum(1)
        np.testing.assert_array_equal(sums, np.resize(expected, count))
        np.testing.assert_array_equal(out, start + a * factors[:rows, None])


@jit
def four_lanes(array):
    return four(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_four_lanes_or_all(dtype):
    assert four_lanes(np.zeros(1, dtype)) == min(4, lane_count(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_that_are_left_out_may_hold_anything(dtype):
    count = lane_count(dtype)
    a = np.ones(2 * count, dtype)
    a[1::count] = np.nan
    x, condition = np.ones(count, dtype), np.ones(count, dtype)
    condition[1] = 0
    out = np.empty(count, dtype)
    row_sums(out, a, np.zeros(count, np.int64), 0, 0, x, condition)
    np.testing.assert_array_equal(out, np.full(count, count - 1, dtype))
