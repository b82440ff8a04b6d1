"""An operation of one's own on arrays, from two functions over rows and columns.

    @operation
    def add_bias(out, x, b):
        for r in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[r, c] = x[r, c] + b[0, c]

    @add_bias.backward
    def _(dout, out, x, b, dx, db):
        for r in range(dout.shape[0]):
            for c in range(dout.shape[1]):
                dx[r, c] += dout[r, c]
                db[0, c] += dout[r, c]

    y = add_bias(x, b)

Both are compiled by Numba, with the flags of the tape's own kernels, into kernels that the tape
calls as it calls those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, overload

import numpy as np

from tapegpt.functions.checking import check_gradient
from tapegpt.functions.fingerprint import fingerprint
from tapegpt.functions.registered import arrays_of, record, registered, tape_of
from tapegpt.kernels.compile.jit import jit_source, jit_users
from tapegpt.kernels.compile.views import rows_of
from tapegpt.kernels.layout import BATCH
from tapegpt.kernels.op import ArrayOp, Differentiable, Kind, readers
from tapegpt.tape import Tape
from tapegpt.tape.types import Shape, TapeError

Extent = tuple[int, int]  # rows and columns

FORWARD = """
def {name}_forward(values, operands, inputs, out, at, batch_range):
    a = args(operands, at)
    users({out}, {given})
"""

BACKWARD = """
def {name}_backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
{gradients}
    users({dout}, {out}, {given}, {passed})
"""

GRADIENT = """
    d{name} = rows_of(grads, g.d{name}, a.{name}_rows, a.{name}_width, batch_range)
    if g.overwrite_d{name}:
        for r in range(d{name}.shape[0]):
            for c in range(d{name}.shape[1]):
                d{name}[r, c] = 0
