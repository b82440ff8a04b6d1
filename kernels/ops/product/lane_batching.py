"""Many small problems side by side: a problem a lane.

Where heads are narrow and documents short, no product of attention fills a vector. So a vector
holds one number of as many problems as it has lanes, and every step is done for all of them at
once, without a sum across lanes. Vectors form matrices, the columns of a row next to each other.

Problems come out of rows, and go back, by transposing squares of `size` columns:

    one problem's row:     a0 a1 a2 a3         vector of column 0:     a0 b0 c0 d0 | e0 f0 g0 h0
    the next one's:        b0 b1 b2 b3         vector of column 1:     a1 b1 c1 d1 | e1 f1 g1 h1
    ...                    (size 4)            ...                     (8 lanes)

(In which lanes they end up is another order, the same for all; see tile_keep_pieces.)
"""

from typing import Any, NamedTuple

import numpy as np

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.simd import LANE_TILE

LANE_ROWS, LANE_COLUMNS = LANE_TILE


class LaneMatrix(NamedTuple):
    """A matrix of vectors: that of row i and column j lies at array[begin + i row + j column]."""

    array: Any
    begin: int
    row: int
    column: int


class Heads(NamedTuple):
    """Where the heads of documents lie, in rows and in vectors.

    The rows of position p begin at row inputs[starts + p]. The columns of problem i begin
    offsets[table + i] elements after them. `whole` says that vectors of a row hold nothing but
    whole squares. Position p's vectors begin p stride elements after those of the first.
    """

    inputs: Any
    starts: int
    offsets: Any
    table: int
    n_head: int
    head_dim: int
    row: int
    stride: int
    whole: int


class Part(NamedTuple):
    """One vector's lanes of problems, from `problem` on, at positions first to last - 1."""

    problem: int
    first: int
    last: int
    in_tiles: bool  # whether these positions are computed in tiles


@inlined
def problems_at(heads, p):
    """Heads of documents that go on to position p."""
    inputs, starts = heads.inputs, heads.starts
    return (inputs[starts + p + 1] - inputs[starts + p]) * heads.n_head


@inlined
def whole_tiles(count):
    """`count` rows, columns or steps, rounded up to whole tiles, as all products take them."""
    return (count + LANE_COLUMNS - 1) // LANE_COLUMNS * LANE_COLUMNS


def make_lane_product(tile_rows):
    """lane_product with tiles of `tile_rows` rows."""

    @jit
    def lane_product(a, b, out, shape):
        """out[i, j] = sum over k of a[i, k] b[k, j], in every lane.

        Rows and columns are computed up to whole tiles; columns of out lie side by side.
        """
        size = simd.lanes(out.array)
        offsets = simd.row_offsets(0, tile_rows, out.row, tile_rows)
        for i in range(0, shape.rows, tile_rows):
            for j in range(0, shape.columns, LANE_COLUMNS):
                tile = simd.tile_zeros(out.array, tile_rows, LANE_COLUMNS)
                left = simd.row_pointers(a.array, a.begin + i * a.row, a.row, tile_rows)
                right = simd.row_pointers(b.array, b.begin + j * b.column, b.column, LANE_COLUMNS)
                for _ in range(shape.depth):
                    tile = simd.tile_outer(tile, left, right)
                    left, right = simd.advance(left, a.column), simd.advance(right, b.row)
                simd.tile_store(
                    out.array, out.begin + i * out.row + j * size, offsets, tile, tile_rows
                )

    return lane_product


lane_product, lane_row_product = make_lane_product(LANE_ROWS), make_lane_product(1)


@inlined
def lane_place(array, problem, power, group):
    """Where a problem's lane begins, its columns moved in squares of 2 ** power.

    group: elements from one lanes' worth of problems to the next. See tile_keep_pieces.
    """
    i, pieces = problem % simd.lanes(array), simd.lanes(array) >> power
    return (
        problem // simd.lanes(array) * group
        + ((i & pieces - 1) << power)
        + (i << power) // simd.lanes(array)
    )


@inlined
def copy_lane(vectors, x, out, span):
    """Copy the lane that begins at x to the lane at `out`, in vectors that span `span` elements."""
    # Unsigned numbers: Numba would ask of every other index whether it is negative.
    x, out = np.uint64(x), np.uint64(out)
    for i in range(np.uint64(0), np.uint64(span), np.uint64(simd.lanes(vectors))):
        vectors[out + i] = vectors[x + i]


