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
    """The rows of packed documents: as many as the loaded batch has, at most documents x block."""

    documents: int
    block: int
    tokens: Input
    positions: Input
    targets: Input
    starts: int  # slot of the first row of every position, block + 1 of them
    weights: int
    earlier: tuple[Input, ...]  # the token before, the one before that, ...
    key: Input  # of dropout, one number
    # Of a batch with a table of counts: the token, the one before it, ..., and the fold left out.
    history: tuple[Input, ...] = ()
    folds: Input | None = None


class Mark(NamedTuple):
    """How far a tape had been recorded."""

    nodes: int
    records: int
    operands: int
    inputs: int
