"""The one matrix product behind `linear`: out = start + A B, tile by tile, for any strides.

A is addressed by row and step, so that a transposed A costs nothing: element (r, k) lies at
a0 + r * a_row + k * a_step. Rows of out are whole padded rows, and so are those of B or of its
transpose, `b_row` elements apart. amx.py has the same for large products, on machines that have a
matrix unit.
"""

from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import padded
from tapegpt.kernels.simd import (
    PAIR_TILE,
    SINGLE_TILE,
    SQUARE_ROWS,
    TAIL_ROWS,
    WIDE_TILE,
    advance,
    keep_first,
    lanes,
    load,
    prefetch,
    relu,
    row_offsets,
    row_pointers,
    square_fma,
    store,
    tail_pointers,
    tile_fma,
    tile_keep_first,
    tile_load,
    tile_outer,
    tile_relu,
    tile_row_sums,
    tile_store,
    tile_transpose,
    tile_where_positive,
    tile_zeros,
    where_positive,
)

# A panel of B, this many rows of it at a time, stays in the first-level cache.
PANEL_DEPTH = 128

# Where rows of B lie so many bytes apart, a panel would touch more pages than the processor keeps
# the addresses of. It is copied without the gaps if as many rows of A as this go over it.
PACKED_BYTES, PACKED_ROWS = 1024, 100

# Wide matrices are large: what the next tile adds to or overwrites comes from afar. It is asked for
# before a tile that takes long enough, steps over this many rows of B.
LONG_DEPTH = 64

# Packing what a product reads again for every row does not pay for so few of them.
FEW_ROWS = 3

# What becomes of start + A B before it is stored: nothing, or max(0, of it). Any other activation
# is the index in b of numbers laid out as out is, and what is stored is 0 where they are not
# positive.
IDENTITY, RELU = -1, -2


@inlined
def activated(y, b, activation, at):
    """What becomes of the vector y, whose place is `at` elements after where out begins."""
    if activation == RELU:
        y = relu(y)
    elif activation != IDENTITY:
        y = where_positive(load(b, activation + at), y)
    return y


@inlined
def product(
    tile, left, a_step, b, b0, b_row, out, out0, start0, out_rows, depth, activation, count
):
    """One tile: out = start + (the rows of A that `left` points to) B, its first `count` rows."""
    if start0 >= 0:
        tile = tile_load(tile, out, start0, out_rows)
    for k in range(depth):
        tile = tile_fma(tile, left, b, b0 + k * b_row)
        left = advance(left, a_step)
    if activation == RELU:
        tile = tile_relu(tile)
    elif activation != IDENTITY:
        tile = tile_where_positive(tile_load(tile, b, activation, out_rows), tile)
    tile_store(out, out0, out_rows, tile, count)


def make_panel(tile_rows, columns):
    """The product for one panel of `columns` vectors of B and out."""

    @jit
    def panel(
        a, a0, a_row, a_step, b, b0, b_row, out, out0, out_row, start0, rows, depth, activation
    ):
        whole = rows - rows % tile_rows
        for row in range(0, whole, tile_rows):
            if columns == WIDE and depth >= LONG_DEPTH:
                for r in range(row + tile_rows, row + 2 * tile_rows):
                    for c in range(columns):
                        prefetch(out, out0 + r * out_row + c * lanes(out))
            product(
                tile_zeros(out, tile_rows, columns),
                row_pointers(a, a0 + row * a_row, a_row, tile_rows),
                a_step, b, b0, b_row,
                out, out0 + row * out_row, start0 if start0 < 0 else start0 + row * out_row,
                row_offsets(0, tile_rows, out_row, tile_rows),
                depth, activation if activation < 0 else activation + row * out_row, tile_rows,
            )  # fmt: skip
        for row in range(whole, rows, TAIL_ROWS):
            product(
                tile_zeros(out, TAIL_ROWS, columns),
                tail_pointers(a, a0, row_offsets(row, rows, a_row, TAIL_ROWS)),
                a_step, b, b0, b_row,
                out, out0, start0,
                row_offsets(row, rows, out_row, TAIL_ROWS),
                depth, activation, rows - row,
            )  # fmt: skip

    return panel


