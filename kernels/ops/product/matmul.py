"""The matrix product of all kernels: out = activation(start + A B).

The operands are those of matrix.py; A and B are not both transposed. amx.py has the same for large
products, on machines that have a matrix unit.
"""

from tapegpt.kernels import simd
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, padded
from tapegpt.kernels.ops.product.matrix import IDENTITY, RELU, Left, Result, Right, moved, part_of
from tapegpt.kernels.simd import PAIR_TILE, SINGLE_TILE, SQUARE_ROWS, TAIL_ROWS, WIDE_TILE

# A panel of B, this many rows of it at a time, stays in the first-level cache.
PANEL_DEPTH = 128

# A panel of B whose rows lie PACKED_BYTES or more apart touches more pages than the TLB holds. It
# is packed if PACKED_ROWS rows of A use it. A transposed A is packed likewise, for as many columns
# of B. A transposed B is always packed: tiles need elements of neighbouring columns side by side.
PACKED_BYTES, PACKED_ROWS = 1024, 100

# Large products are computed in blocks: so many rows of A times a group of columns, GROUP_BYTES of
# every row of B, so many steps at a time. In float32 both fit in a second-level cache of 512 KB.
# Deep blocks read and write out half as often. A transposed A gains from them only with more than
# DEEP_BLOCK_DEPTH steps. With vectors of 64 bytes so deep a panel would leave the first-level
# cache. The rows are multiples of those of every tile, and no block of A has more elements than the
# first.
BLOCK_ROWS, BLOCK_DEPTH = 288, PANEL_DEPTH
DEEP_BLOCK_ROWS, DEEP_BLOCK_DEPTH = (144, 256) if VECTOR_BYTES < 64 else (BLOCK_ROWS, BLOCK_DEPTH)
GROUP_BYTES = 1024

# In wide panels at least this deep the next tile of out is prefetched. The tiles of shallower ones
# end before it comes.
LONG_DEPTH = 64

# Packing B does not pay for so few rows of A.
FEW_ROWS = 3

# With few rows of A and long rows of B, LONG_COLUMNS columns of out stay in the first-level cache,
# and ROWS_TOGETHER rows of B are added to them at once.
LONG_COLUMNS, ROWS_TOGETHER = 2048, 4


@inlined
def activated(y, b, activation, at):
    """The activation of the vector y that belongs `at` elements after the beginning of out."""
    if activation == RELU:
        y = simd.relu(y)
    elif activation != IDENTITY:
        y = simd.where_positive(simd.load(b, activation + at), y)
    return y


@inlined
def product(tile, left, step, b, out, offsets, depth, count):
    """One tile: out = start + (the rows of A that `left` points to) B, its first `count` rows."""
    if out.start >= 0:
        tile = simd.tile_load(tile, out.array, out.start, offsets)
    for k in range(depth):
        tile = simd.tile_fma(tile, left, b.array, b.begin + k * b.row)
        left = simd.advance(left, step)
    if out.activation == RELU:
        tile = simd.relu(tile)
    elif out.activation != IDENTITY:
        tile = simd.where_positive(simd.tile_load(tile, b.array, out.activation, offsets), tile)
    simd.tile_store(out.array, out.begin, offsets, tile, count)


def make_panel(tile_rows, columns):
    """The product for one panel of `columns` vectors of B and out."""

    @jit
    def panel(a, b, out, rows, depth):
        whole = rows - rows % tile_rows
        for r in range(0, whole, tile_rows):
            if columns == WIDE and depth >= LONG_DEPTH:
                for ahead in range(r + tile_rows, r + 2 * tile_rows):
                    for c in range(columns):
                        simd.prefetch(
                            out.array, out.begin + ahead * out.row + c * simd.lanes(out.array)
                        )
            product(
                simd.tile_zeros(out.array, tile_rows, columns),
                simd.row_pointers(a.array, a.begin + r * a.row, a.row, tile_rows),
                a.step,
                b,
                part_of(out, r * out.row),
                simd.row_offsets(0, tile_rows, out.row, tile_rows),
                depth,
                tile_rows,
            )
        for r in range(whole, rows, TAIL_ROWS):
            product(
                simd.tile_zeros(out.array, TAIL_ROWS, columns),
                simd.tail_pointers(a.array, a.begin, simd.row_offsets(r, rows, a.row, TAIL_ROWS)),
                a.step,
                b,
                out,
                simd.row_offsets(r, rows, out.row, TAIL_ROWS),
                depth,
                rows - r,
            )

    return panel


