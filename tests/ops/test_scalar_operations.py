"""Scalar operations: their values against math, their gradients against differences."""

import math
import random
from collections.abc import Callable, Collection

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from microgpt_reference import Graph
from references import softmax

from tapegpt.kernels.loops.precise_sweep import NEVER
from tapegpt.tape import Tape

Function = Callable[..., float]

UNARY: dict[str, Function] = {
    "neg": lambda x: -x,
    "exp": math.exp,
    "log": math.log,
    "relu": lambda x: max(0.0, x),
    "tanh": math.tanh,
    "erf": math.erf,
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "detach": lambda x: x,
}
BINARY: dict[str, Function] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
}
WITH_NUMBER: dict[str, Function] = {
    "scale": lambda x, c: c * x,
    "pow": lambda x, c: x**c,
}

numbers = st.floats(-6, 6)
positive = st.floats(0.05, 6)


def slope(function: Function, at: list[float], which: int, h: float = 1e-5) -> float:
    """Central difference of a function by one of its arguments."""
    above, below = list(at), list(at)
    above[which] += h
    below[which] -= h
    return (function(*above) - function(*below)) / (2 * h)


def gradients(tape: Tape, root: int, nodes: list[int]) -> list[float]:
    tape.backward(root)
    return [float(tape.grad(node)) for node in nodes]


def near(expected: float, tolerance: float) -> object:
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", UNARY)
@given(x=numbers)
def test_unary(name: str, x: float) -> None:
    x = abs(x) + 0.05 if name == "log" else x
    tape = Tape()
    a = tape.var(x)
    out = getattr(tape, name)(a)
    assert tape.value(out) == near(UNARY[name](x), 8e-15)
    if name == "relu" and abs(x) < 1e-4:
        return
    expected = 0.0 if name == "detach" else slope(UNARY[name], [x], 0)
    assert gradients(tape, out, [a]) == [near(expected, 1e-6)]


@pytest.mark.parametrize("name", BINARY)
@given(x=numbers, y=positive, sign=st.sampled_from([1, -1]))
def test_binary(name: str, x: float, y: float, sign: int) -> None:
    y *= sign
    tape = Tape()
    a, b = tape.var(x), tape.var(y)
    out = getattr(tape, name)(a, b)
    assert tape.value(out) == near(BINARY[name](x, y), 1e-15)
    expected = [near(slope(BINARY[name], [x, y], i, h=1e-6), 1e-5) for i in range(2)]
    assert gradients(tape, out, [a, b]) == expected


@pytest.mark.parametrize("name", WITH_NUMBER)
@given(x=positive, c=st.floats(-4, 4))
def test_with_a_number(name: str, x: float, c: float) -> None:
    x = max(x, 0.2)
    tape = Tape()
    a = tape.var(x)
    out = getattr(tape, name)(a, c)
    assert tape.value(out) == near(WITH_NUMBER[name](x, c), 1e-14)
    expected = slope(lambda x: WITH_NUMBER[name](x, c), [x], 0)
    assert gradients(tape, out, [a]) == [near(expected, 1e-5)]


@given(x=st.floats(-5, -0.5), n=st.integers(-3, 4))
def test_whole_powers_of_negative_numbers(x: float, n: int) -> None:
    tape = Tape()
    a = tape.var(x)
    out = tape.pow(a, n)
    assert tape.value(out) == near(x**n, 1e-14)
    assert gradients(tape, out, [a]) == [near(n * x ** (n - 1), 1e-13)]


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_an_operand_used_twice_gets_both_gradients(name: str) -> None:
    tape = Tape()
    a = tape.var(3.0)
    out = getattr(tape, name)(a, a)
    assert gradients(tape, out, [a]) == [{"add": 2, "sub": 0, "mul": 6, "div": 0}[name]]