WIDE, PAIR = WIDE_TILE[1], PAIR_TILE[1]
PANELS = {tile: make_panel(*tile) for tile in (WIDE_TILE, PAIR_TILE, SINGLE_TILE)}
wide_panel, pair_panel, single_panel = PANELS[WIDE_TILE], PANELS[PAIR_TILE], PANELS[SINGLE_TILE]


@jit
def pack(b, b0, b_row, depth, width, target):
    """Copy a panel of `depth` rows of b to b[target], one after the other."""
    for k in range(depth):
        for c in range(0, width, lanes(b)):
            store(b, target + k * width + c, load(b, b0 + k * b_row + c))


@jit
def transpose(b, b0, b_row, rows, columns, target, target_row):
    """b[target], an array of `columns` rows, becomes the transpose of `rows` rows at b[b0]."""
    empty, size = tile_zeros(b, lanes(b), 1), lanes(b)
    targets = row_offsets(0, size, target_row, size)
    for j in range(0, rows, size):
        whole = columns - columns % size if rows - j >= size else 0
        for k in range(0, whole, size):
            sources = row_offsets(0, size, b_row, size)
            square = tile_transpose(tile_load(empty, b, b0 + j * b_row + k, sources))
            tile_store(b, target + k * target_row + j, targets, square, size)
        for k in range(whole, columns, size):
            sources = row_offsets(j, rows, b_row, size)
            square = tile_transpose(tile_load(empty, b, b0 + k, sources))
            square = tile_keep_first(square, rows - j)
            tile_store(b, target + k * target_row + j, targets, square, columns - k)


@jit
def few_rows(
    a, a0, a_row, b, b0, b_row, out, out0, out_row, start0, rows, depth, columns, activation
):  # fmt: skip
    """matmul with B's transpose, row by row: every element of out is a sum along two rows.

    What A and B hold beyond their depth, up to whole vectors, is 0.
    """
    size = lanes(b)
    for r in range(rows):
        for column in range(0, columns, size):
            sums = tile_zeros(b, size, 1)
            left = tail_pointers(b, b0, row_offsets(column, columns, b_row, size))
            right = row_pointers(a, a0 + r * a_row, a_row, 1)
            for _ in range(0, depth, size):
                sums = tile_outer(sums, left, right)
                left, right = advance(left, size), advance(right, size)
            y = keep_first(tile_row_sums(sums), columns - column, b.dtype.type(0))
            at = r * out_row + column
            if start0 >= 0:
                y = load(out, start0 + at) + y
            store(out, out0 + at, activated(y, b, activation, at))


@inlined
def square_product(left, square, out, out0, start0, out_rows, count):
    """One tile: out = start + (the rows of A that `left` points to) times a square of B."""
    tile = tile_zeros(out, SQUARE_ROWS, 1)
    if start0 >= 0:
        tile = tile_load(tile, out, start0, out_rows)
    tile_store(out, out0, out_rows, square_fma(tile, left, square), count)


@jit
def square_panel(
    a, a0, a_row, b, b0, b_row, b_transposed, width, out, out0, out_row, start0, rows
):  # fmt: skip
    """The product for a square of B: a vector of columns, `width` of them wanted, and as many rows.

    It stays in registers. Tiles of one column otherwise read a vector of B for every step, and
    are about as long in finding where their rows begin as in a few steps.
    """
    square = tile_zeros(b, lanes(b), 1)
    if not b_transposed or width >= lanes(b):
        square = tile_load(square, b, b0, row_offsets(0, lanes(b), b_row, lanes(b)))
    else:
        square = tile_load(square, b, b0, row_offsets(0, width, b_row, lanes(b)))
    if b_transposed:
        square = tile_keep_first(tile_transpose(square), width)
    whole = rows - rows % SQUARE_ROWS
    for row in range(0, whole, SQUARE_ROWS):
        square_product(
            row_pointers(a, a0 + row * a_row, a_row, SQUARE_ROWS), square,
            out, out0 + row * out_row, start0 if start0 < 0 else start0 + row * out_row,
            row_offsets(0, SQUARE_ROWS, out_row, SQUARE_ROWS), SQUARE_ROWS,
        )  # fmt: skip
    if whole < rows:
        square_product(
            tail_pointers(a, a0, row_offsets(whole, rows, a_row, SQUARE_ROWS)), square,
            out, out0, start0, row_offsets(whole, rows, out_row, SQUARE_ROWS), rows - whole,
        )  # fmt: skip


