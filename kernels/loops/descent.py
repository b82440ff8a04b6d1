"""Steps of an optimizer over any recorded tape, without Python between them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.compile.indirect_call import as_pointer
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.interpreter import forward_sweep
from tapegpt.kernels.loops.optimizers import MOVES
from tapegpt.kernels.loops.precise_sweep import precise_reverse_sweep

# The columns of a list of stretches: the first node, its place among the packed, how many.
NODE, PLACE, COUNT = 0, 1, 2


class Descent(NamedTuple):
    """What every step has in common, but for what the optimizer knows."""

    root: int
    end: int  # one past the last record that the root depends on
    first: int  # steps done before
    learning_rate: float
    packs: bool  # else the optimizer moves what lies on the tape


class Moved(NamedTuple):
    """What the optimizer moves: packed, whole vectors, or where it lies on the tape."""

    values: NDArray[np.floating]  # (packed,)
    grads: NDArray[np.floating]  # (packed,)


@inlined
def pack(array, packed, stretches):
    """Copy what lies at the nodes of the stretches, (stretches, 3), to their places in `packed`."""
    array, packed = as_pointer(array), as_pointer(packed)  # else LLVM copies one by one
    for s in range(len(stretches)):
        node, place = stretches[s, NODE], stretches[s, PLACE]
        for i in range(stretches[s, COUNT]):
            packed[place + i] = array[node + i]


@inlined
def unpack(packed, array, stretches):
    """The way back."""
    packed, array = as_pointer(packed), as_pointer(array)
    for s in range(len(stretches)):
        node, place = stretches[s, NODE], stretches[s, PLACE]
        for i in range(stretches[s, COUNT]):
            array[node + i] = packed[place + i]


def make_descend(move):
    """Steps of the optimizer whose kernel is `move`: no other is compiled."""

    @jit
    def descend(
        tape_arrays, often, batch_range, moved, before, stretches, clear, optimizer, descent, losses
    ):
        """Do a step for every element of losses, (steps,): the loss before each is written there.

        moved: room for what lies at the stretches; or, where nothing is packed, views of the tape's
        arrays, and `before`, (packed,), is room to copy the values to. clear: first node and one
        after the last, (ranges, 2), of the gradients that a step sets to zero: records write the
        others before they read them. Returns the number of steps done: fewer than asked for where a
        loss or an update is not finite. The tape then has the values of before that step.
        """
        values, grads = tape_arrays.values, tape_arrays.grads
        moved_values, moved_grads = as_pointer(moved.values), as_pointer(moved.grads)
        if descent.packs:
            pack(values, moved.values, stretches)
        for i in range(len(losses)):
            forward_sweep(tape_arrays, 0, descent.end, batch_range)
            losses[i] = values[descent.root]
            if not math.isfinite(losses[i]):
                return i
            for k in range(len(clear)):
                grads[clear[k, 0] : clear[k, 1]] = 0
            grads[descent.root] = 1
            precise_reverse_sweep(tape_arrays, often, descent.end, batch_range)
            if descent.packs:
                pack(grads, moved.grads, stretches)
            else:
                pack(values, before, stretches)
            step = descent.first + i + 1
            rate = descent.learning_rate
            if not move(moved_values, moved_grads, optimizer, 0, len(moved.values), step, rate):
                if not descent.packs:
                    unpack(before, values, stretches)
                return i
            if descent.packs:
                unpack(moved.values, values, stretches)
        return len(losses)

    return descend


DESCEND = {kind: make_descend(move) for kind, move in MOVES.items()}
