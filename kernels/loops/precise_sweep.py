"""The reverse sweep of a graph in which nodes have very many uses.

A gradient is a sum with a term for every use of its node. Added up one by one, a float32 sum of
millions loses digits. Here the sweep pauses after every few records, and what those have added to
such a node moves to a sum in float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.interpreter import reverse_sweep


class OftenUsed(NamedTuple):
    """The nodes, and where a sweep pauses for them."""

    nodes: NDArray[np.int64]  # (N,)
    before: NDArray[np.int64]  # (N,), of every node how many records come before all its uses
    stops: NDArray[np.int64]  # ascending numbers of records: 0, all those in `before`, more
    sums: NDArray[np.float64]  # (N,), room


NEVER = OftenUsed(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0))


@jit
def precise_reverse_sweep(tape_arrays, often, end, batch_range):
    """As `reverse_sweep` of records 0 to end - 1, with the sums of often used nodes in float64."""
    nodes, before, stops, sums = often
    grads = tape_arrays.grads
    sums[:] = 0
    for i in range(len(stops) - 1, -1, -1):
        if stops[i] < end:
            reverse_sweep(tape_arrays, stops[i], end, batch_range)
            end = stops[i]
            for j in range(len(nodes)):
                if before[j] <= end:
                    sums[j] += grads[nodes[j]]
                    # The node's own record, which may be next, reads the whole sum.
                    grads[nodes[j]] = sums[j] if before[j] == end else 0
