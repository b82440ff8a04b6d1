"""The counts as kernels look them up, see kernels/ops/counting/features.py."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from tapegpt.counting.grams import Floats, Grams, Ids, Order, count_grams, discounts
from tapegpt.errors import TapegptError

NODE_BYTES = 16
LOSS_BYTES = 8
# Of the arrays beside a table while it is made: places of all orders, and what is sorted.
MADE_OF = 8


class CountTable:
    """A tree of what has been seen, and all that is needed to leave a fold out.

    Its arrays never move or change, because programs know where they lie. Text is counted in
    parts, each with the number of its fold: what is asked of fold f is as if it had not been there.

    texts: of token ids below vocab_size, (length,) each. orders: tokens of a context, at most.
    before: what stands before the beginning of every text, a token or vocab_size.
    folds: the one of each text, from 0 on; None: none is ever left out. Raises TapegptError for
    other tokens, and for no orders.
    """

    def __init__(
        self,
        texts: Sequence[NDArray[np.integer]],
        vocab_size: int,
        orders: int,
        before: int,
        folds: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> None:
        self.vocab_size, self.orders, self.before = vocab_size, orders, before
        if orders < 1 or any(np.min(x) < 0 or np.max(x) >= vocab_size for x in texts if len(x)):
            raise TapegptError("counts are of tokens below vocab_size, after one of them at least")
        counted = count_grams(texts, vocab_size + 1, before, orders, folds)
        self.folds = counted.folds
        self.nodes, self.losses = _tree(counted)
        first = _of_empty_context(counted.orders[0], vocab_size, counted.folds)
        rest = [discounts(x.counts, x.missing, counted.folds) for x in counted.orders[1:]]
        self.numbers: Floats = np.concatenate(
            [first.ravel(), np.stack(rest, axis=1).ravel() if rest else np.zeros(0)]
        )
        for array in (self.nodes, self.losses, self.numbers):
            array.setflags(write=False)

    @property
    def tokens_before(self) -> int:
        """How many tokens of a text stand before each of its windows, for counts to know.

        A document has none: what begins it stands before it as often as one likes.
        """
        return self.orders - 1 if self.before == self.vocab_size else 0

    @property
    def places(self) -> list[int]:
        """Where the arrays lie, and how many numbers each has."""
        arrays: tuple[NDArray[Any], ...] = (self.nodes, self.losses, self.numbers)
        return [number for array in arrays for number in (array.ctypes.data, array.size)]

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TapegptError("a table of counts cannot be pickled: make it anew from its texts")


def bytes_of(tokens: int, orders: int, crossed: bool) -> int:
    """About as many bytes as a table of so many tokens takes while it is made, at most."""
    nodes = tokens * (orders + 1)
    kept = nodes * (NODE_BYTES + (LOSS_BYTES if crossed else 0))
    return kept + nodes * MADE_OF * (2 if crossed else 1)


def _tree(counted: Grams) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Nodes, (4 * (nodes + 1),): the first that follows it, its token, its count, and its first
    loss; and losses, (2 * losses,): the fold, from 1 on, and how much is lost without it.

    The root comes first, then all grams of one token, all of two, and so on. What follows a node
    lies side by side, up to where what follows the next node begins.
    """
    sizes = [1, *(len(order.grams) for order in counted.orders)]
    begins = list(accumulate(sizes, initial=0))
    nodes = np.zeros((begins[-1] + 1, 4), np.int32)
    nodes[:, 0], nodes[0, 0] = begins[-1], 1
    losses, total = [], 0
    for depth, order in enumerate(counted.orders):
        begin, end = begins[depth + 1 : depth + 3]
        context, token = np.divmod(order.grams, counted.symbols)
        followed = np.bincount(context, minlength=sizes[depth])
        nodes[begins[depth] : begin, 0] = begin + np.cumsum(followed) - followed
        nodes[begin:end, 1], nodes[begin:end, 2] = token, order.counts
        lost = np.bincount(order.missing.grams, minlength=len(token))
        nodes[begin:end, 3] = total + np.cumsum(lost) - lost
        losses.append(np.stack([order.missing.folds + 1, order.missing.counts], axis=1))
        total += len(order.missing.grams)
    nodes[-1, 3] = total
    return nodes.ravel(), np.concatenate(losses).astype(np.int32).ravel()


def _of_empty_context(order: Order, vocab_size: int, folds: int) -> Floats:
    """How likely every token is whatever stood before, with all and without each fold:
    (1 + folds, vocab_size).
    """
    counts = np.zeros((1 + folds, order.grams.max(initial=vocab_size) + 1))
    counts[:, order.grams] = order.counts
    lost: Ids = order.missing.counts
    counts[1 + order.missing.folds, order.grams[order.missing.grams]] -= lost
    counts = counts[:, :vocab_size]
    likely: Floats = (counts + 1 / vocab_size) / (counts.sum(1, keepdims=True) + 1)
    return likely
