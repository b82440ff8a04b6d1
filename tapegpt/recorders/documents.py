"""The batch of a network: documents of tokens, as its recorders and the training loop know them."""

from typing import NamedTuple

from tapegpt.counting.table import CountTable
from tapegpt.kernels.layout import NONE
from tapegpt.kernels.program import Slots
from tapegpt.tape import Batch, Input, Tape

LARGEST_KEY = 2**63 - 1  # of dropout


class Documents(NamedTuple):
    """What every row of a batch of documents has."""

    batch: Batch
    tokens: Input
    positions: Input
    targets: Input
    earlier: tuple[Input, ...]  # the token before, the one before that, ...
    key: Input  # of dropout, one number
    # With a table of counts: the token, the one before it, ..., and the fold that is left out.
    history: tuple[Input, ...]
    folds: Input | None
    before: int  # tokens that a text has before each of its windows

    @property
    def slots(self) -> Slots:
        """Where a program has them."""
        return Slots(
            starts=self.batch.starts,
            tokens=self.tokens.slot,
            positions=self.positions.slot,
            targets=self.targets.slot,
            capacity=self.batch.capacity,
            look_back=len(self.earlier),
            earlier=self.earlier[0].slot if self.earlier else NONE,
            orders=len(self.history),
            history=self.history[0].slot if self.history else NONE,
            folds=NONE if self.folds is None else self.folds.slot,
            before=self.before,
            key=self.key.slot,
        )


def declare_documents(
    tape: Tape,
    documents: int,
    block: int,
    vocab_size: int,
    look_back: int = 0,
    table: CountTable | None = None,
) -> Documents:
    """Declare the batch of a tape: so many documents, of `block` tokens at most.

    look_back: how many earlier tokens of its document a row has beside its own. table: of counts,
    for which a row has its last tokens, and the fold that is left out.
    """

    def inputs(count: int, below: int) -> tuple[Input, ...]:
        # One behind the other: kernels find the next `capacity` numbers further on.
        return tuple(tape.batch_input(below) for _ in range(count))

    return Documents(
        batch=tape.batch(documents, block),
        tokens=tape.batch_input(vocab_size),
        positions=tape.batch_input(block),
        targets=tape.batch_input(vocab_size),
        earlier=inputs(look_back, vocab_size),
        key=tape._new_input([0], 1, LARGEST_KEY),
        history=inputs(0 if table is None else table.orders, vocab_size + 1),
        folds=None if table is None else tape.batch_input(1 + table.folds),
        before=0 if table is None else table.tokens_before,
    )
