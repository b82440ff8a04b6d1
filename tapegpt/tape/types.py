"""The small things that a tape is described with."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.errors import TapegptError

Floats = NDArray[np.floating]
Ids = NDArray[np.int64]
Number = int | float | np.floating | np.integer | np.bool_


class TapeError(TapegptError, ValueError):
    """A tape was used in a way that has no meaning; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Input:
    """A run of row numbers that a program reads: token ids, positions, targets."""

    slot: int
    count: int  # or BATCH
    below: int  # every number is from 0 to below - 1
    width: int = 1  # numbers of a row


class Shape(NamedTuple):
    """Rows and columns of an array node, and the nodes from one row to the next."""

    rows: int  # or BATCH
    width: int
    stride: int


class Batch(NamedTuple):
    """Sequences of unequal lengths, packed position by position: first the first of each.

    Array nodes and inputs of a batch have as many rows as the sequences that are loaded have
    positions together.
    """

    sequences: int  # at most
    positions: int  # of a sequence, at most
    starts: int  # slot of the first row of every position, positions + 1 of them
    weights: int  # node of what the first row weighs in a loss

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return self.sequences * self.positions


class Mark(NamedTuple):
    """How far a tape had been recorded."""

    nodes: int
    records: int
    operands: int
    inputs: int
