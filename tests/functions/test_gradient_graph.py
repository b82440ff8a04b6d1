"""Gradients as nodes, and Hessian-vector products: against differences and by hand."""

import numpy as np
import pytest

from tapegpt.kernels.ops.scalar.formulas import FORMULAS
from tapegpt.tape import Tape, TapeError

NEAR = {"rtol": 1e-6, "atol": 1e-7}
CONSTANT = {"scale": -0.7, "pow": 2.5}


def differences(tape, root, ids, vector, step=1e-5):
    """The Hessian times a vector, from gradients on both sides."""
    found, before = [], tape.values_of(ids)
    for sign in (1, -1):
        tape.set_values(ids, before + sign * step * vector)
        tape.backward(root)
        found.append(tape.grads_of(ids))
    tape.set_values(ids, before)
    return (found[0] - found[1]) / (2 * step)


def compared(tape, root, ids):
    rng = np.random.default_rng(0)
    for _ in range(3):
        vector = rng.normal(size=ids.shape)
        expected = differences(tape, root, ids, vector)
        np.testing.assert_allclose(tape.hvp(root, ids, vector), expected, **NEAR)


@pytest.mark.parametrize(
    "formula", [f for f in FORMULAS if f.name != "detach"], ids=lambda formula: formula.name
)
def test_every_formula(formula):
    """Of numbers above and below each other, and weighed by what they are."""
    tape = Tape()
    ids = tape.variables([0.8, 1.7, 0.6])
    a, b, s = ids[:1], ids[1:2], ids[2:]
    if formula.goes_on:
        out = tape.multiply_adds(s, a, b)
    elif formula.second == "c":
        out = tape.elementwise(formula.name, a, [tape.constant(CONSTANT[formula.name]).id])
    else:
        out = tape.elementwise(formula.name, a, b if formula.second else None)
    root = tape.node(int(out[0])) * tape.node(int(b[0])) * tape.node(int(s[0])) + 1.0
    compared(tape, root * root, ids)


def test_lists_of_scalars():
    tape = Tape()
    ids = tape.variables([0.3, -1.2, 0.8, 2.0])
    x = ids.tolist()
    soft = tape.softmax(x)
    parts = [
        tape.dot(soft, x),
        tape.max(x) * soft[1],
        tape.sum([tape.exp(x[0]), *x]),
        tape.dot(x[:2], x[2:]),
        tape.node(int(tape.dots(ids[None], ids[None])[0])),
        tape.sum(tape.elementwise("mul", ids, ids).tolist()),
        tape.node(int(tape.take(ids[:1], tape.input([2], 4), 0, 1)[0])),
    ]
    root = tape.sum([part * part for part in parts])
    compared(tape, root, ids)


def test_rosenbrock_by_hand():
    tape = Tape()
    x, y = tape.var(-1.2), tape.var(1.0)
    loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    hessian = [[1200 * 1.44 - 400 + 2, 480], [480, 200]]
    for i in range(2):
        np.testing.assert_allclose(tape.hvp(loss, [x, y], np.eye(2)[i]), hessian[i], rtol=1e-14)


@pytest.mark.parametrize(("exponent", "second"), [(0, 0), (1, 0), (2, 2), (3, 0), (4, 0)])
def test_powers_at_zero(exponent, second):
    tape = Tape()
    x = tape.var(0.0)
    assert tape.hvp(tape.pow(x, exponent), [x], [1.0]).tolist() == [second]


def test_what_passes_no_gradient_is_never_steep():
    """The square root at 0 is infinitely steep, but counts for nothing."""
    tape = Tape()
    x, y = tape.var(0.0), tape.var(2.0)
    loss = tape.where(x > 1.0, tape.sqrt(x), y * y)
    assert tape.hvp(loss, [x, y], [1.0, 1.0]).tolist() == [0, 2]


def test_what_is_detached_is_a_constant():
    tape = Tape()
    x = tape.var(3.0)
    assert tape.hvp(tape.detach(x) * x * x, [x], [1.0]).tolist() == [6]


def test_gradients_of_gradients():
    tape = Tape()
    x = tape.var(2.0)
    node, values = x.exp() * x**3, []
    for _ in range(4):
        values.append(node.value)
        (node,) = tape.grad_nodes(node, [x])
    e = np.exp(2)
    assert values == pytest.approx([8 * e, 20 * e, 44 * e, 86 * e], rel=1e-12)
    x.value = 0.5
    assert node.value == pytest.approx(np.exp(0.5) * (0.125 + 12 * 0.25 + 36 * 0.5 + 24), rel=1e-12)


def test_the_tape_is_as_before():
    tape = Tape("float32")
    x = tape.variables([[1.0, 2.0]])
    loss = tape.sum(tape.elementwise("mul", x, x).ravel().tolist())
    tape.backward(loss)
    before = len(tape), tape.mark(), tape.grads_of(x).tolist()
    ids = x.ravel().tolist()
    assert tape.hvp(loss, x, [[1.0, 0.5]]).tolist() == [[2, 1]]
    with pytest.raises(TapeError, match="is not on the tape"):
        tape.hvp(loss, [10**6], [1.0])
    with pytest.raises(TapeError, match="is not a node id"):
        tape.hvp("loss", ids, [1.0, 1.0])
    assert before == (len(tape), tape.mark(), tape.grads_of(x).tolist())
    y = tape.var(1.0)
    assert tape.hvp(loss, [y], [1.0]).tolist() == [0]


def test_what_is_refused():
    tape = Tape()
    x, y = tape.var(1.0), tape.var(2.0)
    row = tape.array([[1.0, 2.0]]) * x
    for use, message in (
        (lambda: tape.hvp(row.mean() * y, [x], [1.0]), "an operation on arrays"),
        (lambda: tape.grad_nodes(row.mean() + x, [x]), "an operation on arrays"),
        (lambda: tape.hvp(x, [x], [1.0, 2.0]), r"the shape \(1,\), but a vector of \(2,\)"),
        (lambda: tape.hvp(x, [], []), "a list of scalar nodes"),
        (lambda: tape.hvp(x, [row], [1.0]), "is an array where a scalar"),
        (lambda: tape.grad_nodes(row, [x]), "is an array where a scalar"),
        (lambda: tape.hvp(x, [row.id + 1], [1.0]), "is part of the array"),
        (lambda: tape.hvp(tape.exp(row.id + 1), [x], [1.0]), "an operation on arrays"),
    ):
        with pytest.raises(TapeError, match=message):
            use()
    square = tape.array(np.eye(2)) * x
    for root in (
        (row @ square).mean(),
        tape.mean(tape.linear(tape.array(np.ones((3, 2))), square)),
        tape.mean(tape.take(square, [0, 1])),
        tape.mean(tape.array(np.ones((2, 2))) @ square),
    ):
        with pytest.raises(TapeError, match="an operation on arrays"):
            tape.hvp(root, [x], [1.0])
    # Where the array does not depend on the nodes it is a constant.
    assert tape.hvp(row.mean() * y * y, [y], [1.0]).tolist() == [3]