WIDE, PAIR = WIDE_TILE[1], PAIR_TILE[1]
PANELS = {tile: make_panel(*tile) for tile in (WIDE_TILE, PAIR_TILE, SINGLE_TILE)}
wide_panel, pair_panel, single_panel = PANELS[WIDE_TILE], PANELS[PAIR_TILE], PANELS[SINGLE_TILE]


@jit
def pack(b, depth, width, target):
    """Copy a panel of `depth` rows of b to its array[target], one after the other."""
    for k in range(depth):
        for c in range(0, width, simd.lanes(b.array)):
            simd.store(b.array, target + k * width + c, simd.load(b.array, b.begin + k * b.row + c))


@jit
def transpose(b, rows, columns, target, target_row):
    """Write the transpose of `rows` rows of b to array[target]: it has `columns` rows."""
    array, size = b.array, simd.lanes(b.array)
    empty = simd.tile_zeros(array, size, 1)
    targets = simd.row_offsets(0, size, target_row, size)
    for j in range(0, rows, size):
        whole = columns - columns % size if rows - j >= size else 0
        for k in range(0, whole, size):
            sources = simd.row_offsets(0, size, b.row, size)
            square = simd.tile_transpose(
                simd.tile_load(empty, array, b.begin + j * b.row + k, sources)
            )
            simd.tile_store(array, target + k * target_row + j, targets, square, size)
        for k in range(whole, columns, size):
            sources = simd.row_offsets(j, rows, b.row, size)
            square = simd.tile_transpose(simd.tile_load(empty, array, b.begin + k, sources))
            square = simd.keep_first(square, rows - j, 0)
            simd.tile_store(array, target + k * target_row + j, targets, square, columns - k)


@inlined
def row_products(a, b, out, r, column, left, depth, count):
    """A vector of out: the products of row r of A and the rows of B that `left` points to."""
    sums = simd.tile_zeros(b.array, simd.lanes(b.array), 1)
    right = simd.row_pointers(a.array, a.begin + r * a.row, a.row, 1)
    for _ in range(0, depth, simd.lanes(b.array)):
        sums = simd.tile_outer(sums, left, right)
        left, right = (
            simd.advance(left, simd.lanes(b.array)),
            simd.advance(right, simd.lanes(b.array)),
        )
    y = simd.keep_first(simd.tile_row_sums(sums), count, b.array.dtype.type(0))
    at = r * out.row + column
    if out.start >= 0:
        y = simd.load(out.array, out.start + at) + y
    simd.store(out.array, out.begin + at, activated(y, b.array, out.activation, at))


@jit
def few_rows(a, b, out, shape):
    """matmul with B's transpose, row by row: every element of out is a sum along two rows.

    What A and B hold beyond their depth, up to whole vectors, is 0.
    """
    size, columns = simd.lanes(b.array), shape.columns
    whole = columns - columns % size
    for r in range(shape.rows):
        for column in range(0, whole, size):
            left = simd.row_pointers(b.array, b.begin + column * b.row, b.row, size)
            row_products(a, b, out, r, column, left, shape.depth, size)
        if whole < columns:
            left = simd.tail_pointers(
                b.array, b.begin, simd.row_offsets(whole, columns, b.row, size)
            )
            row_products(a, b, out, r, whole, left, shape.depth, columns - whole)


@inlined
def add_rows(a, b, out, columns, together):
    """out += A B for a row of A with `together` elements: columns a vector at a time."""
    for c in range(0, columns, simd.lanes(b.array)):
        y = simd.load(out.array, out.begin + c)
        for k in range(together):
            x = simd.splat(b.array, a.array[a.begin + k * a.step])
            y = simd.fma(x, simd.load(b.array, b.begin + k * b.row + c), y)
        simd.store(out.array, out.begin + c, y)


@jit
def long_rows(a, b, out, shape):
    """matmul of few rows of A with long rows of B, without an activation."""
    end = padded(out.array, shape.columns)
    whole = shape.depth - shape.depth % ROWS_TOGETHER
    for column in range(0, end, LONG_COLUMNS):
        columns = min(LONG_COLUMNS, end - column)
        for r in range(shape.rows):
            part = part_of(out, r * out.row + column)
            for c in range(0, columns, simd.lanes(out.array)):
                y = simd.splat(out.array, 0)
                if out.start >= 0:
                    y = simd.load(out.array, part.start + c)
                simd.store(out.array, part.begin + c, y)
            for k in range(0, whole, ROWS_TOGETHER):
                left = Left(a.array, a.begin + r * a.row + k * a.step, a.row, a.step)
                right = Right(b.array, b.begin + k * b.row + column, b.row, False)
                add_rows(left, right, part, columns, ROWS_TOGETHER)
            for k in range(whole, shape.depth):
                left = Left(a.array, a.begin + r * a.row + k * a.step, a.row, a.step)
                right = Right(b.array, b.begin + k * b.row + column, b.row, False)
                add_rows(left, right, part, columns, 1)


