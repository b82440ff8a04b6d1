"""Which nodes an optimizer moves, and where they lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.tape.alignment import ALIGNMENT
from tapegpt.tape.handles import Node
from tapegpt.tape.types import Ids, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

Stretches = NDArray[np.int64]


class Packing(NamedTuple):
    """Stretches of nodes, each on a cache line of its own where all are packed."""

    stretches: Stretches  # (stretches, 3), see kernels/loops/descent.py
    size: int  # of all, whole vectors

    @property
    def last(self) -> int:
        """The last node."""
        node, _, count = self.stretches[-1].tolist()
        return int(node + count - 1)

    def place(self, node: int) -> int:
        """Where a node lies among the packed."""
        at = int(np.searchsorted(self.stretches[:, 0], node, side="right")) - 1
        first, place, _ = self.stretches[at].tolist()
        return int(place + node - first)

    def is_slice(self, lanes: int) -> bool:
        """Whether the packed lie side by side on the tape already, in whole vectors."""
        first, _, count = self.stretches[0].tolist()
        return len(self.stretches) == 1 and first % lanes == 0 and count % lanes == 0

    def moves(self, node: int) -> bool:
        """Whether a node is one of the packed."""
        first, counts = self.stretches[:, 0], self.stretches[:, 2]
        return bool(((first <= node) & (node < first + counts)).any())


def packing_of(tape: Tape, leaves: Sequence[Node] | Ids | None) -> Packing:
    """How these leaves of a tape are packed, or all of its parameters."""
    if leaves is None:
        bounds = [(begin, end) for begin, end in tape._parameters() if begin < end]
    else:
        bounds = sorted(_bounds(tape, leaves))
    if not bounds:
        raise TapeError("the optimizer has nothing to move: record a parameter, or name leaves")
    for (_, end), (begin, _) in pairwise(bounds):
        if begin < end:
            raise TapeError(f"the optimizer is given node {begin} twice")
    lanes = ALIGNMENT // tape.dtype.itemsize
    stretches, place = [], 0
    for begin, end in _joined(bounds):
        stretches.append((begin, place, end - begin))
        place += -(-(end - begin) // lanes) * lanes
    return Packing(np.array(stretches, np.int64), place)


def _bounds(tape: Tape, leaves: Sequence[Node] | Ids) -> Iterable[tuple[int, int]]:
    if isinstance(leaves, np.ndarray):
        ids = tape._leaves(tape._ids(leaves)).ravel()
        yield from zip(ids.tolist(), (ids + 1).tolist(), strict=True)
        return
    if not isinstance(leaves, (list, tuple, range)):
        raise TapeError(f"an optimizer wants a list of leaves, not {leaves!r:.60}")
    for leaf in leaves:
        node = tape._leaf(leaf)
        yield node, node + tape.extents[node] if node in tape._shapes else node + 1


def _joined(bounds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bounds, in order, where neighbours are one."""
    joined = [bounds[0]]
    for begin, end in bounds[1:]:
        if begin == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
