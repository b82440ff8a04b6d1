"""tape.function: a scalar graph as one compiled function of arrays, against the tape itself."""

import gc
import math

import numpy as np
import pytest

from tapegpt import Tape, TapeError
from tapegpt.functions.source import shared_calls
from tapegpt.kernels.ops.scalar.of_vectors import chosen_where, vector_expression

ERROR = {"float32": 2e-5, "float64": 1e-13}


def node_of(tape, handle):
    return getattr(handle, "id", handle)


def every_operation(tape, x, y, z):
    """Each scalar operation, in three outputs."""
    ratio = tape.div(x, tape.add(y, z))
    root = tape.pow(tape.mul(y, y), 0.5)
    steep = tape.add(tape.pow(y, -0.5), tape.add(tape.pow(y, 3), tape.pow(z, 1.7)))
    smooth = tape.add(tape.tanh(ratio), tape.add(tape.erf(x), tape.softplus(tape.neg(x))))
    gate = tape.relu(tape.sub(x, tape.scale(z, 0.25)))
    rest = tape.add(tape.log(z), tape.exp(tape.scale(x, 0.5)))
    listed = tape.sum([smooth, gate, rest, tape.constant(2.0), x])
    largest = tape.max([x, y, tape.constant(0.7), gate])
    soft = list(tape.softmax([x, y, largest]))
    product = tape.dot([soft[0], soft[2], gate], [steep, root, tape.detach(rest)])
    return [listed, tape.add(product, largest), tape.add(tape.mul(x, x), soft[1])]


def recorded(dtype="float64", build=every_operation, values=(0.3, 1.2, 0.8)):
    tape = Tape(dtype)
    leaves = [tape.var(value) for value in values]
    return tape, leaves, build(tape, *leaves)


def rows(count, dtype):
    rng = np.random.default_rng(count)
    return [
        rng.uniform(-2, 2, count).astype(dtype),
        rng.uniform(0.3, 2, count).astype(dtype),
        rng.uniform(0.3, 2, count).astype(dtype),
    ]


def on_the_tape(tape, leaves, outputs, x, seeds):
    """Values and what seeds pass back, row by row, replayed."""
    root = tape.dot(outputs, [weights := tape.var(1.0), *[tape.var(1.0) for _ in outputs[1:]]])
    weights = range(node_of(tape, weights), node_of(tape, weights) + len(outputs))
    values, gradients = [], []
    for row in range(len(x[0])):
        for leaf, column in zip(leaves, x, strict=True):
            tape.set_value(leaf, float(column[row]))
        for weight, seed in zip(weights, seeds, strict=True):
            tape.set_value(weight, float(seed[row]))
        tape.forward()
        tape.backward(root)
        values.append([tape.value(node) for node in outputs])
        gradients.append([tape.grad(leaf) for leaf in leaves])
    return np.array(values).T, np.array(gradients).T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 7, 37])
def test_values_and_gradients_are_the_tapes(dtype, count):
    tape, leaves, outputs = recorded()
    f = tape.function(leaves, outputs, dtype=dtype)
    x = rows(count, dtype)
    seeds = [np.random.default_rng(j).normal(size=count).astype(dtype) for j in range(3)]
    expected, passed = on_the_tape(tape, leaves, outputs, x, seeds)
    values, gradients = f.vjp(seeds, *x)
    np.testing.assert_allclose(values, expected, rtol=ERROR[dtype], atol=ERROR[dtype])
    np.testing.assert_allclose(gradients, passed, rtol=ERROR[dtype], atol=ERROR[dtype] * 10)
    assert all(a.dtype == dtype and a.shape == (count,) for a in (*values, *gradients))
    ones = [np.ones(count, dtype)] * 3
    _, total = on_the_tape(tape, leaves, outputs, x, ones)
    np.testing.assert_allclose(f.grad(*x), total, rtol=ERROR[dtype], atol=ERROR[dtype] * 10)
    # Each form is compiled by itself, and may round in another order.
    np.testing.assert_allclose(f(*x), values, rtol=ERROR[dtype])
    both = f.value_and_grad(*x)
    np.testing.assert_allclose(both[0], values, rtol=ERROR[dtype])
    np.testing.assert_allclose(both[1], total, rtol=ERROR[dtype], atol=ERROR[dtype] * 10)


def bilinear(tape, x, y, z):
    return tape.add(tape.mul(x, y), z)


