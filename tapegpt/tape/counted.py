"""What counting knows, as nodes of a tape.

table = CountTable([numpy.array([0, 1, 0, 1])], vocab_size=2, orders=1, before=2)
tape = Tape()
f = tape.counted_features(table, [[0, 1, 2]])  # what follows 0, 1, and the beginning
p = numpy.exp(5 * tape.value(f)[:, :2])  # (3 rows, 2 tokens)
"""

from collections.abc import Sequence

from tapegpt.counting.table import CountTable
from tapegpt.kernels.ops.counting import features as counted
from tapegpt.kernels.ops.counting import gated_sum
from tapegpt.tape.guards import all_or_nothing
from tapegpt.tape.handles import Array, Node
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Input, Shape, TapeError


class CountedOperations(Leaves):
    """Features from a table of counts, and a sum of them through gates."""

    @all_or_nothing
    def counted_features(
        self,
        table: CountTable,
        tokens: Sequence[Input] | Sequence[Sequence[int]],
        folds: Input | Sequence[int] | None = None,
    ) -> Array:
        """A fifth of the log-probabilities of the next token after 1, 2, ... tokens, and more.

        tokens: a row's last token, the one before that, ..., `table.orders` of them, each below
        vocab_size or what stands before a beginning. folds: the one that is left out of a row,
        numbered from 1 on; 0 for none. The result, (rows, orders * (vocab_size + 2)), has behind
        the probabilities of every order ln(1 + how many tokens have followed the context), and then
        for every order the share of its counts. (Chen and Goodman 1998)
        """
        if not isinstance(table, CountTable) or not isinstance(tokens, (list, tuple)):
            raise TapeError("counted_features wants a CountTable, and a list of tokens a distance")
        symbols = table.vocab_size + 1
        last = [x if isinstance(x, Input) else self.input(x, symbols) for x in tokens]
        if len(last) != table.orders:
            raise TapeError(f"counted_features wants {table.orders} tokens a row, not {len(last)}")
        rows = self._known(last[0]).count
        if folds is None:
            folds = [0] * self._capacity(rows)
        left_out = folds if isinstance(folds, Input) else self.input(folds, 1 + table.folds)
        for which, below in (*((x, symbols) for x in last), (left_out, 1 + table.folds)):
            if self._known(which).below > below or which.count != rows or which.width != 1:
                raise TapeError(f"counted_features: {which} does not fit the table or the rows")
        capacity = self._capacity(rows)
        if any(x.slot != last[0].slot + k * capacity for k, x in enumerate(last)):
            raise TapeError("counted_features: inputs of tokens are made one after the other")
        self._tables.add(table)  # which has to outlive the records
        place = len(self._inputs)
        self._inputs.extend(table.places)
        width = table.orders * (table.vocab_size + 2)
        shape = Shape(rows, width, self._stride(width))
        arguments = counted.Args(
            rows,
            width,
            table.orders,
            table.vocab_size,
            last[0].slot,
            capacity,
            left_out.slot,
            place,
        )
        return self._record_array(counted.FEATURES, shape, arguments)

    @all_or_nothing
    def gated_sum(self, x: Node, gates: Node, bias: Node, features: Node, factor: float) -> Array:
        """x + factor (the last piece of features + the sum of (gate + bias) times every piece).

        x: (rows, width); gates: (rows, pieces); bias: (1, pieces); features: (rows, pieces * width)
        or wider, to which no gradient is passed.
        """
        (x, shape), (gates, known) = self._given(x), self._given(gates)
        (bias, other), (features, wide) = self._given(bias), self._given(features)
        pieces = known.width
        if known.rows != shape.rows or wide.rows != shape.rows:
            raise TapeError("gated_sum: x, gates and features have as many rows")
        if (other.rows, other.width) != (1, pieces) or wide.width < pieces * shape.width:
            raise TapeError(
                f"gated_sum: {self.shape(bias)} and {self.shape(features)} are no bias and features"
                f" for {pieces} gates and {shape.width} columns"
            )
        arguments = gated_sum.Args(
            shape.rows,
            shape.width,
            pieces,
            x,
            gates,
            bias,
            features,
            wide.width,
            self.constant(factor).id,
        )
        return self._record_array(gated_sum.GATED_SUM, shape, arguments)