@inlined
def move_in(rows, begin, places, count, size, columns, vectors, out):
    """Turn `columns` columns of the `count` problems at rows[begin + places] into vectors."""
    tile = simd.tile_load(simd.tile_zeros(rows, size, 1), rows, begin, places)
    tile = simd.tile_keep_pieces(simd.tile_transpose(tile), count)
    simd.tile_store(vectors, out, simd.row_offsets(0, size, simd.lanes(rows), size), tile, columns)


@inlined
def move_out(vectors, x, columns, size, rows, begin, places, overwrite):
    """The inverse of move_in: the tile to be stored at rows[begin + places]."""
    tile = simd.tile_zeros(rows, size, 1)
    tile = simd.tile_load(tile, vectors, x, simd.row_offsets(0, columns, simd.lanes(rows), size))
    tile = simd.tile_transpose(tile)
    if not overwrite:
        tile = tile + simd.tile_load(tile, rows, begin, places)
    return tile


def make_moves(size):
    """rows_to_lanes and lanes_to_rows for squares of `size` columns.

    Both move a part of the heads. xs and outs are arrays that move alike. Columns that only whole
    tiles have become 0, and positions where they are computed in tiles.
    """

    @jit
    def rows_to_lanes(rows, xs, heads, part, vectors, outs):
        problem, first, last, in_tiles = part
        inputs, starts, offsets, table, _, head_dim, row, stride, whole = heads
        every, end, zero = simd.lanes(rows) // size, whole_tiles(head_dim), simd.zeros(vectors)
        for p in range(first, last):
            limit = problems_at(heads, p)
            count = limit - problem
            begin, target = inputs[starts + p] * row, p * stride
            if whole:
                places = simd.listed_offsets(offsets, table, problem, limit, every, size)
                for j in range(len(xs)):
                    for c in range(0, head_dim, size):
                        at = outs[j] + target + c * simd.lanes(rows)
                        move_in(rows, xs[j] + begin + c, places, count, size, size, vectors, at)
            else:
                places = simd.listed_offsets(offsets, table, problem, limit, 1, simd.lanes(rows))
                for j in range(len(xs)):
                    for c in range(0, head_dim, size):
                        at = outs[j] + target + c * simd.lanes(rows)
                        move_in(
                            rows, xs[j] + begin + c, places, count, size, head_dim - c, vectors, at
                        )
            for j in range(len(outs)):
                for c in range(head_dim, end):
                    simd.store(vectors, outs[j] + target + c * simd.lanes(rows), zero)
        for p in range(last, whole_tiles(last) if in_tiles else last):
            for j in range(len(outs)):
                for c in range(end):
                    simd.store(vectors, outs[j] + p * stride + c * simd.lanes(rows), zero)

    @jit
    def lanes_to_rows(vectors, xs, heads, part, rows, outs, overwrite):
        problem, first, last, _ = part
        inputs, starts, offsets, table, _, head_dim, row, stride, whole = heads
        every = simd.lanes(rows) // size
        for p in range(first, last):
            limit = problems_at(heads, p)
            count = limit - problem
            begin, source = inputs[starts + p] * row, p * stride
            if whole:
                places = simd.listed_offsets(offsets, table, problem, limit, every, size)
                pieces = (count + every - 1) // every
                for j in range(len(xs)):
                    for c in range(0, head_dim, size):
                        x, out = xs[j] + source + c * simd.lanes(rows), outs[j] + begin + c
                        tile = move_out(
                            vectors, x, size, size, rows, out, places, overwrite >> j & 1
                        )
                        simd.tile_store(rows, out, places, tile, pieces)
            else:
                places = simd.listed_offsets(offsets, table, problem, limit, 1, simd.lanes(rows))
                for j in range(len(xs)):
                    for c in range(0, head_dim, size):
                        x, out = xs[j] + source + c * simd.lanes(rows), outs[j] + begin + c
                        tile = move_out(
                            vectors, x, head_dim - c, size, rows, out, places, overwrite >> j & 1
                        )
                        simd.tile_store_pieces(rows, out, places, tile, count, head_dim - c)

    return rows_to_lanes, lanes_to_rows