def test_one_output_any_shape_and_numbers_for_every_row():
    tape, leaves, output = recorded(build=bilinear)
    f = tape.function(leaves, output)
    x, y = np.arange(12.0).reshape(3, 4), np.arange(12.0).reshape(3, 4)[::-1]
    value, (dx, dy, dz) = f.value_and_grad(x, y, 3)
    np.testing.assert_array_equal(value, x * y + 3)
    np.testing.assert_array_equal(dx, y)
    np.testing.assert_array_equal(dy, x)
    np.testing.assert_array_equal(dz, np.ones((3, 4)))
    assert f(2, 3, 4) == 10 and f(2, 3, 4).shape == ()
    assert f(np.arange(2), [1, 2], 0).tolist() == [0, 2]
    assert "2" not in repr(f) and "3 inputs, 1 outputs" in repr(f)


def test_threads_give_the_same_bits():
    tape, leaves, outputs = recorded()
    one, three = (tape.function(leaves, outputs, threads=count) for count in (1, 3))
    x = rows(1001, "float64")
    np.testing.assert_array_equal(one(*x), three(*x))
    np.testing.assert_array_equal(one.grad(*x), three.grad(*x))


def test_gradients_are_added_to_arrays_that_overlap():
    tape = Tape()
    a, b = tape.var(1.0), tape.var(2.0)
    c = tape.sub(b, tape.mul(a, a))
    f = tape.function([a, b], tape.add(tape.scale(tape.mul(c, c), 100.0), tape.mul(a, a)))
    for count in (5, 64, 101):
        x = np.linspace(-1, 1, count)
        total = np.ones(count)
        f.add_grad(x[:-1], x[1:], to=(total[:-1], total[1:]))
        expected = np.ones(count)
        slope = 200 * (x[1:] - x[:-1] ** 2)
        expected[:-1] += -2 * x[:-1] * slope + 2 * x[:-1]
        expected[1:] += slope
        np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12)


def test_results_are_written_where_they_are_wanted_and_never_change_afterwards():
    tape, leaves, output = recorded(build=bilinear)
    f = tape.function(leaves, output)
    x = rows(50, "float64")
    out = [np.empty(50) for _ in range(4)]
    value, gradients = f.value_and_grad(*x, out=out)
    assert value is out[0] and gradients[0] is out[1]
    kept = f(*x)
    before = kept.copy()
    part = f(*x)[10:20]
    for _ in range(6):
        f(*[column + 1 for column in x])
        gc.collect()
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(part, before[10:20])


def test_other_leaves_are_constants_and_an_input_may_be_a_result():
    tape = Tape()
    x, w = tape.var(2.0), tape.var(3.0)
    h = tape.mul(x, w)
    y = tape.mul(h, h)
    f, g = tape.function([x], y), tape.function([h], [y, h, w])
    tape.set_value(w, 100.0)
    assert f(5.0) == 225.0
    values, (dh,) = g.value_and_grad(5.0)
    assert [float(value) for value in values] == [25.0, 5.0, 3.0]
    assert dh == 11.0


def test_what_has_gradient_0_passes_nothing_on():
    tape = Tape()
    x = tape.var(1.0)
    y = tape.relu(tape.neg(tape.log(x)))
    z = tape.mul(tape.relu(x), tape.div(tape.constant(1.0), tape.add(x, tape.constant(1.0))))
    f = tape.function([x], [y, z])
    _, (dx,) = f.value_and_grad(np.array([4.0, 0.5, 1.0]))
    np.testing.assert_allclose(dx, [0.04, -2 + 4 / 9, 0.25])


def test_black_scholes():
    tape = Tape()
    s, k, t, v, r = nodes = [tape.var(1.0) for _ in range(5)]

    def cdf(x):
        shifted = tape.add(tape.erf(tape.scale(x, math.sqrt(0.5))), tape.constant(1.0))
        return tape.scale(shifted, 0.5)

    spread = tape.mul(v, tape.pow(t, 0.5))
    drift = tape.mul(tape.add(r, tape.scale(tape.mul(v, v), 0.5)), t)
    d1 = tape.div(tape.add(tape.log(tape.div(s, k)), drift), spread)
    paid = tape.mul(k, tape.exp(tape.neg(tape.mul(r, t))))
    price = tape.sub(tape.mul(s, cdf(d1)), tape.mul(paid, cdf(tape.sub(d1, spread))))
    f = tape.function(nodes, price)
    rng = np.random.default_rng(0)
    low, high = np.array([80, 80, 0.2, 0.1, 0.0]), np.array([120, 120, 2, 0.5, 0.05])
    x = rng.uniform(low, high, (999, 5)).T
    value, greeks = f.value_and_grad(*x)
    s, k, t, v, r = x
    d1 = (np.log(s / k) + (r + v * v / 2) * t) / (v * np.sqrt(t))
    d2 = d1 - v * np.sqrt(t)
    normal = np.vectorize(lambda x: 0.5 * math.erfc(-x * math.sqrt(0.5)))
    density = np.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi)
    discounted = k * np.exp(-r * t)
    np.testing.assert_allclose(value, s * normal(d1) - discounted * normal(d2), atol=1e-13, rtol=0)
    exact = [
        normal(d1),
        -np.exp(-r * t) * normal(d2),
        s * density * v / (2 * np.sqrt(t)) + r * discounted * normal(d2),
        s * density * np.sqrt(t),
        t * discounted * normal(d2),
    ]
    np.testing.assert_allclose(greeks, exact, atol=2e-13, rtol=1e-14)


