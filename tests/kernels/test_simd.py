"""Vectors and tiles, through small kernels: they cannot be seen from Python themselves."""

import operator
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core import config

from tapegpt.kernels.compile import cpu
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import padded, row_stride
from tapegpt.kernels.peak import multiply_add
from tapegpt.kernels.simd import (
    LANE_TILE,
    PAIR_TILE,
    SINGLE_TILE,
    VECTOR_BYTES,
    WIDE_TILE,
    advance,
    clamp,
    clear_tiny,
    count_at_most,
    fma,
    inverse_root,
    keep_chosen,
    keep_first,
    lanes,
    listed_offsets,
    load,
    load_first,
    max_lanes,
    maximum,
    quick_root,
    relu,
    row_offsets,
    row_pointers,
    running_sums,
    splat,
    square_fma,
    store,
    sum_lanes,
    tail_pointers,
    tile_fma,
    tile_keep_pieces,
    tile_load,
    tile_load_first,
    tile_outer,
    tile_store,
    tile_store_pieces,
    tile_transpose,
    tile_zeros,
    tiny,
    where_positive,
    zeros,
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
    assert cpu.host_vector_bytes() == FEATURES[features]


def test_vectors_are_narrow_where_numba_has_avx_switched_off(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    monkeypatch.setattr(config, "ENABLE_AVX", 0)
    monkeypatch.setattr(cpu, "sve_bytes", lambda: 0)
    assert cpu.host_vector_bytes() == 16


@pytest.mark.parametrize(
    ("registers", "vector"), [(0, 16), (16, 16), (32, 32), (64, 64), (128, 16), (256, 16)]
)
def test_vectors_are_as_wide_as_those_of_sve_if_kernels_can_be(monkeypatch, registers, vector):
    monkeypatch.setattr(config, "CPU_FEATURES", "+neon,+sve,+sve2")
    monkeypatch.setattr(cpu, "sve_bytes", lambda: registers)
    assert cpu.host_vector_bytes() == vector


@pytest.mark.parametrize(
    "features", ["+avx512f,+amx-tile,+amx-bf16", "+avx512f,+amx-tile", "+neon"]
)
@pytest.mark.parametrize("answer", [0, -1])
def test_the_matrix_unit_is_used_where_it_is_allowed(monkeypatch, features, answer):
    asked = []

    def library(name):
        return SimpleNamespace(syscall=lambda *request: asked.append(request) or answer)

    monkeypatch.setattr(config, "CPU_FEATURES", features)
    monkeypatch.setattr(cpu.ctypes, "CDLL", library)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    has_it = "amx-bf16" in features
    assert cpu.has_matrix_unit() == (has_it and answer == 0)
    assert asked == ([(158, 0x1023, 18)] if has_it else [])
    monkeypatch.setattr(cpu.sys, "platform", "win32")
    assert not cpu.has_matrix_unit()


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
        if whole * array.itemsize >= 512:
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
def load_some(out, a, index, count):
    store(out, 0, load_first(a, index, count))


@jit
def load_some_of_rows(out, a, index, stride, count):
    rows = row_offsets(0, 3, stride, 4)
    tile = tile_load_first(tile_zeros(a, 4, 1), a, index, rows, count)
    tile_store(out, 0, row_offsets(0, 4, lanes(a), 4), tile, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_first_reads_no_further(dtype):
    size = lane_count(dtype)
    a = np.full(3 * size, np.nan, dtype)
    for count in range(-1, size + 2):
        kept = min(max(count, 0), size)
        a[1 : 1 + kept] = np.arange(1, 1 + kept)
        expected = [*range(1, 1 + kept), *[0] * (size - kept)]
        out = np.full(4 * size, -1, dtype)
        load_some(out, a, 1, count)
        np.testing.assert_array_equal(out[:size], expected)
        load_some_of_rows(out, a, 1, 0, count)
        np.testing.assert_array_equal(out, 4 * expected)
        # The fourth row is the third once more.
        rows = np.arange(3 * size, dtype=dtype)
        load_some_of_rows(out, rows, 0, size, count)
        expected = np.where(np.arange(size) < count, rows.reshape(3, size), 0)
        np.testing.assert_array_equal(out.reshape(4, size), expected[[0, 1, 2, 2]])


@jit
def clear(out, a):
    store(out, 0, clear_tiny(load(a, 0)))
    store(out, lanes(out), tiny(out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_numbers_are_cleared(dtype):
    info = np.finfo(dtype)
    limit = {"float32": 1e-30, "float64": 1e-290}[dtype]
    sizes = [0, info.smallest_subnormal, info.tiny, 0.99 * limit, 1.01 * limit, info.max, np.inf]
    for number in [*sizes, *np.negative(sizes), np.nan]:
        out = np.zeros(2 * lane_count(dtype), dtype)
        clear(out, cycle(dtype, number, 1))
        expected = cycle(dtype, 0 if abs(number) < limit else number, 1)
        np.testing.assert_array_equal(out, [*expected, *cycle(dtype, limit)])


@jit
def root(out, a):
    for i in range(0, len(a), lanes(a)):
        store(out, i, quick_root(load(a, i)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_root(dtype):
    lane = lane_count(dtype)
    a = (10 ** np.random.default_rng(0).uniform(-22, 38, 100_000 * lane)).astype(dtype)
    out = np.zeros_like(a)
    root(out, a)
    # SSE and AVX refine an estimate of 12 bits: within 2.6 units of the root.
    rtol = 3 * np.finfo(dtype).eps if dtype == "float32" else 0
    np.testing.assert_allclose(out, np.sqrt(a.astype(np.float64)), rtol=rtol)
    for number in (0, 1, 4, np.nan, -1):
        a, out = cycle(dtype, number, 9), np.zeros(lane, dtype)
        root(out, a)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(out, np.sqrt(a), rtol=rtol)


@jit
def inverse(out, a):
    for i in range(0, len(a), lanes(a)):
        store(out, i, inverse_root(load(a, i)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_root(dtype):
    lane = lane_count(dtype)
    a = (10 ** np.random.default_rng(0).uniform(-30, 38, 100_000 * lane)).astype(dtype)
    out = np.zeros_like(a)
    inverse(out, a)
    # As exact as quick_root; in float64 two roundings.
    rtol = 3 * np.finfo(dtype).eps if dtype == "float32" else np.finfo(dtype).eps
    np.testing.assert_allclose(out, 1 / np.sqrt(a.astype(np.float64)), rtol=rtol)
    for number in (np.nan, -1):
        inverse(out, cycle(dtype, number))
        assert np.isnan(out[:lane]).all()


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


@jit
def accumulate(out, a, limit):
    store(out, 0, running_sums(load(a, 0)))
    return count_at_most(load(a, 0), limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_sums_and_counts(dtype):
    count = lane_count(dtype)
    a = np.random.default_rng(0).integers(-9, 10, count).astype(dtype)
    out = np.zeros_like(a)
    for limit in range(-10, 11):
        assert accumulate(out, a, limit) == (a <= limit).sum()
        np.testing.assert_array_equal(out, np.cumsum(a))
    a[count // 2] = np.nan
    assert accumulate(out, a, np.inf) == count - 1
    np.testing.assert_array_equal(out, np.cumsum(a))


@jit
def choose(out, a, bits):
    store(out, 0, keep_chosen(load(a, 0), bits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_chosen_by_bits(dtype):
    count = lane_count(dtype)
    a, out = np.arange(1, count + 1).astype(dtype), np.zeros(count, dtype)
    a[0] = np.nan  # where it is left out it is gone
    for bits in (0, 2, 2**count - 2, 2**63 - 2, 0x5554):
        choose(out, a, bits)
        np.testing.assert_array_equal(out, [x if bits >> i & 1 else 0 for i, x in enumerate(a)])


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
        out_offsets = row_offsets(0, limit, columns * lanes(out), rows)
        tile = tile_zeros(out, rows, columns)
        if limit == rows:
            left = row_pointers(a, a0, a_row, rows)
            for k in range(depth):
                tile = tile_fma(tile, left, b, b0 + k * b_row)
                left = advance(left, a_step)
        else:
            some = tail_pointers(a, a0, row_offsets(0, limit, a_row, rows))
            for k in range(depth):
                tile = tile_fma(tile, some, b, b0 + k * b_row)
                some = advance(some, a_step)
        tile_store(out, out0, out_offsets, tile, limit)

    return product


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns"), sorted({(1, 1), (4, 3), WIDE_TILE, PAIR_TILE, SINGLE_TILE})
)
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


LANE_ROWS, LANE_COLUMNS = LANE_TILE


@jit
def outer(a, a0, a_row, a_step, b, b0, b_column, b_step, rounds, out):
    left, right = row_pointers(a, a0, a_row, LANE_ROWS), row_pointers(b, b0, b_column, LANE_COLUMNS)
    tile = tile_zeros(out, LANE_ROWS, LANE_COLUMNS)
    for _ in range(rounds):
        tile = tile_outer(tile, left, right)
        left, right = advance(left, a_step), advance(right, b_step)
    offsets = row_offsets(0, LANE_ROWS, LANE_COLUMNS * lanes(out), LANE_ROWS)
    tile_store(out, 0, offsets, tile, LANE_ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_outer_multiplies_every_vector_with_every_other(dtype):
    lane, rounds = lane_count(dtype), 2
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 10, 99 * lane).astype(dtype) for _ in range(2))
    a0, b0, a_row, b_column, a_step, b_step = 1, 2, 2 * lane + 1, lane + 3, 5, lane
    out = np.zeros((LANE_ROWS, LANE_COLUMNS, lane), dtype)
    outer(a, a0, a_row, a_step, b, b0, b_column, b_step, rounds, out.reshape(-1))
    for r, c in np.ndindex(LANE_ROWS, LANE_COLUMNS):
        expected = np.zeros(lane, dtype)
        for k in range(rounds):
            i, j = a0 + r * a_row + k * a_step, b0 + c * b_column + k * b_step
            expected += a[i : i + lane] * b[j : j + lane]
        np.testing.assert_array_equal(out[r, c], expected)


@jit
def squared(a, a0, a_row, b, start, out):
    tile = tile_load(tile_zeros(a, 5, 1), start, 0, row_offsets(0, 5, lanes(a), 5))
    square = tile_load(
        tile_zeros(b, lanes(b), 1), b, 0, row_offsets(0, lanes(b), lanes(b), lanes(b))
    )
    tile = square_fma(tile, row_pointers(a, a0, a_row, 5), square)
    tile_store(out, 0, row_offsets(0, 5, lanes(a), 5), tile, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_square_fma_is_a_matrix_product(dtype):
    lane = lane_count(dtype)
    rng = np.random.default_rng(0)
    a, start = (rng.integers(-9, 10, (5, lane)).astype(dtype) for _ in range(2))
    b = rng.integers(-9, 10, (lane, lane)).astype(dtype)
    flat = np.full(3 + 5 * (lane + 2), np.nan, dtype)
    flat[3:].reshape(5, -1)[:, :lane] = a
    out = np.zeros((5, lane), dtype)
    squared(flat, 3, lane + 2, b.reshape(-1), start.reshape(-1), out.reshape(-1))
    np.testing.assert_array_equal(out, start + a @ b)


@jit
def fill_with_zeros(out, count):
    for i in range(0, count * lanes(out), lanes(out)):
        store(out, i, zeros(out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_stored_without_a_call(dtype):
    out = np.ones(5 * lane_count(dtype), dtype)
    fill_with_zeros(out, 3)
    np.testing.assert_array_equal(
        out, np.repeat([0, 1], [3 * lane_count(dtype), len(out) - 3 * lane_count(dtype)])
    )
    if not config.BOUNDSCHECK:
        assert all("memset" not in text for text in fill_with_zeros.inspect_asm().values())


@jit
def gather_listed(source, listed, index, first, limit, every, target):
    offsets = listed_offsets(listed, index, first, limit, every, 5)
    tile = tile_load(tile_zeros(source, 5, 1), source, 3, offsets)
    tile_store(target, 0, row_offsets(0, 5, lanes(source), 5), tile, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_listed_offsets_stop_at_the_limit(dtype):
    lane, index = lane_count(dtype), 2
    source = np.arange(300, dtype=dtype)
    listed = np.random.default_rng(0).permutation(200)
    for every in (1, 2, 4):
        for first in range(0, 4 * every, every):
            for limit in range(first + every, 12 * every, every):
                target = np.zeros((5, lane), dtype)
                gather_listed(source, listed, index, first, limit, every, target.reshape(-1))
                numbers = [min(first + r * every, limit - every) for r in range(5)]
                starts = [3 + listed[index + i] for i in numbers]
                np.testing.assert_array_equal(target, np.add.outer(starts, np.arange(lane)))


def make_pieces(size):
    @jit
    def pieces(source, listed, keep, out, target, count, columns):
        """out: as loaded, transposed, and with `keep` pieces; target: what is stored in pieces."""
        places = listed_offsets(listed, 0, 0, lanes(source), 1, lanes(source))
        rows = row_offsets(0, size, lanes(source), size)
        tile = tile_load(tile_zeros(source, size, 1), source, 0, places)
        transposed = tile_transpose(tile)
        extent = size * lanes(source)
        tile_store(out, 0, rows, tile, size)
        tile_store(out, extent, rows, transposed, size)
        tile_store(out, 2 * extent, rows, tile_keep_pieces(transposed, keep), size)
        tile_store_pieces(target, 0, places, tile, count, columns)

    return pieces


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(dtype, size) for dtype in DTYPES for size in (1, 2, 4, 8, 16) if size <= lane_count(dtype)],
)
def test_tiles_in_pieces(dtype, size):
    """A tile of `size` rows, each in pieces of `size` elements from anywhere."""
    lane = lane_count(dtype)
    kernel = make_pieces(size)
    rng = np.random.default_rng(0)
    source = rng.permutation(lane * (size + 3)).astype(dtype)
    # Pieces do not overlap: every one has gaps around it.
    listed = rng.permutation(lane) * (size + 2) + 1
    scattered = np.add.outer(listed, np.arange(size))  # (pieces, elements of each)
    loaded = source[scattered].reshape(size, lane // size, size)  # (rows, pieces of a row, lanes)
    numbers = np.arange(lane).reshape(size, -1)
    for keep in range(1, lane + 2):
        columns = 1 + keep % (size + 2)
        out = np.zeros((3, size, lane), dtype)
        target = np.full(len(source), -7, dtype)
        kernel(source, listed, keep, out.reshape(-1), target, keep, columns)
        # Squares side by side: the row's lane within a piece becomes the row.
        transposed = loaded.transpose(2, 1, 0).reshape(size, lane)
        kept = np.where(numbers.T.reshape(lane) < keep, transposed, 0)
        np.testing.assert_array_equal(out, [loaded.reshape(size, lane), transposed, kept])
        expected = np.full_like(target, -7)
        stored = scattered[:keep, :columns]
        expected[stored] = source[stored]
        np.testing.assert_array_equal(target, expected)


@jit
def transpose(out, a, keep):
    count = lanes(a)
    rows = row_offsets(0, count, count, count)
    tile = tile_transpose(tile_load(tile_zeros(a, count, 1), a, 0, rows))
    tile_store(out, 0, rows, keep_first(tile, keep, 0), count)


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
def add_and_compare(out, a, b):
    """out: a + b, relu(a), a where b is positive."""
    rows = row_offsets(0, 3, 2 * lanes(a), 3)
    x = tile_load(tile_zeros(a, 3, 2), a, 0, rows)
    y = tile_load(tile_zeros(a, 3, 2), b, 0, rows)
    tile_store(out, 0, rows, x + y, 3)
    tile_store(out, 6 * lanes(a), rows, relu(x), 3)
    tile_store(out, 12 * lanes(a), rows, where_positive(y, x), 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_element_by_element(dtype):
    a, b = vectors(dtype, 6, seed=1), vectors(dtype, 6, seed=2)
    a[::5], b[::7], b[1::7] = np.nan, np.nan, 0
    out = np.zeros((3, len(a)), dtype)
    add_and_compare(out.reshape(-1), a, b)
    np.testing.assert_array_equal(out, [a + b, np.maximum(a, 0), np.where(b > 0, a, 0)])


@jit
def grow(a, rows, factor):
    offsets = row_offsets(0, rows, 2 * lanes(a), 3)
    tile = tile_load(tile_zeros(a, 3, 2), a, 0, offsets)
    return sum_lanes(fma(tile, splat(a, factor), splat(a, factor)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tile_with_a_vector_and_its_sum(dtype):
    # Exact in any order.
    a = np.exp2(np.arange(6 * lane_count(dtype)) % 20).astype(dtype)
    assert grow(a, 3, 0.5) == (a * 0.5 + 0.5).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_peak_counts_what_it_computes(dtype):
    array = np.full(1, 0.5, dtype)
    elements = PAIR_TILE[0] * PAIR_TILE[1] * lane_count(dtype)
    assert multiply_add(array, 3) == 2 * 3 * elements
    # 0 -> 1/2 -> 3/4 -> 7/8 in every element.
    assert array[0] == elements * 0.875
