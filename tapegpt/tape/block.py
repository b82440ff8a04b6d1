"""The vocabulary of a modern block: what is done to heads, and activations.

    tape = Tape()
    x = tape.array(numpy.ones((3, 8)))  # 3 rows, of 2 heads with 4 columns
    tables = tape.rotary_tables(positions=10, width=8, n_head=2)
    q = tape.rotary(tape.head_norm(x, n_head=2), tape.input([0, 1, 2], 10), tables)
    h = tape.softcap(tape.swiglu(q, tape.gelu(tape.relu_squared(x))), 30.0)

All of them raise TapeError for what has no meaning.
"""

import numpy as np

from tapegpt.kernels.layout import BATCH
from tapegpt.kernels.ops.activation import gelu, relu_squared, softcap, swiglu
from tapegpt.kernels.ops.elementwise import UnaryArgs
from tapegpt.kernels.ops.heads import head_norm, rotary
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import Array, Node
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Input, Number, TapeError

ROTARY_BASE = 10_000.0  # Su et al. 2021


class BlockOperations(Leaves):
    """Operations on arrays of rows, whose columns are those of heads, or elements alone."""

    @all_or_nothing
    def rotary_tables(
        self, positions: int, width: int, n_head: int, base: Number = ROTARY_BASE
    ) -> tuple[Array, Array]:
        """Two arrays for `rotary`, cosines and sines: (positions, width) both.

        Of the n pairs of a head, pair i turns by position / base^(i / n). (Su et al. 2021)
        """
        positions, width = self._count(positions, "positions"), self._count(width, "columns")
        n_head, base = self._count(n_head, "heads"), float(self._positive("rotary's base", base))
        if width % (2 * n_head):
            raise TapeError(f"rotary turns pairs: {width} columns are none for {n_head} heads")
        pairs = width // n_head // 2
        angles = np.outer(np.arange(positions), base ** (-np.arange(pairs) / pairs))
        every = np.tile(np.repeat(angles, 2, axis=1), n_head)
        signs = np.tile([-1.0, 1.0], width // 2)
        return self.array(np.cos(every)), self.array(signs * np.sin(every))

    @alone
    def rotary(self, x: Node, positions: Input, tables: tuple[Node, Node]) -> Array:
        """Every pair of neighbouring columns of x, (rows, width), turned by its row's angle.

        positions: of every row, below the rows of the tables, which `rotary_tables` makes. Scores
        of two rows then depend on their distance alone. (Su et al. 2021, RoFormer)
        """
        x, shape = self._given(x)
        if not isinstance(tables, tuple) or len(tables) != 2:
            raise TapeError(f"rotary wants the two tables of rotary_tables, not {tables!r:.60}")
        cosines, sines = (self._any(table) for table in tables)
        for table in (cosines, sines):
            known = self._array(table)
            if known.rows == BATCH or known.width != shape.width or shape.width % 2:
                raise TapeError(
                    f"rotary: a table of the shape {self.shape(table)} is none for"
                    f" {shape.width} columns"
                )
            if self._known(positions).below > known.rows:
                raise TapeError(f"rotary: {positions} goes beyond a table of {known.rows} rows")
        if positions.count != shape.rows or positions.width != 1:
            raise TapeError(f"rotary: {positions} is not a position for every row")
        arguments = rotary.Args(shape.rows, shape.width, x, positions.slot, cosines, sines)
        return self._record_array(rotary.ROTARY, shape, arguments)

    @all_or_nothing
    def head_norm(self, x: Node, n_head: int, gain: Number = 1.0, epsilon: Number = 1e-5) -> Array:
        """gain x / sqrt(mean(x^2) + epsilon), of every head of every row by itself.

        x: (rows, width), n_head heads of as many columns each. gain: above 0. (QK-norm: Henry et
        al. 2020)
        """
        (x, shape), n_head = self._given(x), self._count(n_head, "heads")
        if shape.width % n_head:
            raise TapeError(f"head_norm: {shape.width} columns are not divisible by {n_head} heads")
        head_dim = shape.width // n_head
        arguments = head_norm.Args(
            shape.rows,
            n_head,
            head_dim,
            x,
            self.constant(self._positive("head_norm's gain", gain)).id,
            self.constant(epsilon).id,
            scales=self._capacity(shape.rows) * n_head,
        )
        return self._record_array(head_norm.HEAD_NORM, shape, arguments)

    @alone
    def relu_squared(self, x: Node) -> Array:
        """max(0, x)^2, element by element. (So et al. 2021, Primer)"""
        x, shape = self._given(x)
        arguments = UnaryArgs(shape.rows, shape.width, x)
        return self._record_array(relu_squared.RELU_SQUARED, shape, arguments)

    @alone
    def gelu(self, x: Node) -> Array:
        """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. (Hendrycks and Gimpel 2016)"""
        x, shape = self._given(x)
        return self._record_array(gelu.GELU, shape, UnaryArgs(shape.rows, shape.width, x))

    @alone
    def swiglu(self, x: Node, gate: Node) -> Array:
        """x gate / (1 + e^-gate), of arrays of one shape. (Shazeer 2020)"""
        (x, shape), (gate, other) = self._given(x), self._given(gate)
        if shape != other:
            raise TapeError(f"swiglu: the shapes {self.shape(x)} and {self.shape(gate)} differ")
        arguments = swiglu.Args(shape.rows, shape.width, x, gate)
        return self._record_array(swiglu.SWIGLU, shape, arguments)

    @all_or_nothing
    def softcap(self, x: Node, cap: Number) -> Array:
        """cap tanh(x / cap), element by element, for a cap above 0. (Gemma 2, 2024)"""
        x, shape = self._given(x)
        node = self.constant(self._positive("softcap", cap)).id
        arguments = softcap.Args(shape.rows, shape.width, x, node)
        return self._record_array(softcap.SOFTCAP, shape, arguments)

    def _positive(self, what: str, number: Number) -> float:
        plain = float(self._number(number))
        if not 0 < plain < float("inf"):
            raise TapeError(f"{what} is a finite number above 0, not {number!r:.60}")
        return plain
