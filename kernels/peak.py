"""The machine's peak, measured: nothing but independent multiply-adds, all in registers."""

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.simd import PAIR_TILE

ROWS, COLUMNS = PAIR_TILE


@jit
def multiply_add(array, rounds):
    """Do `rounds` multiply-adds on every vector of a tile; returns the flops of that.

    array: float (1,), a factor below 1, overwritten with a result that depends on all of them.
    """
    factor = simd.splat(array, array[0])
    tile = simd.tile_zeros(array, ROWS, COLUMNS)
    for _ in range(rounds):
        tile = simd.fma(tile, factor, factor)
    array[0] = simd.sum_lanes(tile)
    return 2 * rounds * ROWS * COLUMNS * simd.lanes(array)
