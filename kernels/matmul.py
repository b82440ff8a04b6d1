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
    load,
    row_offsets,
    store,
    tile_fma,
    tile_load,
    tile_store,
    tile_zeros,
)

# A panel of B, this many rows of it at a time, stays in the first-level cache.
PANEL_DEPTH = 128


def make_panel(columns):
    """The product for one panel of `columns` vectors of B and out."""

    @jit
    def panel(a, a0, a_row, a_step, b, b0, b_row, out, out0, out_row, start0, rows, depth):
        for row in range(0, rows, TILE_ROWS):
            a_offsets = row_offsets(row, rows, a_row, TILE_ROWS)
            out_offsets = row_offsets(row, rows, out_row, TILE_ROWS)
            tile = tile_zeros(out, TILE_ROWS, columns)
            if start0 >= 0:
                tile = tile_load(tile, out, start0, out_offsets)
            for k in range(depth):
                tile = tile_fma(tile, a, a0 + k * a_step, a_offsets, b, b0 + k * b_row)
            tile_store(out, out0, out_offsets, tile, rows - row)

    return panel


wide_panel = make_panel(TILE_COLUMNS)
narrow_panel = make_panel(1)


@jit
def pack(b, b0, b_row, depth, target):
    """Copy a panel of `depth` rows to b[target], one after the other."""
    width = TILE_COLUMNS * lanes(b)
    for k in range(depth):
        for c in range(0, width, lanes(b)):
            store(b, target + k * width + c, load(b, b0 + k * b_row + c))


@jit
def matmul(
    a, a0, a_row, a_step, b, b0, b_row, packed, out, out0, out_row, start0, rows, depth, columns
):
    """out = start + A B, where A is rows x depth, and out is rows x columns, whole vectors.

    start0 is the index in the array out of the start, laid out as out is: out0 to accumulate, -1
    to start from zero. packed is the index in b of room for a panel.
    """
    width = TILE_COLUMNS * lanes(out)
    # A panel that many tiles go over is worth a copy without the gaps between its rows.
    packing = b_row > width and rows > 2 * TILE_ROWS
    for column in range(0, columns, width):
        for k in range(0, max(1, depth), PANEL_DEPTH):
            count = min(PANEL_DEPTH, depth - k)
            left = a0 + k * a_step
            right, right_row = b0 + k * b_row + column, b_row
            if packing:
                pack(b, right, b_row, count, packed)
                right, right_row = packed, width
            begin = start0 if k == 0 else out0
            if begin >= 0:
                begin += column
            if column + width <= columns:
                wide_panel(
                    a, left, a_row, a_step, b, right, right_row,
                    out, out0 + column, out_row, begin, rows, count,
                )  # fmt: skip
            else:
                for c in range(0, columns - column, lanes(out)):
                    narrow_panel(
                        a, left, a_row, a_step, b, right + c, right_row,
                        out, out0 + column + c, out_row, begin + c, rows, count,
                    )  # fmt: skip
