"""tape.function of very many inputs: a sum of terms that are all alike."""

from itertools import pairwise

import numpy as np
import pytest

from tapegpt import Tape, TapeError

COUNT = 1501


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def rosenbrock_gradient(x):
    slope = 200 * (x[1:] - x[:-1] ** 2)
    gradient = np.zeros_like(x)
    gradient[:-1] = -2 * x[:-1] * slope - 2 * (1 - x[:-1])
    gradient[1:] += slope
    return gradient


def recorded_one_by_one(tape, x):
    nodes = [tape.node(i) for i in x.tolist()]
    terms = [(b - a * a) ** 2 * 100.0 + (1 - a) ** 2 for a, b in pairwise(nodes)]
    return tape.sum(terms)


def recorded_together(tape, x):
    first, second = x[:-1], x[1:]
    constant = np.full(len(first), tape._any(tape.constant(100.0)))
    one = np.full(len(first), tape._any(tape.constant(1.0)))
    inner = tape.elementwise("sub", second, tape.elementwise("mul", first, first))
    left = tape.elementwise("sub", one, first)
    scaled = tape.elementwise("scale", tape.elementwise("mul", inner, inner), constant)
    return tape.sum(tape.elementwise("add", scaled, tape.elementwise("mul", left, left)).tolist())


@pytest.mark.parametrize("record", [recorded_one_by_one, recorded_together])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rosenbrock(record, dtype):
    tape = Tape()
    ids = tape.variables(np.zeros(COUNT))
    f = tape.function(ids, record(tape, ids), dtype=dtype)
    x = np.random.default_rng(0).normal(size=COUNT).astype(dtype)
    error = {"float32": 2e-4, "float64": 1e-12}[dtype]
    assert f(x) == pytest.approx(rosenbrock(x.astype(float)), rel=error)
    expected = rosenbrock_gradient(x.astype(float))
    np.testing.assert_allclose(f.grad(x), expected, rtol=error, atol=100 * error)
    out = np.full(COUNT, 7, dtype)
    value, gradient = f.value_and_grad(x, out=out)
    assert gradient is out and value == f(x)
    np.testing.assert_array_equal(out, f.grad(x))
    assert "1501 inputs, 1500 terms" in repr(f)


def test_inputs_that_few_terms_reach():
    tape = Tape()
    ids = tape.variables(np.zeros(COUNT))
    nodes = [tape.node(i) for i in ids.tolist()]
    total = tape.sum([a * b for a, b in zip(nodes[10:20], nodes[30:40], strict=True)])
    f = tape.function(ids, total)
    x = np.arange(float(COUNT))
    expected = np.zeros(COUNT)
    expected[10:20] = x[30:40]
    expected[30:40] = x[10:20]
    np.testing.assert_array_equal(f.grad(x), expected)
    assert f(x) == (x[10:20] * x[30:40]).sum()


def test_what_is_not_alike_is_refused():
    tape = Tape()
    ids = tape.variables(np.linspace(1, 2, COUNT))
    x = [tape.node(i) for i in ids.tolist()]
    w = tape.var(3.0)
    for output, said in [
        (x[0] * x[1], "must be a sum"),
        (tape.sum([x[0] * w, x[1] * w, x[2] + w]), "same operations"),
        (tape.sum([x[0] * 2.0, x[1] * 3.0]), "not the same"),
        (tape.sum([x[0] * w, x[2] * w]), "input after"),
        (tape.sum([w, w]), "depend"),
        (tape.sum([tape.dot(x[:2], x[:2]), tape.dot(x[1:3], x[1:3])]), "dot"),
    ]:
        with pytest.raises(TapeError, match=said):
            tape.function(ids, output)
    with pytest.raises(TapeError, match="one after the other"):
        tape.function(ids[::-1], tape.sum([x[0] * w, x[1] * w]))
    f = tape.function(ids, tape.sum([a * w for a in x]))
    with pytest.raises(TapeError, match="1501 numbers"):
        f(np.ones(3))


def test_a_sum_that_goes_on():
    tape = Tape()
    ids = tape.variables(np.zeros(COUNT))
    squares = tape.elementwise("mul", ids[:-1], ids[:-1])
    terms = tape.multiply_adds(squares, ids[:-1], ids[1:])
    f = tape.function(ids, tape.sum(terms.tolist()))
    x = np.linspace(-1, 1, COUNT)
    assert f(x) == pytest.approx((x[:-1] ** 2 + x[:-1] * x[1:]).sum())
    expected = np.zeros(COUNT)
    expected[:-1] = 2 * x[:-1] + x[1:]
    expected[1:] += x[:-1]
    np.testing.assert_allclose(f.grad(x), expected, atol=1e-14)