def test_values_at_the_edges() -> None:
    tape = Tape()
    zero, one, minus, nan = tape.var(0.0), tape.var(1.0), tape.var(-1.0), tape.var(math.nan)
    big = tape.var(1000.0)
    assert tape.value(tape.exp(big)) == math.inf
    assert tape.value(tape.exp(tape.neg(big))) == 0
    assert tape.value(tape.log(zero)) == -math.inf
    assert math.isnan(tape.value(tape.log(minus)))
    assert tape.value(tape.div(one, zero)) == math.inf
    assert math.isnan(tape.value(tape.div(zero, zero)))
    assert tape.value(tape.pow(zero, -1)) == math.inf
    assert math.isnan(tape.value(tape.pow(minus, 0.5)))
    assert math.isnan(tape.value(tape.relu(nan)))
    assert tape.value(tape.tanh(big)) == 1
    # softplus neither overflows nor loses what is small.
    assert tape.value(tape.softplus(big)) == 1000
    assert tape.value(tape.softplus(tape.var(-40.0))) == pytest.approx(
        math.exp(-40), rel=1e-14, abs=0
    )
    assert tape.value(tape.softplus(tape.neg(big))) == 0


def test_gradients_at_the_edges() -> None:
    tape = Tape()
    zero, big = tape.var(0.0), tape.var(1000.0)
    assert gradients(tape, tape.pow(zero, 0), [zero]) == [0]
    assert gradients(tape, tape.pow(zero, 1), [zero]) == [1]
    assert gradients(tape, tape.relu(zero), [zero]) == [0]
    assert gradients(tape, tape.softplus(big), [big]) == [1]
    assert gradients(tape, tape.softplus(tape.neg(big)), [big]) == [0]
    assert gradients(tape, tape.tanh(big), [big]) == [0]


@given(values=st.lists(numbers, min_size=1, max_size=40))
def test_sum_and_max(values: list[float]) -> None:
    tape = Tape()
    nodes = [tape.var(value) for value in values]
    total, largest = tape.sum(nodes), tape.max(nodes)
    assert tape.value(total) == near(math.fsum(values), 1e-13)
    assert tape.value(largest) == max(values)
    assert gradients(tape, total, nodes) == [1] * len(nodes)
    first = values.index(max(values))
    assert gradients(tape, largest, nodes) == [float(i == first) for i in range(len(nodes))]


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 27])
def test_softmax(count: int, dtype: str, far: bool) -> None:
    rng = np.random.default_rng(count)
    tape = Tape(dtype)
    nodes = rng.permutation(tape.variables(rng.normal(size=30) * (300 if far else 3)))[:count]
    x = np.array([tape.value(node) for node in nodes])
    out = tape.softmax(nodes)
    assert list(out) == list(range(len(tape) - count, len(tape)))
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    y = softmax(x)
    np.testing.assert_allclose([tape.value(i) for i in out], y, rtol=0, atol=tolerance)
    weights = rng.normal(size=count)
    tape.backward(tape.dot(out, tape.variables(weights)))
    expected = y * (weights - y @ weights)
    found = [tape.grad(node) for node in nodes]
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * tolerance)
    others = set(range(30)) - set(nodes.tolist())
    assert all(tape.grad(node) == 0 for node in others)


