"""Explicit SIMD: LLVM vectors, and tiles of them, as values of ordinary jitted code.

The lane count is what one vector register of the host holds: 64 bytes with AVX-512, 32 with AVX,
16 with SSE and NEON, 32 or 64 with SVE registers that long. Arrays on the tape pad their rows to
whole vectors (kernels/layout.py), so kernels have no tails.
"""

from tapegpt.kernels.compile.cpu import VECTOR_BYTES, VECTOR_REGISTERS
from tapegpt.kernels.simd.lanewise import (
    TINY,
    absolute,
    clamp,
    clear_tiny,
    first_lane,
    fma,
    four,
    inverse_root,
    keep_chosen,
    keep_first,
    keep_from,
    lanes,
    maximum,
    one_lane,
    quick_root,
    relu,
    replace_nan,
    smallest,
    splat,
    swap_pairs,
    tiny,
    where_nonzero,
    where_positive,
    zeros,
)
from tapegpt.kernels.simd.memory import (
    add_listed,
    load,
    load_first,
    load_lanes,
    load_listed,
    prefetch,
    store,
    store_part,
)
from tapegpt.kernels.simd.reduce import (
    FEW,
    count_at_most,
    lanes_above,
    lowest_bit,
    max_lanes,
    running_sums,
    sum_lanes,
    totals,
    within,
)
from tapegpt.kernels.simd.tile import (
    tile_column_sums,
    tile_keep_pieces,
    tile_load,
    tile_load_first,
    tile_row_sums,
    tile_store,
    tile_store_pieces,
    tile_transpose,
    tile_zeros,
)
from tapegpt.kernels.simd.tile_products import (
    square_fma,
    tile_fma,
    tile_fma_lanes,
    tile_fma_rows,
    tile_fma_steps,
    tile_outer,
)
from tapegpt.kernels.simd.tile_rows import (
    advance,
    listed_offsets,
    row_offsets,
    row_pointers,
    tail_pointers,
)
from tapegpt.kernels.simd.types import (
    LANE_TILE,
    PAIR_TILE,
    SINGLE_TILE,
    SPACING,
    SQUARE_ROWS,
    TAIL_ROWS,
    WIDE_TILE,
    RowOffsets,
    RowPointers,
    Tile,
    Vector,
)