@inlined
def square_product(left, square, out, offsets, count):
    """One tile: out = start + (the rows of A that `left` points to) times a square of B."""
    tile = simd.tile_zeros(out.array, SQUARE_ROWS, 1)
    if out.start >= 0:
        tile = simd.tile_load(tile, out.array, out.start, offsets)
    simd.tile_store(out.array, out.begin, offsets, simd.square_fma(tile, left, square), count)


@jit
def square_panel(a, b, out, rows, width):
    """The product for a square of B: a vector of columns, `width` of them wanted, and as many rows.

    The square stays in registers. A tile of one column would otherwise load a vector of B at every
    step, and setting up its row pointers costs as much as a few steps.
    """
    size = simd.lanes(b.array)
    square = simd.tile_zeros(b.array, size, 1)
    if not b.transposed or width >= size:
        square = simd.tile_load(square, b.array, b.begin, simd.row_offsets(0, size, b.row, size))
    else:
        square = simd.tile_load(square, b.array, b.begin, simd.row_offsets(0, width, b.row, size))
    if b.transposed:
        square = simd.keep_first(simd.tile_transpose(square), width, 0)
    whole = rows - rows % SQUARE_ROWS
    for r in range(0, whole, SQUARE_ROWS):
        left = simd.row_pointers(a.array, a.begin + r * a.row, a.row, SQUARE_ROWS)
        offsets = simd.row_offsets(0, SQUARE_ROWS, out.row, SQUARE_ROWS)
        square_product(left, square, part_of(out, r * out.row), offsets, SQUARE_ROWS)
    if whole < rows:
        left = simd.tail_pointers(
            a.array, a.begin, simd.row_offsets(whole, rows, a.row, SQUARE_ROWS)
        )
        offsets = simd.row_offsets(whole, rows, out.row, SQUARE_ROWS)
        square_product(left, square, out, offsets, rows - whole)


@jit
def square_by_square(a, b, out, shape):
    """matmul over the steps that make whole squares of B; returns how many they are.

    Elements of a row of A are adjacent.
    """
    size = simd.lanes(b.array)
    whole = shape.depth - shape.depth % size
    for k in range(0, whole, size):
        for column in range(0, shape.columns, size):
            corner = column * b.row + k if b.transposed else k * b.row + column
            start = out.start if k == 0 else out.begin
            square_panel(
                Left(a.array, a.begin + k, a.row, a.step),
                Right(b.array, b.begin + corner, b.row, b.transposed),
                Result(out.array, out.begin + column, out.row, moved(start, column), IDENTITY),
                shape.rows,
                shape.columns - column,
            )
    return whole


@jit
def pack_columns(a, rows, depth, target, step, array):
    """Copy the first `rows` rows of a transposed A to array[target], `step` elements a step."""
    whole = rows - rows % simd.lanes(array)
    for k in range(depth):
        source, place = a.begin + k * a.step, target + k * step
        for r in range(0, whole, simd.lanes(array)):
            simd.store(array, place + r, simd.load(a.array, source + r))
        for r in range(whole, rows):
            array[place + r] = a.array[source + r]