def test_many_at_once():
    tape = Tape()
    x = tape.variables(np.linspace(0.1, 0.8, 8))
    squares = tape.elementwise("mul", x, x)
    wide = tape.dots(np.stack([x, squares]), np.stack([squares, x]))
    out = tape.sums(np.stack([squares, np.ravel(tape.softmax(x[None]))]))
    columns = tape.variables(np.linspace(1, 2, 12)).reshape(4, 3)
    soft = tape.dots(np.broadcast_to(x[:4], (3, 4)), columns.T)
    total = tape.sum([*wide.tolist(), *out.tolist(), *soft.tolist()])
    f = tape.function(x, total)
    value, gradient = f.value_and_grad(*np.linspace(0.1, 0.8, 8))
    tape.backward(total)
    assert value == pytest.approx(tape.value(total), rel=1e-13)
    expected = [tape.grad(node) for node in x.tolist()]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_misuse():
    tape, leaves, output = recorded(build=bilinear)
    for inputs, outputs, options, said in [
        ([], output, {}, "at least one"),
        (leaves, [], {}, "at least one"),
        ([leaves[0], leaves[0]], output, {}, "twice"),
        (leaves, output, {"dtype": "int8"}, "int8"),
        (leaves, output, {"threads": 0}, "threads"),
    ]:
        with pytest.raises(TapeError, match=said):
            tape.function(inputs, outputs, **options)
    nan = tape.add(leaves[0], tape.constant(math.nan))
    with pytest.raises(TapeError, match="NaN"):
        tape.function(leaves, nan)
    f = tape.function(leaves, output)
    x = np.ones(3)
    for use, said in [
        (lambda: f(x, x), "3 inputs, not 2"),
        (lambda: f(x, x, np.ones(4)), "different shapes"),
        (lambda: f(x, x, "three"), "not an array of numbers"),
        (lambda: f.vjp([x, x], x, x, x), "vjp|shapes"),
        (lambda: f(x, x, x, out=[x, x]), "1 arrays"),
        (lambda: f(x, x, x, out=[np.ones(4)]), "shape"),
        (lambda: f(x, x, x, out=[np.ones(3, np.float32)]), "float64"),
        (lambda: f(x, x, x, out=[np.ones((3, 2))[:, 0]]), "gaps"),
    ]:
        with pytest.raises(TapeError, match=said):
            use()


def test_array_operations_between_are_refused():
    tape = Tape()
    w = tape.parameter(np.ones((2, 2)))
    mean = tape.mean(w)
    x = tape.var(1.0)
    f = tape.function([x], tape.mul(x, mean))
    assert f(3.0) == 3.0  # a number by now, and so a constant


def test_formulas_of_vectors():
    names = {"a": "v1", "b": "v2", "c": "2.0"}
    for formula, expected in {
        "zero if a < zero else a": "special.where_less(v1, 0.0, 0.0, v1)",
        "a if a >= b else b": "special.where_at_most(v2, v1, v1, v2)",
        "a ** c": "special.whole_power(v1, 2)",
        "c * a ** (c - one)": "2.0 * special.whole_power(v1, 1)",
        "a ** b": "special.power(v1, v2)",
        "one if a == b and a > zero else zero": (
            "special.where_equal(v1, v2, special.where_less(0.0, v1, 1.0, 0.0), 0.0)"
        ),
        "one if a != b or a > zero else zero": (
            "special.where_unequal(v1, v2, 1.0, special.where_less(0.0, v1, 1.0, 0.0))"
        ),
    }.items():
        assert vector_expression(formula, names) == expected
    assert vector_expression("a ** c", {"a": "v1", "c": "2.5"}).count("special") == 2
    assert chosen_where("c != zero", names, "v5") == "v5"
    assert chosen_where("c != zero", {**names, "c": "0.0"}, "v5") == ""
    for unknown in ("sinh(a)", "q + a"):
        with pytest.raises(ValueError, match="not known of vectors"):
            vector_expression(unknown, names)


def test_calls_on_the_same_values_are_made_once():
    lines = [
        "v2 = special.log(v1)",
        "g1 = special.log(v1) + special.tanh(g1)",
        "g1 = special.tanh(g1)",
    ]
    assert list(shared_calls(lines)) == [
        "c0 = special.log(v1)",
        "v2 = c0",
        "g1 = c0 + special.tanh(g1)",
        "g1 = special.tanh(g1)",
    ]
