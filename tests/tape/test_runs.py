"""Many scalar operations in one record: runs of nodes, and products of a matrix and a vector."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tapegpt.tape import Tape

Ids = NDArray[np.int64]
Values = NDArray[np.floating]

ONE_OPERAND = ["exp", "relu"]
TWO_OPERANDS = ["add", "sub", "mul", "div"]
CONSTANT_B = ["scale"]
IN_RUNS = [*ONE_OPERAND, *TWO_OPERANDS, *CONSTANT_B]
COUNTS = [2, 3, 7, 8, 9, 15, 16, 17, 33, 40]


def filled(dtype: str = "float64", size: int = 400) -> tuple[Tape, Ids]:
    """A tape with this many random numbers, none of them near 0."""
    rng = np.random.default_rng(0)
    tape = Tape(dtype)
    values = rng.uniform(0.3, 2, size) * rng.choice([-1, 1], size)
    return tape, tape.variables(values)


def records(tape: Tape) -> int:
    return tape.mark().records


def differentiate(tape: Tape, out: Ids) -> Values:
    """The gradients, by all nodes, of the sum of the results, each times some number."""
    weights = tape.variables(np.random.default_rng(1).normal(size=out.size))
    tape.backward(tape.dot(out.ravel(), weights))
    return tape.grads[: out.min()].copy()


def both(name: str, places: Callable[[Ids], list[Ids]], dtype: str = "float64") -> None:
    """Together they take one record and give what separate ones do."""
    results = []
    for separate in (True, False):
        tape, nodes = filled(dtype)
        operands = places(nodes)[: 1 if name in ONE_OPERAND else 2]
        before = records(tape)
        out = tape.elementwise(name, *operands, separate=separate)
        assert records(tape) - before == (out.size if separate else 1)
        assert out.shape == operands[0].shape
        values = np.vectorize(tape.value)(out)
        results.append((values, differentiate(tape, out)))
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for found, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", IN_RUNS)
def test_consecutive_nodes(name: str, count: int, dtype: str) -> None:
    both(name, lambda nodes: [nodes[3 : 3 + count], nodes[100 : 100 + count]], dtype)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [*TWO_OPERANDS, *CONSTANT_B])
def test_one_node_with_many(name: str, count: int) -> None:
    both(name, lambda nodes: [nodes[3 : 3 + count], np.full(count, nodes[50])])
    both(name, lambda nodes: [np.full(count, nodes[50]), nodes[3 : 3 + count]])


@pytest.mark.parametrize("name", IN_RUNS)
def test_rows_with_one_node_each(name: str) -> None:
    def places(nodes: Ids) -> list[Ids]:
        table = nodes[:350].reshape(10, 35)
        return [table[:, 4:23], np.broadcast_to(nodes[370:380, None], (10, 19))]

    both(name, places)


@given(data=st.data())
def test_any_place(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(IN_RUNS))
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    if rows * count == 1:
        return

    def operand() -> Callable[[Ids], Ids]:
        first, row = data.draw(st.integers(150, 200)), data.draw(st.integers(-45, 45))
        step = data.draw(st.integers(0, 1))
        index = first + row * np.arange(rows)[:, None] + step * np.arange(count)
        return lambda nodes: nodes[index]

    a, b = operand(), operand()
    both(name, lambda nodes: [a(nodes), b(nodes)])


def test_operands_that_overlap() -> None:
    for shift in (0, 1, 5, 16):
        both("mul", lambda nodes, shift=shift: [nodes[:40], nodes[shift : 40 + shift]])  # type: ignore[misc]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_far_out(dtype: str) -> None:
    tape = Tape(dtype)
    x = [0.0, 1000.0, -1000.0, np.inf, -np.inf, np.nan, 88.5, -100.0]
    out = tape.elementwise("exp", tape.variables(x))
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(np.array(x, dtype))
    np.testing.assert_allclose(np.vectorize(tape.value)(out), expected, rtol=1e-6)


OUTSIDE: dict[str, tuple[str, Callable[[Ids], list[Ids]]]] = {
    "not an operation of one record": ("tanh", lambda nodes: [nodes[:9]]),
    "scattered": ("add", lambda nodes: [nodes[[1, 2, 4]], nodes[:3]]),
    "every other one": ("mul", lambda nodes: [nodes[:3], nodes[:6:2]]),
    "one of two backwards": ("mul", lambda nodes: [nodes[:6], nodes[5::-1]]),
    "uneven rows": ("relu", lambda nodes: [nodes[np.array([0, 9, 17])[:, None] + np.arange(3)]]),
    "a single one": ("add", lambda nodes: [nodes[:1], nodes[:1]]),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_does_not_lie_in_runs_is_recorded_one_by_one(case: str) -> None:
    name, places = OUTSIDE[case]
    tapes = []
    for separate in (True, False):
        tape, nodes = filled()
        tape.elementwise(name, *places(nodes), separate=separate)
        tapes.append(tape)
    expected, found = (tape._replay_arrays().records.tolist() for tape in tapes)
    assert found == expected


@pytest.mark.parametrize("name", IN_RUNS)
@pytest.mark.parametrize("turned", [np.s_[::-1, ::-1], np.s_[:, ::-1], np.s_[::-1, 30:3:-1]])
def test_operands_that_run_backwards(name: str, turned: tuple[slice, slice]) -> None:
    def places(nodes: Ids) -> list[Ids]:
        return [nodes[:160].reshape(4, 40)[turned], nodes[200:360].reshape(4, 40)[turned]]

    both(name, places)
    both(name, lambda nodes: [places(nodes)[0][0], np.full_like(places(nodes)[0][0], nodes[50])])


def test_runs_may_use_their_own_results() -> None:
    tape = Tape()
    a = tape.var(1.0)
    # Powers of two: every new node is the last one plus itself.
    chain = np.arange(a.id, a.id + 10)
    assert tape.value(tape.elementwise("add", chain, chain)[-1]) == 2.0**10


def test_nothing_to_do() -> None:
    tape, _ = filled()
    empty = np.zeros((0, 3), np.int64)
    assert tape.elementwise("add", empty, empty).shape == (0, 3)
    assert tape.take(empty, tape.input([0], below=1), 0, 1).shape == (0, 3)


def test_steep_results_that_the_root_does_not_need_pass_nothing_on() -> None:
    tape = Tape()
    a = tape.variables([1.0, 0.0, 2.0])
    infinite = tape.variables([1.0, np.inf, 2.0])
    for out in (
        tape.elementwise("div", infinite, a),
        tape.elementwise("mul", infinite, infinite),
        tape.elementwise("exp", tape.variables([1.0, 1000.0, 2.0])),
    ):
        tape.backward(tape.add(out[0], out[2]))
        assert np.isfinite(tape.grads).all()


ROWS = [1, 2, 3, 15, 16, 17, 27, 40]
TERMS = [1, 2, 4, 7, 16, 17, 40]


def check_product(
    dtype: str, shape: tuple[int, int], record: Callable[[Tape, Ids, Ids], Ids], transposed: bool
) -> int:
    """Values and gradients of a product, against NumPy; returns the records it took."""
    rng = np.random.default_rng(shape[0])
    tape = Tape(dtype)
    rows, terms = shape
    # Rows anywhere, in any order, each of them consecutive.
    height, width = (terms, rows) if transposed else (rows, terms)
    table = tape.variables(rng.normal(size=(height, width + 3)))[rng.permutation(height), 1:-2]
    vector = tape.variables(rng.normal(size=terms + 1))[1:]
    before = records(tape)
    out = record(tape, table, vector)
    taken = records(tape) - before
    w, x = (np.vectorize(tape.value)(ids).astype(float) for ids in (table, vector))
    matrix = w.T if transposed else w
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    close: Any = np.testing.assert_allclose
    close(np.vectorize(tape.value)(out), matrix @ x, rtol=tolerance, atol=tolerance)
    weights = rng.normal(size=rows)
    tape.backward(tape.dot(out, tape.variables(weights)))
    dw, dx = (np.vectorize(tape.grad)(ids) for ids in (table, vector))
    close(dx, matrix.T @ weights, rtol=tolerance, atol=tolerance)
    outer = np.outer(weights, x)
    close(dw, outer.T if transposed else outer, rtol=tolerance, atol=tolerance)
    return taken


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_matrix_times_a_vector(rows: int, terms: int, dtype: str) -> None:
    for swap in (False, True):

        def record(tape: Tape, matrix: Ids, vector: Ids, swap: bool = swap) -> Ids:
            operands = [matrix, np.broadcast_to(vector, matrix.shape)]
            return tape.dots(*(operands[::-1] if swap else operands))

        assert check_product(dtype, (rows, terms), record, transposed=False) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("terms", TERMS[1:])
@pytest.mark.parametrize("columns", ROWS)
def test_a_vector_times_a_matrix(columns: int, terms: int, dtype: str) -> None:
    for swap in (False, True):

        def record(tape: Tape, matrix: Ids, vector: Ids, swap: bool = swap) -> Ids:
            operands = [matrix.T, np.broadcast_to(vector, matrix.T.shape)]
            return tape.dots(*(operands[::-1] if swap else operands))

        assert check_product(dtype, (columns, terms), record, transposed=True) == 1


def test_products_with_several_vectors_take_a_record_each() -> None:
    rng = np.random.default_rng(0)
    tape = Tape()
    matrix = tape.variables(rng.normal(size=(5, 4)))
    vectors = tape.variables(rng.normal(size=(3, 4)))
    pairs = np.broadcast_arrays(matrix, vectors[:, None])
    before = records(tape)
    rows = tape.dots(*(ids.reshape(-1, 4) for ids in pairs))
    assert records(tape) - before == 3
    pairs = np.broadcast_arrays(matrix.T[:, :3], vectors[:, None, :3])
    columns = tape.dots(*(ids.reshape(-1, 3) for ids in pairs))
    assert records(tape) - before == 6
    m, v = (np.vectorize(tape.value)(ids) for ids in (matrix, vectors))
    np.testing.assert_allclose(np.vectorize(tape.value)(rows), (v @ m.T).ravel(), rtol=1e-12)
    expected = (v[:, :3] @ m[:3]).ravel()
    np.testing.assert_allclose(np.vectorize(tape.value)(columns), expected, rtol=1e-12)


def test_a_vector_that_is_a_row_of_the_matrix() -> None:
    tape = Tape()
    nodes = tape.variables(np.random.default_rng(0).normal(size=30))
    values = np.vectorize(tape.value)(nodes)
    # Rows that overlap, one of them the vector itself.
    starts = np.array([0, 3, 5, 3])
    index = starts[:, None] + np.arange(20)
    out = tape.dots(nodes[index], np.broadcast_to(nodes[3:23], index.shape))
    weights = np.array([0.5, -2.0, 1.0, 3.0])
    tape.backward(tape.dot(out, tape.variables(weights)))
    expected = np.zeros(30)
    for start, weight in zip(starts, weights, strict=True):
        expected[start : start + 20] += weight * values[3:23]
        expected[3:23] += weight * values[start : start + 20]
    np.testing.assert_allclose(np.vectorize(tape.grad)(nodes), expected, rtol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_that_the_root_does_not_need_pass_nothing_on(transposed: bool) -> None:
    tape = Tape()
    values = np.ones((3, 3))
    values[(slice(None), 1) if transposed else 1] = np.inf
    matrix, vector = tape.variables(values), tape.variables(np.ones(3))
    rows = matrix.T if transposed else matrix
    out = tape.dots(rows, np.broadcast_to(vector, rows.shape))
    tape.backward(tape.add(out[0], out[2]))
    assert np.vectorize(tape.grad)(vector).tolist() == [2, 2, 2]
    expected = np.ones((3, 3))
    expected[(slice(None), 1) if transposed else 1] = 0
    np.testing.assert_array_equal(np.vectorize(tape.grad)(matrix), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_do_not_see_what_stands_beside_their_operands(
    transposed: bool, dtype: str
) -> None:
    tape = Tape(dtype)
    beside = np.full(16, np.nan)
    matrix, _ = tape.variables([[1.0, 2.0, 3.0]] * 3), tape.variables(beside)
    vector, _ = tape.variables([4.0, 5.0, 6.0]), tape.variables(beside)
    out = tape.dots(matrix.T if transposed else matrix, np.broadcast_to(vector, (3, 3)))
    expected = [15, 30, 45] if transposed else [32, 32, 32]
    assert [tape.value(node) for node in out] == expected
    tape.backward(tape.sum(out))
    expected = [6, 6, 6] if transposed else [3, 6, 9]
    assert np.vectorize(tape.grad)(vector).tolist() == expected
    expected = np.broadcast_to([[4], [5], [6]] if transposed else [4, 5, 6], (3, 3))
    np.testing.assert_array_equal(np.vectorize(tape.grad)(matrix), expected)


def test_gradient_along_a_random_direction() -> None:
    rng = np.random.default_rng(4)
    tape = Tape()
    start = rng.normal(size=(11, 9))
    leaves = tape.variables(start)
    hidden = tape.dots(leaves[:9], np.broadcast_to(leaves[9], (9, 9)))
    hidden = tape.elementwise("exp", tape.elementwise("sub", hidden, np.full(9, hidden[4])))
    hidden = tape.softmax(tape.elementwise("div", hidden, leaves[10]).reshape(3, 3)).ravel()
    hidden = tape.dots(leaves[:9].T, np.broadcast_to(hidden, (9, 9)))
    root = tape.sum(tape.elementwise("mul", hidden, hidden))
    tape.backward(root)
    direction = rng.normal(size=start.shape)
    expected = (np.vectorize(tape.grad)(leaves) * direction).sum()

    def moved(distance: float) -> float:
        for leaf, value in zip(leaves.ravel(), (start + distance * direction).ravel(), strict=True):
            tape.set_value(int(leaf), value)
        tape.forward()
        return float(tape.value(root))

    h = 1e-6
    assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(expected, rel=1e-6)


def test_lookup_of_a_row_takes_one_record() -> None:
    tape, nodes = filled(size=60)
    table = nodes.reshape(6, 10)
    rows = tape.input([4], below=6)
    before = records(tape)
    found = tape.take(table[0], rows, 0, stride=10)
    assert records(tape) - before == 1
    assert found.shape == (10,)
    for row in (4, 1):
        tape.set_input(rows, [row])
        tape.forward()
        for a, b in zip(found, table[row], strict=True):
            assert tape.value(a) == tape.value(b)
    gradients = differentiate(tape, found)
    weights = np.random.default_rng(1).normal(size=10)
    np.testing.assert_allclose(gradients[table[1]], weights)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_results_cannot_be_set(which: int) -> None:
    tape, nodes = filled()
    table, rows = nodes.reshape(40, 10), tape.input([1], below=4)
    for out in (
        tape.elementwise("add", nodes[:20], nodes[20:40]),
        tape.dots(table, np.broadcast_to(nodes[:10], (40, 10))),
        tape.dots(table.T, np.broadcast_to(nodes[:40], (10, 40))),
        tape.softmax(nodes[:7][None])[0],
        tape.take(nodes[:5], rows, 0, stride=10),
    ):
        with pytest.raises(ValueError, match="is the result of an operation"):
            tape.set_value(out[which], 1.0)
    tape.set_value(nodes[-1], 1.0)
    tape.set_value(tape.var(2.0), 1.0)