@inlined
def next_panel(array, columns):
    """Vectors of the next panel where so many columns are left, whole vectors."""
    vectors = min(WIDE, columns // simd.lanes(array))
    if vectors < WIDE:
        vectors = PAIR if vectors >= PAIR else 1
    return vectors


@jit
def pack_panels(b, depth, first, end, columns, room):
    """Pack the panels of B from column `first` on, one after the other."""
    array = b.array
    while first < end:
        width = next_panel(array, end - first) * simd.lanes(array)
        if b.transposed:
            corner = Right(array, b.begin + first * b.row, b.row, True)
            transpose(corner, min(width, columns - first), depth, room, width)
        else:
            pack(Right(array, b.begin + first, b.row, False), depth, width, room)
        room += depth * width
        first += width


def block_of(rows: int, depth: int, transposed: bool) -> tuple[int, int]:
    """How many rows and steps a block has, for a product of so many; transposed: whether A is."""
    if rows > DEEP_BLOCK_ROWS and depth > (DEEP_BLOCK_DEPTH if transposed else BLOCK_DEPTH):
        return DEEP_BLOCK_ROWS, DEEP_BLOCK_DEPTH
    return BLOCK_ROWS, BLOCK_DEPTH


jitted_block_of = inlined(block_of)


def matmul_room(rows: int, depth: int, columns: int, lanes: int, transposed: bool = False) -> int:
    """Elements in which matmul packs B, and A if that is transposed."""
    group, (block_rows, block_depth) = WIDE * lanes, block_of(rows, depth, False)
    if rows > block_rows:
        group = max(group, min(GROUP_BYTES // VECTOR_BYTES, -(-columns // lanes)) * lanes)
    left = min(depth, BLOCK_DEPTH) * BLOCK_ROWS if transposed and columns >= PACKED_ROWS else 0
    return block_depth * group + left


@inlined
def panel_by_panel(a, b, out, rows, depth, column, end, packed):
    """out = activation(start + A B) for the columns from `column` to end, a panel at a time.

    packed: where pack_panels has put these columns of B; or NONE, and they are read in place.
    """
    array = b.array
    while column < end:
        vectors = next_panel(array, end - column)
        width = vectors * simd.lanes(array)
        panel_of_b = Right(array, b.begin + column, b.row, False)
        if packed >= 0:
            panel_of_b = Right(array, packed, width, False)
            packed += depth * width
        panel_of_out = part_of(out, column)
        if vectors == WIDE:
            wide_panel(a, panel_of_b, panel_of_out, rows, depth)
        elif vectors == PAIR:
            pair_panel(a, panel_of_b, panel_of_out, rows, depth)
        else:
            single_panel(a, panel_of_b, panel_of_out, rows, depth)
        column += width


@jit
def matmul(a, b, out, shape, room):
    """out = activation(start + A B), see matrix.py. room: where matmul_room elements fit in B's."""
    if b.transposed and shape.rows <= FEW_ROWS:
        few_rows(a, b, out, shape)
        return
    far = b.row * b.array.itemsize >= PACKED_BYTES
    if far and shape.rows <= FEW_ROWS and out.activation == IDENTITY:
        long_rows(a, b, out, shape)
        return
    array, columns, depth, size = b.array, shape.columns, shape.depth, simd.lanes(b.array)
    # Squares of B in registers pay where B is a vector wide and deep, or, transposed, one of both.
    done, thin, flat = 0, columns <= size, depth <= size
    squares = thin or flat if b.transposed else thin and flat
    if a.step == 1 and out.activation == IDENTITY and squares:
        done = square_by_square(a, b, out, shape)
    packing = b.transposed or (far and shape.rows >= PACKED_ROWS)
    far_left = a.row == 1 and a.step * array.itemsize >= PACKED_BYTES
    packing_left = far_left and columns >= PACKED_ROWS
    end = padded(array, columns)
    group, (block_rows, block_depth) = WIDE * size, jitted_block_of(shape.rows, depth, a.row == 1)
    if shape.rows > block_rows:
        group = max(group, GROUP_BYTES // array.itemsize)
    # A is packed behind the widest group of B, see matmul_room.
    room_left = room + block_depth * min(group, max(WIDE * size, end))
    for k in range(done, max(1, depth), block_depth):
        count = min(block_depth, depth - k)
        start = out.start if k == 0 else out.begin
        activation = out.activation if k + count == depth else IDENTITY
        result = Result(out.array, out.begin, out.row, start, activation)
        corner = b.begin + (k if b.transposed else k * b.row)
        right = Right(array, corner, b.row, b.transposed)
        for first in range(0, end, group):
            last = min(first + group, end)
            if packing:
                pack_panels(right, count, first, last, columns, room)
            for top in range(0, shape.rows, block_rows):
                rows = min(block_rows, shape.rows - top)
                left = Left(a.array, a.begin + top * a.row + k * a.step, a.row, a.step)
                # Where A is one block, its copy for the first group is still there.
                if packing_left and (first == 0 or shape.rows > block_rows):
                    pack_columns(left, rows, count, room_left, block_rows, array)
                if packing_left:
                    left = Left(array, room_left, 1, block_rows)
                block = part_of(result, top * out.row)
                packed = room if packing else NONE
                panel_by_panel(left, right, block, rows, count, first, last, packed)