@given(values=st.lists(st.floats(-80, 80), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_softmax_along_a_random_direction(values: list[float], seed: int) -> None:
    tape = Tape()
    leaves = tape.variables(values)
    rng = np.random.default_rng(seed)
    # Some nodes twice.
    out = tape.softmax([*leaves, leaves[0], leaves[-1]])
    root = tape.dot(out, tape.variables(rng.normal(size=len(out))))
    direction = rng.normal(size=len(leaves))
    expected = np.dot(gradients(tape, root, list(leaves)), direction)

    def moved(distance: float) -> float:
        for leaf, value, speed in zip(leaves, values, direction, strict=True):
            tape.set_value(leaf, value + distance * speed)
        tape.forward()
        return float(tape.value(root))

    h = 1e-5
    assert (moved(h) - moved(-h)) / (2 * h) == near(expected, 1e-6)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_softmaxes_of_many_rows(count: int) -> None:
    tape = Tape()
    nodes = tape.variables(np.random.default_rng(0).normal(size=(5, count)))
    together = tape.softmax(nodes)
    assert together.shape == (5, count)
    one_by_one = np.array([tape.softmax(row) for row in nodes])
    value = np.vectorize(tape.value)
    np.testing.assert_array_equal(value(together), value(one_by_one))


@pytest.mark.parametrize("count", [3, 4, 6])
def test_softmax_at_the_edges(count: int) -> None:
    tape = Tape()
    zeros = [tape.var(0.0)] * (count - 2)
    big, nan, minus = tape.var(1e300), tape.var(math.nan), tape.var(-math.inf)
    assert tape.value(tape.softmax([*zeros, big, minus])[count - 2]) == 1
    assert tape.value(tape.softmax([*zeros, minus, minus])[0]) == near(1 / (count - 2), 1e-15)
    out = tape.softmax([*zeros, nan, minus])
    assert all(math.isnan(tape.value(node)) for node in out)
    # The root does not depend on it.
    assert gradients(tape, tape.exp(zeros[0]), [zeros[0], nan]) == [1, 0]
    # Nor does what follows the results on the tape.
    out = tape.softmax([*zeros, minus, minus])
    last = tape.add(zeros[0], zeros[0])
    assert gradients(tape, last, [zeros[0], minus]) == [2, 0]
    assert gradients(tape, out[0], [minus]) == [0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["mul", "exp", "softplus", "sum", "dot", "softmax"])
def test_subnormal_gradients_are_passed_on(name: str, dtype: str) -> None:
    tiny = float(np.finfo(dtype).tiny)
    slopes = {"exp": math.exp(0.5), "softplus": 1 / (1 + math.exp(-0.5))}
    slopes["softmax"] = softmax(np.array([0.5, 1.0]))[0] * softmax(np.array([0.5, 1.0]))[1]
    tape = Tape(dtype)
    steep, b = tape.variables([0.5 * tiny * 2**10, 1.0])
    a = tape.scale(steep, 2.0**-10 / tiny)
    record = {
        "mul": lambda: tape.mul(a, b),
        "sum": lambda: tape.sum([a, b]),
        "dot": lambda: tape.dot([b], [a]),
        "softmax": lambda: tape.softmax([a, b])[0],
    }.get(name, lambda: getattr(tape, name)(a))
    root = tape.scale(record(), tiny / 16)
    expected = slopes.get(name, 1.0) * 2.0**-14
    assert gradients(tape, root, [steep]) == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", range(6))
def test_max_with_nan_is_nan(place: int, dtype: str) -> None:
    values = [1.0, 2.0, math.inf, -math.inf, 2.0, 0.0]
    values[place] = math.nan
    tape = Tape(dtype)
    nodes = tape.variables(values)
    largest = tape.max(nodes)
    assert math.isnan(tape.value(largest))
    assert gradients(tape, largest, nodes) == [float(i == place) for i in range(6)]
    assert all(math.isnan(tape.value(node)) for node in tape.softmax(nodes))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_at_infinity(dtype: str) -> None:
    inf = math.inf
    for name, x, value, slope in (
        ("softplus", inf, inf, 1), ("softplus", -inf, 0, 0), ("softplus", -80.0, 0, 0),
        ("exp", inf, inf, inf), ("exp", -inf, 0, 0), ("log", inf, inf, 0), ("log", 0.0, -inf, inf),
        ("tanh", inf, 1, 0), ("tanh", -inf, -1, 0), ("relu", inf, inf, 1), ("relu", -inf, 0, 0),
    ):  # fmt: skip
        tape = Tape(dtype)
        node = tape.var(x)
        out = getattr(tape, name)(node)
        assert tape.value(out) == pytest.approx(value, abs=1e-34), (name, x)
        assert gradients(tape, out, [node]) == [pytest.approx(slope, abs=1e-34)], (name, x)
    tape = Tape(dtype)
    one, top = tape.variables([1.0, inf])
    assert gradients(tape, tape.div(one, top), [one, top]) == [0, 0]
    assert gradients(tape, tape.div(top, one), [one, top]) == [-inf, 1]


def test_float32_sums_of_millions() -> None:
    count = 2**20
    tape = Tape("float32", capacity=2**22)
    nodes = tape.variables(np.full(count, 0.1))
    ones = tape.variables(np.full(count, 0.3))
    a, b = np.float64(np.float32(0.1)), np.float64(np.float32(0.3))
    turned, other = nodes[::-1].copy(), ones[::-1].copy()
    for node, expected in (
        (tape.sum(nodes), count * a),
        (tape.dot(nodes, ones), count * a * b),
        (tape.dot(turned, other), count * a * b),
        (tape.dots(nodes[None], ones[None])[0], count * a * b),
        (tape.dots(np.stack([nodes] * 4), np.stack([ones] * 4))[0], count * a * b),
    ):
        assert tape.value(node) == pytest.approx(expected, rel=3e-7)


@pytest.mark.parametrize("name", ["sum", "dot", "runs"])
def test_float32_gradient_of_a_node_used_a_million_times(name: str) -> None:
    count = 2**20
    tape = Tape("float32", capacity=2**22)
    node = tape.var(0.7)
    many = np.full(count, node.id)
    factors = tape.variables(np.full(count, 0.1))
    record = {
        "sum": lambda: tape.scale(tape.sum(many), 0.1),
        "dot": lambda: tape.dot(many, factors),
        "runs": lambda: tape.sum(tape.elementwise("mul", many, factors)),
    }
    expected = count * np.float64(np.float32(0.1))
    assert gradients(tape, record[name](), [node]) == [pytest.approx(expected, rel=3e-7)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 15, 16, 17, 40, 67])
def test_dot(count: int, contiguous: bool, dtype: str) -> None:
    rng = np.random.default_rng(count)
    tape = Tape(dtype)
    a, b = tape.variables(rng.normal(size=(2, count)))
    if not contiguous:
        a, b = rng.permutation(a), rng.permutation(b)
    x = np.array([tape.value(node) for node in a])
    y = np.array([tape.value(node) for node in b])
    out = tape.dot(a, b)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    assert tape.value(out) == near(x @ y, tolerance)
    assert gradients(tape, out, list(a)) == y.tolist()
    assert gradients(tape, out, list(b)) == x.tolist()


@pytest.mark.parametrize("shift", [0, 1, 3, 8, 20])
def test_dot_of_overlapping_runs(shift: int) -> None:
    tape = Tape()
    values = np.random.default_rng(shift).normal(size=50)
    nodes = tape.variables(values)
    a, b = nodes[:30], nodes[shift : 30 + shift]
    out = tape.dot(a, b)
    expected = np.zeros(50)
    expected[:30] += values[shift : 30 + shift]
    expected[shift : 30 + shift] += values[:30]
    assert tape.value(out) == near(values[:30] @ values[shift : 30 + shift], 1e-13)
    np.testing.assert_allclose(gradients(tape, out, list(nodes)), expected, rtol=1e-14)


@pytest.mark.parametrize("contiguous", [True, False])
def test_sums_and_dots_of_many_rows(contiguous: bool) -> None:
    rng = np.random.default_rng(0)
    tape = Tape()
    values = rng.normal(size=(2, 5, 9))
    a, b = tape.variables(values)
    if not contiguous:
        a, values[0] = a[:, ::-1], values[0, :, ::-1]
    sums, dots = tape.sums(a), tape.dots(a, b)
    assert sums.shape == dots.shape == (5,)
    np.testing.assert_allclose([tape.value(node) for node in sums], values[0].sum(1), rtol=1e-13)
    products = (values[0] * values[1]).sum(1)
    np.testing.assert_allclose([tape.value(node) for node in dots], products, rtol=1e-13)
    weights = rng.normal(size=(2, 5))
    weighted = [
        tape.dot(nodes, tape.variables(w)) for nodes, w in zip([sums, dots], weights, strict=True)
    ]
    tape.backward(tape.add(*weighted))
    gradient = np.vectorize(tape.grad)
    expected = weights[0, :, None] + weights[1, :, None] * values[1]
    np.testing.assert_allclose(gradient(a), expected, rtol=1e-13)
    np.testing.assert_allclose(gradient(b), weights[1, :, None] * values[0], rtol=1e-13)


@pytest.mark.parametrize("name", [*UNARY, *BINARY, *WITH_NUMBER])
def test_record_does_many_at_once(name: str) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0.5, 2, (2, 3, 4))
    tape = Tape()
    a, b = tape.variables(x), tape.variables(y)
    out = (
        tape.elementwise(name, a, separate=True)
        if name in UNARY
        else tape.elementwise(name, a, b, separate=True)
    )
    assert out.shape == (3, 4)
    function = {**UNARY, **BINARY, **WITH_NUMBER}[name]
    arguments = [x] if name in UNARY else [x, y]
    expected = np.vectorize(function)(*arguments)
    np.testing.assert_allclose(np.vectorize(tape.value)(out), expected, rtol=1e-14)
    tape.backward(tape.sum(out.ravel()))
    for which, ids in enumerate([a, b][: len(arguments)]):
        slopes = np.vectorize(lambda *at: slope(function, list(at), which))(*arguments)  # noqa: B023
        if name == "detach" or (name in WITH_NUMBER and which == 1):
            slopes = np.zeros((3, 4))
        np.testing.assert_allclose(np.vectorize(tape.grad)(ids), slopes, rtol=1e-7, atol=1e-9)


