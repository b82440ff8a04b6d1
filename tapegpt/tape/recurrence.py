"""The vocabulary for rows that go on from the position before."""

from collections.abc import Callable

from tapegpt.kernels.layout import BATCH, NONE, OPCODE
from tapegpt.kernels.op import ArrayOp, gradient_place, place
from tapegpt.kernels.ops.recurrence import CARRY, PREVIOUS, CarryArgs, PreviousArgs
from tapegpt.kernels.registry import OPERATIONS
from tapegpt.tape.guards import all_or_nothing, alone
from tapegpt.tape.handles import Array, Node
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Shape, TapeError


class Recurrence(Leaves):
    """A stretch of operations that is computed position by position."""

    @all_or_nothing
    def scan(self, step: Callable[[Array], Array], width: int) -> Array:
        """A state that goes on from position to position: a batch array, (rows, width).

            h = tape.scan(lambda before: tape.relu(tape.linear(before, w, residual=x)), width)

        step: called once, with the state of the position before, zeros at the first; what it gives
        is the state. It records operations on batch arrays alone, row by row: no attention, and
        none that gives a single number. (Named as `jax.lax.scan`.)
        """
        if not callable(step):
            raise TapeError(f"scan wants a function of the state before, not {step!r:.60}")
        return self._carry(step(self._previous(width)))

    @all_or_nothing
    def _previous(self, width: int) -> Array:
        """A batch array: what `_carry` is given, a position earlier; zeros at the first."""
        if self._recurrence is not None:
            raise TapeError("scan: the step of another scan is not done")
        starts, width = self._declared_batch.starts, self._count(width, "columns")
        record = len(self._records) // 4
        shape = Shape(BATCH, width, self._stride(width))
        arguments = PreviousArgs(BATCH, width, x=NONE, starts=starts)
        out = self._record_array(PREVIOUS, shape, arguments)
        self._recurrence = record
        self._go_on_from(record, out.id)  # rows of zeros, as long as nothing is carried
        return out

    def _go_on_from(self, record: int, x: int) -> None:
        _, _, at, back = self._records[4 * record : 4 * record + 4]
        self._operands[at + place(PreviousArgs, "x")] = x
        self._operands[back + gradient_place(PreviousArgs, "x")] = x

    @alone
    def _carry(self, x: Node) -> Array:
        """Have `_previous` be the rows of x, and end what is computed position by position."""
        record = self._recurrence
        if record is None:
            raise TapeError("there is no recurrence: record it by scan")
        _, state, at, _ = self._records[4 * record : 4 * record + 4]
        if self._array(x) != self._shapes[state]:
            raise TapeError(f"scan: a state of {self.shape(state)} cannot become {self.shape(x)}")
        for i in range(4 * (record + 1), len(self._records), 4):
            opcode, _, arguments, _ = self._records[i : i + 4]
            operation = OPERATIONS[opcode & OPCODE]
            by_row = isinstance(operation, ArrayOp) and operation.row_by_row
            if not by_row or self._operands[arguments] != BATCH:
                raise TapeError("in a scan every operation is one on batch arrays, row by row")
        starts = self._operands[at + place(PreviousArgs, "starts")]
        self._record_number(CARRY, CarryArgs(starts))
        self._go_on_from(record, self._any(x))
        self._recurrence = None
        self._evaluated = min(self._evaluated, record)
        return self._array_handle(self._any(x))