"""


class Operation:
    """An operation made by `operation`."""

    def __init__(
        self,
        forward: Callable[..., None],
        shape: Callable[..., Extent] | None = None,
        check: bool = False,
        row_by_row: bool = False,
    ) -> None:
        self._row_by_row = row_by_row
        self.name, self.__doc__ = forward.__name__, forward.__doc__
        self._forward, self._shape, self._check = forward, shape, check
        parameters = _parameters(forward)
        if len(parameters) < 2:
            raise TapeError(f"{self.name}: forward takes out and then one operand or more")
        self.operands = tuple(parameters[1:])
        self._backward: Callable[..., None] | None = None
        self._operation: ArrayOp | None = None

    def __repr__(self) -> str:
        return f"<operation {self.name}({', '.join(self.operands)})>"

    def backward(self, function: Callable[..., None]) -> Callable[..., None]:
        """Take the function that adds to the operands' gradients, by `+=`."""
        wanted = 2 + 2 * len(self.operands)
        given = _parameters(function)
        if len(given) != wanted:
            names = ["dout", "out", *self.operands, *(f"d{name}" for name in self.operands)]
            raise TapeError(
                f"{self.name}: backward takes {wanted} arrays, ({', '.join(names)}), not"
                f" {len(given)}"
            )
        if self._operation is not None:
            raise TapeError(f"{self.name}: its backward comes before its first use")
        self._backward = function
        return function

    def __call__(self, *x: Any) -> Any:
        """Record it on arrays: handles, or a tape and ids."""
        tape, nodes = tape_of(self.name, x, len(self.operands))
        shapes = arrays_of(self.name, tape, nodes)
        operation = self.operation
        if self._check:
            self._check = False  # it is used in the check
            try:
                self.check(*(tape.value(node) for node in nodes))
            except TapeError:
                self._check = True
                raise
        result = self._result(tape, shapes)
        sizes = [size for shape in shapes for size in (shape.rows, shape.width)]
        arguments = operation.args(result.rows, result.width, *nodes, *sizes)
        return record(tape, operation, result, arguments)

    def check(self, *x: Any) -> None:
        """Raise TapeError where the gradient is not that of the values, at these operands."""
        check_gradient(self, [np.atleast_2d(np.asarray(value, float)) for value in x])

    def width_of(self, *widths: int) -> int:
        """The columns of the result, from those of the operands."""
        if self._shape is None:
            return widths[0]
        return self._shape(*((BATCH, width) for width in widths))[1]

    @property
    def operation(self) -> ArrayOp:
        """The operation that tapes record."""
        if self._operation is None:
            if self._backward is None:
                raise TapeError(
                    f"{self.name} has no backward yet: give it one, @{self.name}.backward"
                )
            self._operation = registered(self._made(self._backward))
        return self._operation

    def _result(self, tape: Tape, shapes: Sequence[Shape]) -> Shape:
        """The shape of the result: the first operand's, unless the operation says."""
        if self._shape is None:
            return shapes[0]
        extents = [(shape.rows, shape.width) for shape in shapes]
        made = self._shape(*extents)
        try:
            rows, width = made
            rows = BATCH if rows == BATCH else tape._count(rows, "rows")
            width = tape._count(width, "columns")
        except (TypeError, ValueError) as error:
            raise TapeError(f"{self.name}: {made!r:.60} is no shape, (rows, columns)") from error
        return Shape(rows, width, tape._stride(width))

    def _made(self, backward: Callable[..., None]) -> ArrayOp:
        number = Annotated[int, Kind.NUMBER]
        fields: list[Any] = [("rows", number), ("width", number)]
        fields += [(name, Differentiable) for name in self.operands]
        fields += [
            (f"{name}_{size}", number) for name in self.operands for size in ("rows", "width")
        ]
        args_type: Any = NamedTuple("Args", fields)  # type: ignore[misc]
        args, grads_of = readers(args_type)
        parts = {
            "name": self.name,
            "out": "rows_of(values, out, a.rows, a.width, batch_range)",
            "dout": "rows_of(grads, g.dout, a.rows, a.width, batch_range)",
            "given": ", ".join(
                f"rows_of(values, a.{name}, a.{name}_rows, a.{name}_width, batch_range)"
                for name in self.operands
            ),
            "passed": ", ".join(f"d{name}" for name in self.operands),
            "gradients": "".join(GRADIENT.format(name=name) for name in self.operands),
        }
        scope = {"rows_of": rows_of, "args": args, "grads_of": grads_of}

        def kernel(template: str, users: Callable[..., None], end: str) -> Callable[..., Any]:
            known = fingerprint(users)
            names = {**scope, "users": jit_users(users)}
            identity = None if known is None else (self.name, known)
            return jit_source(template.format(**parts), f"{self.name}_{end}", names, identity)

        return ArrayOp(
            self.name,
            args_type,
            kernel(FORWARD, self._forward, "forward"),
            kernel(BACKWARD, backward, "backward"),
            backward_reads=(*self.operands, "out"),
            row_by_row=self._row_by_row,
        )


@overload
def operation(
    forward: Callable[..., None],
    *,
    shape: Callable[..., Extent] | None = None,
    check: bool = False,
    row_by_row: bool = False,
) -> Operation: ...
@overload
def operation(
    *,
    shape: Callable[..., Extent] | None = None,
    check: bool = False,
    row_by_row: bool = False,
) -> Callable[[Callable[..., None]], Operation]: ...
def operation(
    forward: Callable[..., None] | None = None,
    *,
    shape: Callable[..., Extent] | None = None,
    check: bool = False,
    row_by_row: bool = False,
) -> Any:
    """Make an operation on arrays of a function `forward(out, x, ...)` over 2-D arrays.

        @operation(shape=lambda x: (x[1], x[0]))
        def transpose(out, x):
            for r in range(out.shape[0]):
                for c in range(out.shape[1]):
                    out[r, c] = x[c, r]

        @transpose.backward
        def _(dout, out, x, dx):
            for r in range(dout.shape[0]):
                for c in range(dout.shape[1]):
                    dx[c, r] += dout[r, c]

    Numba compiles both. They fill in `out`, and add to the gradients of the operands; a whole
    vector at a time too, by `simd` and `vmath`. shape: (rows, columns) of the result from those of
    the operands, the first one's if not given; of a batch array the rows are -1. check: compare the
    gradient with differences when it is first used. row_by_row: a row of the result is made of the
    same rows of the operands alone, which may then be computed in any order: in a recurrence too.

    Array bounds are checked where NUMBA_BOUNDSCHECK=1; otherwise a wrong index damages the tape.
    """
    if forward is None:
        return lambda forward: Operation(forward, shape, check, row_by_row)
    return Operation(forward, shape, check, row_by_row)


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)