def test_record_may_use_its_own_results() -> None:
    tape = Tape()
    a = tape.var(1.0)
    # Powers of two: every new node is the last one plus itself.
    chain = np.arange(a.id, a.id + 10)
    last = tape.elementwise("add", chain, chain, separate=True)[-1]
    assert tape.value(last) == 2.0**10
    assert gradients(tape, last, [a]) == [2.0**10]


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("name", ["mul", "add", "dot", "elementwise", "multiply_adds", "array"])
def test_float32_gradients_of_a_node_used_very_often_keep_their_digits(
    name: str, leaf: bool
) -> None:
    count, tape = 2**17, Tape("float32")
    x, other = (tape.parameter([[0.1]]) if name == "array" else tape.var(0.1) for _ in range(2))
    w = x if leaf else x * 1.0
    pairs = np.full((2, count), [[w.id], [other.id]])
    use = {
        "mul": lambda: [w * other for _ in range(count)],
        "add": lambda: [w + other for _ in range(count)],
        "dot": lambda: [tape.dot([w], [other]) for _ in range(count)],
        "array": lambda: [(w * other).sum() for _ in range(count)],
        "elementwise": lambda: tape.elementwise("mul", *pairs, separate=True),
        "multiply_adds": lambda: tape.multiply_adds(*np.full((3, count), [[w.id]] * 3)),
    }
    tape.backward(tape.sum(use[name]()))
    tenth = np.float64(np.float32(0.1))
    share = {"add": 1, "multiply_adds": 1 + 2 * tenth}.get(name, tenth)
    for node in (w, x):
        assert tape.grad(node) == pytest.approx(count * share, rel=2e-6)


