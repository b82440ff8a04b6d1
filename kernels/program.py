"""What a kernel needs in order to replay a recorded model on new documents."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TapeArrays(NamedTuple):
    """The arrays of a tape, see layout.py, and the addresses of the kernels that it calls."""

    kernels: NDArray[np.int64]  # (opcodes, 2): forward and backward, 0 where not loaded
    values: NDArray[np.floating]
    grads: NDArray[np.floating]
    records: NDArray[np.uint32]
    operands: NDArray[np.int64]
    inputs: NDArray[np.int64]


class Slots(NamedTuple):
    """Where in `inputs` a program reads the documents of a batch.

    One number a row unless it says otherwise.
    """

    starts: int  # the first row of each position: block + 1 of them
    tokens: int
    positions: int
    targets: int
    capacity: int  # rows that there is room for
    # The look_back tokens before each, the nearest first, `capacity` rows for each of them,
    # delimiters before the start.
    look_back: int
    earlier: int
    # Of a network with a table of counts, else nothing: the token of a row and those before it, the
    # nearest first, as `earlier`, and the fold that is left out. A text has `before` tokens before
    # each of its windows.
    orders: int  # tokens of a row
    history: int
    folds: int
    before: int
    key: int  # of dropout, one number, 0 for none


class Program(NamedTuple):
    """The arrays of a tape, and where the model's inputs and outputs lie in it.

    An unrolled program records every position of one document, one after the other: a prefix of
    its records serves a shorter document. Any other runs each record over the rows of a batch: all
    at once or, in a recurrence, position by position.
    """

    tape_arrays: TapeArrays
    num_params: int  # nodes, padding included: whole vectors
    vocab_size: int
    unrolled: bool

    # Records: those of the first p positions end at ends[p], those for the logits of position p
    # at logit_ends[p]; ends[0] is 0.
    ends: NDArray[np.int64]  # (block + 1,)
    logit_ends: NDArray[np.int64]  # (block,)

    # Nodes: the loss of p positions, one past the last node of p positions, the first logit of
    # position p (in row 0, where rows are logits_row apart), the first row's weight in the loss.
    # Training minimizes roots: for an ensemble the mean of its networks' losses. Evaluation reads
    # common_roots: the loss of their mean logits.
    roots: NDArray[np.int64]  # (block + 1,)
    common_roots: NDArray[np.int64]  # (block + 1,)
    tops: NDArray[np.int64]  # (block + 1,)
    logits: NDArray[np.int64]  # (block,)
    logits_row: int
    weights: int
    clear: NDArray[np.int64]  # (ranges, 2): nodes whose gradients no record overwrites
    # Of an ensemble, unless unrolled, a row a network: its first record, one past its last, the
    # record of its loss and the node of that. What comes after the last of these is their mean.
    networks: NDArray[np.int64]  # (networks, 4)

    slots: Slots
    placed: NDArray[np.int64]  # (block + 1,): scratch for packing
    # Scratch for sampling: which text each document of a sweep is, how likely its tokens are, and
    # running totals of one row.
    documents: NDArray[np.int64]  # (documents,)
    likelihoods: NDArray[np.floating]  # (documents + 1, vocab_size), whole vectors, flat
