"""Which rows of an array an operation works on."""

from tapegpt.kernels.jit import inlined
from tapegpt.kernels.records import BATCH


# A window is (first position, last position, first row, last row), the last ones excluded: the
# part of the batch that this sweep covers.
@inlined
def row_range(count, window):
    """First row and the one after the last: all `count` rows, or the batch's rows in the window."""
    if count == BATCH:
        return window[2], window[3]
    return 0, count