def test_numbers_that_are_no_nodes_are_no_uses() -> None:
    """Each node is used a few times; the length of the lists, 4, stands there 5,000 times."""
    tape = Tape("float32")
    nodes = [tape.var(0.5) for _ in range(20_000)]
    sums = [tape.sum(nodes[i : i + 4]) for i in range(0, len(nodes), 4)]
    tape.backward(tape.sum([tape.softmax(sums[i : i + 4])[0] for i in range(0, len(sums), 4)]))
    assert tape._often_used() is NEVER
    tape.backward(tape.sum([*sums, *[nodes[4]] * 5000]))
    assert nodes[4].id in tape._often_used().nodes


def test_lookup_reads_its_input_at_every_replay() -> None:
    tape = Tape()
    table = tape.variables([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    rows = tape.input([2, 0], below=3)
    found = np.concatenate([tape.take(table[0], rows, i, stride=2) for i in range(2)])
    out = tape.sum([*found, found[0]])
    assert [tape.value(node) for node in found] == [5, 6, 1, 2]
    assert gradients(tape, out, list(table.ravel())) == [1, 1, 0, 0, 2, 1]
    tape.set_input(rows, [1, 1])
    tape.forward()
    assert [tape.value(node) for node in found] == [3, 4, 3, 4]
    assert gradients(tape, out, list(table.ravel())) == [0, 0, 3, 2, 0, 0]


def test_lookup_keeps_the_shape_of_the_ids() -> None:
    tape = Tape()
    table = tape.variables(np.arange(24.0).reshape(2, 3, 4))
    found = tape.take(table[0], tape.input([1], below=2), 0, stride=12)
    assert found.shape == (3, 4)
    np.testing.assert_array_equal(
        np.vectorize(tape.value)(found), np.arange(12.0, 24).reshape(3, 4)
    )


@pytest.mark.parametrize("name", [*UNARY, *BINARY, *WITH_NUMBER, "sum", "max"])
def test_float32(name: str) -> None:
    rng = np.random.default_rng(2)
    tape = Tape("float32")
    x, y = rng.uniform(0.5, 2, 2).astype(np.float32).tolist()
    a, b = tape.var(x), tape.var(y)
    if name in ("sum", "max"):
        function = {"sum": lambda x, y: x + y, "max": max}[name]
        out = getattr(tape, name)([a, b])
    else:
        function = {**UNARY, **BINARY, **WITH_NUMBER}[name]
        operands = {**{n: [a] for n in UNARY}, **{n: [a, y] for n in WITH_NUMBER}}
        out = getattr(tape, name)(*operands.get(name, [a, b]))
    at = [x] if name in UNARY else [x, y]
    value = tape.value(out)
    assert value == near(function(*at), 4e-7)
    assert value == np.float32(value)
    expected = 0.0 if name == "detach" else slope(function, at, 0)
    assert gradients(tape, out, [a]) == [near(expected, 1e-6)]


# Value and partial derivatives, for the reference graph.
RULES: dict[str, Callable[..., tuple[float, list[float]]]] = {
    "neg": lambda x: (-x, [-1]),
    "exp": lambda x: (math.exp(x), [math.exp(x)]),
    "log": lambda x: (math.log(x), [1 / x]),
    "relu": lambda x: (max(0.0, x), [float(x > 0)]),
    "tanh": lambda x: (math.tanh(x), [1 - math.tanh(x) ** 2]),
    "erf": lambda x: (math.erf(x), [2 / math.sqrt(math.pi) * math.exp(-x * x)]),
    "softplus": lambda x: (math.log(1 + math.exp(x)), [1 / (1 + math.exp(-x))]),
    "detach": lambda x: (x, [0]),
    "add": lambda x, y: (x + y, [1, 1]),
    "sub": lambda x, y: (x - y, [1, -1]),
    "mul": lambda x, y: (x * y, [y, x]),
    "div": lambda x, y: (x / y, [1 / y, -x / y**2]),
    "scale": lambda x, c: (c * x, [c]),
    "pow": lambda x, c: (math.pow(x, c), [c * math.pow(x, c - 1)]),
    "sum": lambda *x: (math.fsum(x), [1] * len(x)),
    "max": lambda *x: (max(x), [float(i == x.index(max(x))) for i in range(len(x))]),
    "dot": lambda *x: (
        math.fsum(a * b for a, b in zip(x[:3], x[3:], strict=True)),
        [*x[3:], *x[:3]],
    ),
}
SMOOTH = [name for name in RULES if name not in ("relu", "max", "detach")]
LARGE = 30.0  # values and derivatives beyond this are avoided


class Pair:
    """One random graph on a tape and in the reference, node for node."""

    def __init__(self, dtype: str, leaves: list[float]) -> None:
        self.tape, self.graph = Tape(dtype), Graph()
        self.on_tape = [self.tape.var(value) for value in leaves]
        self.in_graph = [self.graph.node(value) for value in leaves]

    def record(self, name: str, operands: list[int], number: float) -> None:
        """Record an operation on some of the six operands, or tanh where it gets too steep."""
        if name in WITH_NUMBER:
            operands, extra = operands[:1], [number]
        else:
            counts = {"sum": 4, "max": 5, "dot": 6}
            operands, extra = operands[: counts.get(name, 2 if name in BINARY else 1)], []
        ids = [self.in_graph[i] for i in operands]
        values = [self.graph.values[i] for i in ids]
        try:
            value, partials = RULES[name](*values, *extra)
            steep = max(map(abs, [value, *partials])) > LARGE
        except (ArithmeticError, ValueError):
            steep = True
        if steep:
            self.record("tanh", operands, number)
            return
        self.in_graph.append(self.graph.node(value, zip(ids, partials, strict=True)))
        nodes = [self.on_tape[i] for i in operands]
        arguments = {"sum": [nodes], "max": [nodes], "dot": [nodes[:3], nodes[3:]]}
        method = getattr(self.tape, name)
        self.on_tape.append(method(*arguments.get(name, [*nodes, *extra])))


def random_pair(dtype: str, names: list[str], seed: int) -> Pair:
    rng = random.Random(seed)
    pair = Pair(dtype, [rng.gauss(0, 1.5) for _ in range(6)])
    for name in names:
        count = len(pair.on_tape)
        # Now and then neighbours, for the dot product of runs.
        start = rng.randrange(count - 5)
        run = list(range(start, start + 6))
        pair.record(name, rng.choice([run, rng.choices(range(count), k=6)]), rng.uniform(-2, 2))
    return pair


seeds = st.integers(0, 2**32)


def operations(names: Collection[str], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(names)), min_size=1, max_size=most)


@given(names=operations(RULES, 60), seed=seeds)
@example(names=[*RULES] * 4, seed=0)
def test_random_graphs(names: list[str], seed: int) -> None:
    pair = random_pair("float64", names, seed)
    expected = [pair.graph.values[node] for node in pair.in_graph]
    values = [pair.tape.value(node) for node in pair.on_tape]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
    derivatives = pair.graph.gradients(pair.in_graph[-1])
    expected = [derivatives[node] for node in pair.in_graph]
    found = gradients(pair.tape, pair.on_tape[-1], pair.on_tape)
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * scale)


