"""Declarations of operations: what is derived from them, and what a wrong one is told."""

from typing import NamedTuple

import numpy as np
import pytest

from tapegpt.errors import TapegptError
from tapegpt.kernels import registry
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.op import (
    ArrayOp,
    Differentiable,
    GradientRoom,
    Rest,
    Room,
    Rows,
    gradient_place,
    place,
    readers,
)
from tapegpt.kernels.ops.elementwise import UnaryArgs, unary_args, unary_grads
from tapegpt.kernels.ops.scalar.formulas import FORMULAS, NOTHING, Formula
from tapegpt.tape import Tape


class Args(NamedTuple):
    rows: Rows
    x: Differentiable
    room: GradientRoom
    kept: Room
    y: Differentiable
    more: Rest


args, grads_of = readers(Args)


@jit
def read(operands, at):
    a, g = args(operands, at), grads_of(operands, at)
    arguments = (a.rows, a.x, a.room, a.kept, a.y, a.more)
    return arguments, (g.overwrite, g.dout, g.dx, g.dy, g.droom, g.overwrite_dx, g.overwrite_dy)


def test_arguments_are_read_in_the_order_in_which_they_are_declared():
    operands = np.array([99, 2, 11, 12, 13, 14, 15])
    arguments, gradients = read(operands, 1)
    assert arguments == (2, 11, 12, 13, 14, 1 + 5)
    # overwrite and dout, then what a gradient is passed to, then room; bit 1 is that of y.
    assert gradients == (2, 11, 12, 13, 14, 0, 2)


def test_places():
    assert [place(Args, name) for name in ("rows", "y", "more")] == [0, 4, 5]
    assert [gradient_place(Args, name) for name in ("x", "y", "room")] == [2, 3, 4]


@jit
def square_forward(values, operands, inputs, out, at, batch_range):
    rows, width, x = unary_args(operands, at)
    first, last = row_range(rows, batch_range)
    row = row_stride(values, width)
    for i in range(first * row, last * row):
        values[out + i] = values[x + i] * values[x + i]


@jit
def square_backward(values, grads, operands, inputs, out, at, back, batch_range):
    rows, width, x = unary_args(operands, at)
    g = unary_grads(operands, back)
    first, last = row_range(rows, batch_range)
    row = row_stride(values, width)
    for i in range(first * row, last * row):
        passed = 2 * values[x + i] * grads[g.dout + i]
        grads[g.dx + i] = passed if g.overwrite_dx else grads[g.dx + i] + passed


SQUARE = ArrayOp("square", UnaryArgs, square_forward, square_backward, backward_reads=("x",))


class MyTape(Tape):
    def square(self, x):
        """x^2, element by element."""
        x, shape = self._given(x)
        return self._record_array(SQUARE, shape, UnaryArgs(shape.rows, shape.width, x))


@pytest.fixture
def registered():
    registry.register(SQUARE)
    yield
    del registry.CODES[SQUARE]
    registry.OPERATIONS.pop()
    registry.KERNELS.pop()


def test_an_operation_from_elsewhere(registered):
    tape = MyTape()
    x = tape.array(np.arange(6.0).reshape(2, 3))
    root = tape.mean(tape.square(x))
    tape.backward(root)
    assert tape.value(root) == 55 / 6
    np.testing.assert_allclose(tape.grad(x), np.arange(6.0).reshape(2, 3) / 3, rtol=1e-15)


def test_operations_that_no_record_could_name_are_refused(monkeypatch):
    known = len(registry.OPERATIONS)
    monkeypatch.setattr(registry, "OPCODE", known - 1)
    with pytest.raises(TapegptError, match=f"room for {known} operations"):
        registry.register(SQUARE)
    assert len(registry.OPERATIONS) == known
    assert SQUARE not in registry.CODES


def test_every_opcode_is_that_of_its_operation():
    for code, operation in enumerate(registry.OPERATIONS):
        assert code - registry.CODES[operation] in range(5)
    assert len(registry.KERNELS) == len(registry.OPERATIONS)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (("halve", "a / 2", "dou / 2"), "dou"),
        (("halve", "x / 2", "dout / 2"), "x"),
        (("halve", "zero", "dout"), "does not depend on a"),
        (("plus", "a + b", "dout"), "b and its gradient"),
        (("plus", "a + c", "dout", "dout"), "b and its gradient"),
    ],
)
def test_an_incomplete_formula_is_refused(row, wrong):
    with pytest.raises(ValueError, match=wrong):
        Formula(*row)


def test_a_formula_has_a_gradient_or_says_that_it_has_none():
    with pytest.raises(TypeError, match="da"):
        Formula("halve", "a / 2")
    assert [formula.name for formula in FORMULAS if formula.da == NOTHING] == [
        *("detach", "less", "at_most", "equal", "where_true", "where_false")
    ]
