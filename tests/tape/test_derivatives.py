"""Derivatives on call: seeds, products with the Jacobian, and the check of a gradient."""

import numpy as np
import pytest

from tapegpt.tape import Tape, TapeError


def test_gradients_seeds_and_products_with_the_jacobian() -> None:
    tape = Tape()
    w, b = tape.array(np.ones((1, 3))), tape.var(2.0)
    x = np.arange(6.0).reshape(2, 3)
    y = (tape.array(x) * w).sum(1) * b
    loss = (y**2).mean()
    dw, db = tape.grad(loss, [w, b])
    sums = x.sum(1)
    np.testing.assert_allclose(dw, [4 * (sums[:, None] * x).sum(0)])
    assert db == pytest.approx(2 * (sums**2).sum())
    (of_seed,) = tape.grad(y, [w], seed=[[1.0], [-1.0]])
    assert of_seed.tolist() == [(2 * (x[0] - x[1])).tolist()]
    assert tape.jvp(y, [w, b], [np.ones((1, 3)), 0.5]).tolist() == [[7.5], [30.0]]
    assert tape.jvp(loss, [b], [1.0]) == pytest.approx(db)
    assert tape.check(loss, [w, b]) < 1e-8
    assert (b.value, w.value.tolist()) == (2, [[1, 1, 1]])


def test_a_wrong_gradient_is_found() -> None:
    tape = Tape()
    a = tape.var(1.5)
    with pytest.raises(TapeError, match="but differences give 3"):
        tape.check(a * tape.detach(a), [a])


def test_a_check_that_is_refused_leaves_the_gradients() -> None:
    tape = Tape()
    a, x = tape.var(1.5), tape.array([[1.0, 2.0]])
    b = a * a
    tape.backward(b)
    for root, leaf, message in (
        (b * a, b, "is the result of an operation"),
        (x.sum(), x.id + 1, "is part of the array"),
        (a * tape.detach(a), a, "but differences give 3"),
    ):
        with pytest.raises(TapeError, match=message):
            tape.check(root, [leaf])
        assert (a.grad, b.grad, a.value) == (3, 1, 1.5)


def test_a_check_that_is_refused_gives_no_gradient_to_what_has_none() -> None:
    tape = Tape()
    w, data = tape.parameter([[1.5]]), tape.array([[2.0]])
    loss = (w @ data).mean()
    tape.sgd(lr=0.1).step(loss)
    for _ in range(2):
        with pytest.raises(TapeError, match="gradient"):
            tape.grad(data)
        with pytest.raises(TapeError, match="differences"):
            tape.check((w * tape.detach(w)).mean(), [w])


def test_misuse_of_derivatives() -> None:
    tape = Tape()
    a, x = tape.var(1.0), tape.array([[1.0, 2.0]])
    for use, message in (
        (lambda: tape.backward(x), "is an array"),
        (lambda: tape.backward(x, seed=[1.0, 2.0]), "a seed of the shape"),
        (lambda: tape.jvp(a, [a], []), "but 0 tangents"),
        (lambda: tape.jvp(a, [x], [1.0]), "a tangent of the shape"),
        (lambda: x[:, 2], "is not a column"),
        (lambda: x[::2], "slices of step 1"),
        (lambda: x @ x, "do not match"),
        (lambda: bool(x), "neither true nor false"),
    ):
        with pytest.raises(TapeError, match=message):
            use()