@given(names=operations(SMOOTH, 20), seed=seeds)
def test_random_graphs_along_a_random_direction(names: list[str], seed: int) -> None:
    # Not those operations whose kinks a difference may step across.
    pair = random_pair("float64", names, seed)
    tape, leaves, root = pair.tape, pair.on_tape[:6], pair.on_tape[-1]
    direction = np.random.default_rng(seed).normal(size=6)
    expected = np.dot(gradients(tape, root, leaves), direction)
    start = [tape.value(leaf) for leaf in leaves]

    def moved(distance: float) -> float:
        for leaf, value, speed in zip(leaves, start, direction, strict=True):
            tape.set_value(leaf, value + distance * speed)
        tape.forward()
        return float(tape.value(root))

    coarse, fine = ((moved(h) - moved(-h)) / (2 * h) for h in (2e-5, 1e-5))
    # Where the two differences disagree, the graph is too steep for them to say anything.
    tolerance = 1e-5 * (1 + abs(expected)) + 10 * abs(coarse - fine)
    assert fine == pytest.approx(expected, abs=tolerance)


@given(names=operations(SMOOTH, 10), seed=seeds)
def test_random_graphs_in_float32(names: list[str], seed: int) -> None:
    pair = random_pair("float32", names, seed)
    derivatives = pair.graph.gradients(pair.in_graph[-1])
    # Rounding by the condition of the graph: what a change of any node does to the root.
    sizes = zip(derivatives, pair.graph.values, strict=True)
    error = 1e-5 * (1 + math.fsum(abs(d * value) for d, value in sizes))
    expected = pair.graph.values[pair.in_graph[-1]]
    assert pair.tape.value(pair.on_tape[-1]) == pytest.approx(expected, abs=error)


def test_scalars_and_arrays_on_one_tape() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    c, target = 0.7, [1, 3, 0]
    tape = Tape()
    weights = tape.parameter(w)
    rows = tape.array(x)
    scale = tape.var(c)
    logits = tape.linear(rows, weights)
    loss = tape.cross_entropy(logits, target)
    # exp(c) loss + mean(x W^T)^2 + the element of x W^T in row 2, column 1
    element = logits.id + 2 * tape._stride(4) + 1
    root = tape.sum([tape.mul(tape.exp(scale), loss), tape.pow(tape.mean(logits), 2), element])

    y = x @ w.T
    shares = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    loss_value = -np.log(shares[range(3), target]).mean()
    expected = math.exp(c) * loss_value + y.mean() ** 2 + y[2, 1]
    assert tape.value(root) == near(expected, 1e-13)
    dy = math.exp(c) * (shares - np.eye(4)[target]) / 3 + 2 * y.mean() / y.size
    dy[2, 1] += 1
    tape.backward(root)
    assert tape.grad(scale) == near(math.exp(c) * loss_value, 1e-13)
    np.testing.assert_allclose(tape.grad(weights), dy.T @ x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(tape.grad(rows), dy @ w, rtol=1e-12, atol=1e-13)
