"""The one matrix product behind `linear`: out = start + A B, tile by tile, for any strides.

A is addressed by row and step, so that a transposed A costs nothing: element (r, k) lies at
a0 + r * a_row + k * a_step. Rows of B and of out are whole padded rows, B's `b_row` elements
apart.
"""

from tapegpt.kernels.jit import jit
from tapegpt.kernels.simd import (
    TILE_COLUMNS,
    TILE_ROWS,
    lanes,
    row_offsets,
    tile_fma,
    tile_load,
    tile_store,
    tile_zeros,
)


def make_panel(columns):
    """The product for one panel of `columns` vectors of B and out."""

    @jit
    def panel(a, a0, a_row, a_step, b, b0, b_row, start, start0, out, out0, out_row, rows, depth):
        for row in range(0, rows, TILE_ROWS):
            a_offsets = row_offsets(row, rows, a_row, TILE_ROWS)
            out_offsets = row_offsets(row, rows, out_row, TILE_ROWS)
            tile = tile_zeros(out, TILE_ROWS, columns)
            if start0 >= 0:
                tile = tile_load(tile, start, start0, out_offsets)
            for k in range(depth):
                tile = tile_fma(tile, a, a0 + k * a_step, a_offsets, b, b0 + k * b_row)
            tile_store(out, out0, out_offsets, tile, rows - row)

    return panel


wide_panel = make_panel(TILE_COLUMNS)
narrow_panel = make_panel(1)


@jit
def matmul(a, a0, a_row, a_step, b, b0, b_row, start, start0, out, out0, out_row, rows, depth):
    """out = start + A B, where A is rows x depth and out is rows x out_row.

    start0 is the index of the start in the array `start`, laid out as out is (it may be out
    itself, to accumulate), or -1 to start from zero.
    """
    width = TILE_COLUMNS * lanes(out)
    column = 0
    while column < out_row:
        begin = start0 + column if start0 >= 0 else start0
        if column + width <= out_row:
            wide_panel(
                a, a0, a_row, a_step, b, b0 + column, b_row,
                start, begin, out, out0 + column, out_row, rows, depth,
            )  # fmt: skip
            column += width
        else:
            narrow_panel(
                a, a0, a_row, a_step, b, b0 + column, b_row,
                start, begin, out, out0 + column, out_row, rows, depth,
            )  # fmt: skip
            column += lanes(out)
