"""One row times weights that are packed for it: out = activation(start + x W^T).

A row of x uses every weight once, so what counts is how weights are read: whole vectors, one after
the other. W^T is cut into panels of up to PANEL vectors of columns, the widest that fit first:

    W^T, 14 vectors wide:   | panel of 8 | panel of 4 | panel of 2 |   n_in rows, up to vectors

Panels lie one after the other, and so do the rows of each. A step multiplies PANEL vectors of a
panel: one row of the widest, several rows of the others, whose sums are added up at the end.
"""

from tapegpt.kernels import simd
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import padded, row_stride
from tapegpt.kernels.ops.product.matmul import transpose
from tapegpt.kernels.ops.product.matrix import RELU, Right

PANEL = 8  # vectors: as many dependency chains keep two multiply-adds a cycle busy

CACHE_LINE = 64  # bytes
AHEAD = 2048  # bytes from the weights of a step to those that it asks for

# Elements of a model that are packed at most: what no cache holds is read from memory either way.
MOST_PACKED = 2**24


def packed_size(n_in: int, n_out: int, lanes: int) -> int:
    """Elements of packed weights (n_out, n_in)."""
    return (-(-n_in // lanes) * lanes) * (-(-n_out // lanes) * lanes)


def make_panel_product(columns):
    """The product of a row with a panel of `columns` vectors."""
    rows = min(PANEL // columns, 4, VECTOR_BYTES // 8)  # a whole number of them is in a vector

    @jit
    def panel_product(values, x, depth, panel, out, start, activation):
        step = columns * simd.lanes(values)
        sums = simd.tile_zeros(values, rows, columns)
        for k in range(0, depth, rows):
            weights = panel + k * step
            if columns == PANEL:
                for line in range(0, step, CACHE_LINE // values.itemsize):
                    simd.prefetch(values, weights + AHEAD // values.itemsize + line)
            sums = simd.tile_fma_steps(sums, values, x + k, weights)
        y = simd.tile_column_sums(sums)
        only = simd.row_offsets(0, 1, step, 1)
        if start >= 0:
            y = simd.tile_load(y, values, start, only) + y
        if activation == RELU:
            y = simd.relu(y)
        simd.tile_store(values, out, only, y, 1)

    return panel_product


product_8, product_4, product_2, product_1 = (make_panel_product(n) for n in (PANEL, 4, 2, 1))


@inlined
def panel_width(vectors):
    """Vectors of the next panel where so many are left."""
    if vectors >= PANEL:
        return PANEL
    return 4 if vectors >= 4 else min(2, vectors)


@jit
def pack_weights(values, w, n_in, n_out, packed):
    """Write the panels of W (n_out, n_in), an array at values[w], to values[packed]."""
    size, depth, row = simd.lanes(values), padded(values, n_in), row_stride(values, n_in)
    column = 0
    while column < n_out:
        width = panel_width((n_out - column + size - 1) // size) * size
        corner = Right(values, w + column * row, row, True)
        transpose(corner, min(width, n_out - column), depth, packed, width)
        packed += depth * width
        column += width


@jit
def packed_product(values, x, n_in, packed, n_out, out, start, activation):
    """out = activation(start + x W^T) for one row x and packed W. start: -1 for zero."""
    size, depth = simd.lanes(values), padded(values, n_in)
    column = 0
    while column < n_out:
        vectors = panel_width((n_out - column + size - 1) // size)
        first = start if start < 0 else start + column
        if vectors == PANEL:
            product_8(values, x, depth, packed, out + column, first, activation)
        elif vectors == 4:
            product_4(values, x, depth, packed, out + column, first, activation)
        elif vectors == 2:
            product_2(values, x, depth, packed, out + column, first, activation)
        else:
            product_1(values, x, depth, packed, out + column, first, activation)
        packed += depth * vectors * size
        column += vectors * size
