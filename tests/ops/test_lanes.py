"""Problems as lanes: their way in and out of rows, and the product of their matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.ops.product.lane_batching import (
    LANE_COLUMNS,
    LANE_ROWS,
    Heads,
    LaneMatrix,
    Part,
    copy_lane,
    lane_place,
    lane_product,
    lane_row_product,
    make_moves,
)
from tapegpt.kernels.ops.product.matrix import Shape
from tapegpt.kernels.simd import VECTOR_BYTES

DTYPES = ["float32", "float64"]
HEAD_DIMS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 25, 32]
SIZES = [1, 2, 4, 8, 16]
MOVES = {size: make_moves(size) for size in SIZES}
UNTOUCHED = -12345


def lane_count(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def vectors(rng, *shape):
    """Whole numbers, so small that every sum of products is exact in any order."""
    return rng.integers(-9, 10, shape)


def scattered(matrix, dtype, start, row, column):
    """A flat array with the vectors of a matrix so many elements apart, NaN between them."""
    rows, columns, lanes = matrix.shape
    flat = np.full(start + rows * row + columns * column + lanes, np.nan, dtype)
    for i, j in np.ndindex(rows, columns):
        at = start + i * row + j * column
        flat[at : at + lanes] = matrix[i, j]
    return flat


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize(
    ("product", "tile_rows"), [(lane_product, LANE_ROWS), (lane_row_product, 1)]
)
@given(
    tiles=st.integers(1, 3),
    columns=st.integers(1, 3).map(lambda n: n * LANE_COLUMNS),
    depth=st.integers(0, 9),
    starts=st.tuples(*[st.integers(0, 5)] * 3),
    gaps=st.tuples(*[st.integers(0, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_lane_product_is_a_product_in_every_lane(
    dtype, a_transposed, b_transposed, product, tile_rows, tiles, columns, depth, starts, gaps, seed
):
    rng, lanes, rows = np.random.default_rng(seed), lane_count(dtype), tiles * tile_rows
    a, b = vectors(rng, rows, depth, lanes), vectors(rng, depth, columns, lanes)
    (a0, b0, out0), (a_gap, b_gap, out_gap) = starts, gaps

    def strides(transposed, height, width, gap):
        long = (height if transposed else width) * lanes + gap
        return (lanes, long) if transposed else (long, lanes)

    a_row, a_step = strides(a_transposed, rows, depth, a_gap)
    b_step, b_column = strides(b_transposed, depth, columns, b_gap)
    out_row = columns * lanes + out_gap
    out = np.full(out0 + rows * out_row + 5, UNTOUCHED, dtype)
    product(
        LaneMatrix(scattered(a, dtype, a0, a_row, a_step), a0, a_row, a_step),
        LaneMatrix(scattered(b, dtype, b0, b_step, b_column), b0, b_step, b_column),
        LaneMatrix(out, out0, out_row, lanes),
        Shape(rows, depth, columns),
    )

    written = out[out0 : out0 + rows * out_row].reshape(rows, out_row)[:, : columns * lanes]
    result = written.reshape(rows, columns, lanes)
    np.testing.assert_array_equal(result, np.einsum("ikl,kjl->ijl", a, b))
    written[:] = UNTOUCHED
    assert (out == UNTOUCHED).all()


def lane_order(lanes, size):
    """The lane of the n-th of a group of problems, see tile_keep_pieces."""
    every = lanes // size
    return [n % every * size + n // every for n in range(lanes)]


def whole_tiles(count):
    return -(-count // LANE_COLUMNS) * LANE_COLUMNS


class Layout:
    """Heads of a packed batch, and where they lie in rows and in vectors."""

    def __init__(self, dtype, size, whole, head_dim, n_head, lengths, guards):
        self.lanes = lanes = lane_count(dtype)
        self.head_dim = head_dim
        row_guard, stride_guard, self.first, self.out = guards
        width = n_head * head_dim
        # Vectors of a row are whole only where rows are.
        self.row = width + (row_guard * lanes if whole else row_guard)
        self.columns = whole_tiles(head_dim)
        self.stride = self.columns * lanes + stride_guard
        self.block = max(lengths)
        lengths = np.sort(lengths)[::-1]
        self.alive = [int((lengths > p).sum()) for p in range(self.block)]
        self.starts = np.cumsum([0, *self.alive])
        self.offsets = np.add.outer(
            np.arange(len(lengths)) * self.row, np.arange(n_head) * head_dim
        ).ravel()
        self.problems = [count * n_head for count in self.alive]
        # Slot and table do not begin at 0, nor do rows and vectors in their arrays.
        slot, table = 2, 3
        inputs = np.concatenate([np.full(slot, 99), self.starts])
        offsets = np.concatenate([np.full(table, 9999), self.offsets])
        self.heads = Heads(
            inputs, slot, offsets, table, n_head, head_dim, self.row, self.stride, int(whole)
        )
        self.order = lane_order(lanes, size)

    def rows_length(self):
        # Pieces may look a vector beyond the last row.
        return self.first + self.starts[-1] * self.row + self.lanes

    def vectors_length(self):
        return self.out + whole_tiles(self.block) * self.stride

    def groups(self):
        """(first problem, one past the last position that it goes on to) of every group."""
        for problem in range(0, self.problems[0], self.lanes):
            yield problem, sum(count > problem for count in self.problems)

    def elements(self, problem, p):
        """Where the columns of a group's problems at one position lie in rows, (problems, columns).

        Fewer than a vector has lanes where documents have ended.
        """
        begin = self.first + self.starts[p] * self.row
        group = self.offsets[problem : min(problem + self.lanes, self.problems[p])]
        return np.add.outer(begin + group, np.arange(self.head_dim))


@st.composite
def layouts(draw, dtype, size):
    lanes = lane_count(dtype)
    whole = draw(st.booleans())
    if whole:
        head_dim = size * draw(st.integers(1, 2 if size == lanes else 1))
        n_head = lanes // size * draw(st.integers(1, 3))
    else:
        head_dim, n_head = draw(st.sampled_from(HEAD_DIMS)), draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=7))
    guards = draw(st.tuples(*[st.integers(0, 3)] * 4))
    return Layout(dtype, size, whole, head_dim, n_head, lengths, guards)


every_size = pytest.mark.parametrize(
    ("dtype", "size"),
    [(dtype, size) for dtype in DTYPES for size in SIZES if size <= lane_count(dtype)],
)


@every_size
@given(data=st.data(), in_tiles=st.booleans(), seed=st.integers(0, 99))
def test_rows_become_lanes(dtype, size, data, in_tiles, seed):
    layout = data.draw(layouts(dtype, size))
    rows_to_lanes, _ = MOVES[size]
    rng = np.random.default_rng(seed)
    length, apart = layout.rows_length(), layout.vectors_length() + 5
    rows = rng.normal(size=2 * length).astype(dtype)
    xs, outs = (layout.first, length + layout.first), (layout.out, apart + layout.out)
    for problem, end in layout.groups():
        begin = data.draw(st.integers(0, end - 1))
        found = np.full(2 * apart, UNTOUCHED, dtype)
        expected = found.copy()
        for i, out in enumerate(outs):
            for p in range(begin, whole_tiles(end) if in_tiles else end):
                matrix = np.zeros((layout.columns, layout.lanes), dtype)
                if p < end:
                    elements = i * length + layout.elements(problem, p)
                    matrix[: layout.head_dim, layout.order[: len(elements)]] = rows[elements].T
                target = out + p * layout.stride
                expected[target : target + matrix.size] = matrix.ravel()
        part = Part(problem, begin, end, in_tiles)
        rows_to_lanes(rows, xs, layout.heads, part, found, outs)
        np.testing.assert_array_equal(found, expected)


@every_size
@given(data=st.data(), fresh=st.integers(0, 3), seed=st.integers(0, 99))
def test_lanes_become_rows_again(dtype, size, data, fresh, seed):
    layout = data.draw(layouts(dtype, size))
    rows_to_lanes, lanes_to_rows = MOVES[size]
    rng = np.random.default_rng(seed)
    length, apart = layout.rows_length(), layout.vectors_length()
    rows = rng.normal(size=2 * length).astype(dtype)
    found = np.where(rng.random(rows.shape) < 0.5, 0, rng.normal(size=rows.shape)).astype(dtype)
    expected = found.copy()
    xs, outs = (layout.first, length + layout.first), (layout.out, apart + layout.out)
    for problem, end in layout.groups():
        begin = data.draw(st.integers(0, end - 1))
        between = np.full(2 * apart, np.nan, dtype)
        part = Part(problem, begin, end, True)
        rows_to_lanes(rows, xs, layout.heads, part, between, outs)
        for i, out in enumerate(outs):
            for p in range(begin, end):
                elements = i * length + layout.elements(problem, p)
                before = 0 if fresh >> i & 1 else found[elements]
                expected[elements] = before + rows[elements]
                # What lies in lanes without a problem goes nowhere.
                matrix = between[out + p * layout.stride :][: layout.head_dim * layout.lanes]
                matrix.reshape(layout.head_dim, -1)[:, layout.order[len(elements) :]] = np.nan
        lanes_to_rows(between, outs, layout.heads, part, found, xs, fresh)
    np.testing.assert_array_equal(found, expected)


@jit
def copy_problem(vectors, start, problem, other, power, group, span):
    """Let `other` be what `problem` is."""
    x = start + lane_place(vectors, problem, power, group)
    copy_lane(vectors, x, start + lane_place(vectors, other, power, group), span)


@every_size
def test_a_lane_is_copied_to_another(dtype, size):
    lanes, start, positions, groups = lane_count(dtype), 3, 2, 3
    rng = np.random.default_rng(0)
    lane_of = [group * lanes + lane for group in range(groups) for lane in lane_order(lanes, size)]
    for problem, other in rng.integers(0, groups * lanes, (50, 2)):
        # One group after the other has room for a position more than is copied.
        vectors = rng.normal(size=(groups, positions + 1, lanes)).astype(dtype)
        flat = np.concatenate([np.zeros(start, dtype), vectors.ravel()])
        group, power = vectors[0].size, size.bit_length() - 1
        copy_problem(flat, start, problem, other, power, group, positions * lanes)
        (i, lane), (j, to) = divmod(lane_of[problem], lanes), divmod(lane_of[other], lanes)
        vectors[j, :positions, to] = vectors[i, :positions, lane]
        np.testing.assert_array_equal(flat[start:], vectors.ravel())