@jit
def square_by_square(
    a, a0, a_row, b, b0, b_row, b_transposed, out, out0, out_row, start0, rows, depth, columns
):  # fmt: skip
    """matmul over the steps that make whole squares of B; returns how many they are.

    Elements of a row of A are adjacent.
    """
    size = lanes(b)
    whole = depth - depth % size
    for k in range(0, whole, size):
        for column in range(0, columns, size):
            right = b0 + column * b_row + k if b_transposed else b0 + k * b_row + column
            begin = start0 if k == 0 else out0
            square_panel(
                a, a0 + k, a_row, b, right, b_row, b_transposed, columns - column,
                out, out0 + column, out_row, begin if begin < 0 else begin + column, rows,
            )  # fmt: skip
    return whole


@jit
def matmul(
    a, a0, a_row, a_step, b, b0, b_row, b_transposed, packed, out, out0, out_row, start0,
    rows, depth, columns, activation,
):  # fmt: skip
    """out = activation(start + A B), where A is rows x depth, out rows x columns.

    start0 is the index in the array out of the start, laid out as out is: out0 to accumulate, -1
    to start from zero. packed is the index in b of room for a panel.
    """
    if b_transposed and rows <= FEW_ROWS:
        few_rows(
            a, a0, a_row, b, b0, b_row, out, out0, out_row, start0, rows, depth, columns, activation
        )  # fmt: skip
        return
    # Elsewhere, and with an activation, panels are as quick.
    done, thin, flat = 0, columns <= lanes(b), depth <= lanes(b)
    if a_step == 1 and activation == IDENTITY and (thin or flat if b_transposed else thin and flat):
        done = square_by_square(
            a, a0, a_row, b, b0, b_row, b_transposed, out, out0, out_row, start0,
            rows, depth, columns,
        )  # fmt: skip
    packing = b_transposed or (b_row * b.itemsize >= PACKED_BYTES and rows >= PACKED_ROWS)
    end = padded(out, columns)
    for k in range(done, max(1, depth), PANEL_DEPTH):
        count = min(PANEL_DEPTH, depth - k)
        left = a0 + k * a_step
        column = 0
        while column < end:
            vectors = min(WIDE, (end - column) // lanes(out))
            if vectors < WIDE:
                vectors = PAIR if vectors >= PAIR else 1
            width = vectors * lanes(out)
            right, right_row = b0 + k * b_row + column, b_row
            if packing:
                if b_transposed:
                    right = b0 + column * b_row + k
                    transpose(b, right, b_row, min(width, columns - column), count, packed, width)
                else:
                    pack(b, right, b_row, count, width, packed)
                right, right_row = packed, width
            begin = start0 if k == 0 else out0
            if begin >= 0:
                begin += column
            last = activation if k + count == depth else IDENTITY
            if last >= 0:
                last += column
            if vectors == WIDE:
                wide_panel(
                    a, left, a_row, a_step, b, right, right_row,
                    out, out0 + column, out_row, begin, rows, count, last,
                )  # fmt: skip
            elif vectors == PAIR:
                pair_panel(
                    a, left, a_row, a_step, b, right, right_row,
                    out, out0 + column, out_row, begin, rows, count, last,
                )  # fmt: skip
            else:
                single_panel(
                    a, left, a_row, a_step, b, right, right_row,
                    out, out0 + column, out_row, begin, rows, count, last,
                )  # fmt: skip
            column += width
