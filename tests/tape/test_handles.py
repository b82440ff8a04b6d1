"""Handles: what Python's operators, functions and containers make of them."""

import math
import threading

import numpy as np
import pytest

from tapegpt.tape import Array, Scalar, Tape, TapeError


def test_operations_return_handles() -> None:
    tape = Tape()
    a, x = tape.var(3.0), tape.array([[1.0, -2.0]])
    nodes = [a, tape.constant(1.0), tape.mul(a, a), tape.sum([a, a]), tape.mean(x), a * 2]
    assert {type(node) for node in nodes} == {Scalar}
    assert {type(node) for node in (x, tape.relu(x), tape.softmax(x))} == {Array}
    assert (a.tape, tape.node(a.id), tape.node(x.id)) == (tape, a, x)
    assert type(tape.node(x.id)) is Array


def test_equality_is_of_nodes() -> None:
    tape, other = Tape(), Tape()
    a, b = tape.var(1.0), tape.var(1.0)
    assert a == a and a == tape.node(a.id) and a != b
    assert a != other.var(1.0)
    assert len({a, b, tape.node(a.id)}) == 2 and [b, a].index(tape.node(a.id)) == 1
    assert a != "1" and a is not None and a not in [None]
    with pytest.raises(TapeError, match=r"handle\.value == number"):
        a == 1.0  # noqa: B015
    assert tape.array([1.0]) != tape.array([1.0])


def test_a_scalar_is_as_its_value() -> None:
    tape = Tape()
    a = tape.var(2.5)
    assert (float(a), int(a), round(a, 0), math.ceil(a)) == (2.5, 2, 2.0, 3)
    assert f"{a:.2f} {a}" == f"2.50 Scalar(2.5, id={a.id})"
    assert bool(a) and not tape.var(0.0)
    assert (abs(a.value), a.grad) == (2.5, 0)


def test_an_array_of_one_number_is_that_number() -> None:
    tape = Tape()
    x = tape.array([[1.0, 2.0], [3.0, 4.0]])
    assert float(x[1:2, 1:2]) == 4 and float(tape.parameter([[2.5]])) == 2.5
    with pytest.raises(TapeError, match=r"an array of \(2, 2\) is no single number"):
        float(x)


def test_numpy_gets_values_never_ids() -> None:
    tape = Tape()
    tape.variables(np.zeros(7))
    handles = [tape.var(0.5), tape.var(1.5)]
    assert np.asarray(handles, float).tolist() == [0.5, 1.5]
    assert np.array([handles], np.float32).tolist() == [[0.5, 1.5]]
    x = tape.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.asarray(x).tolist() == np.array(x, np.float32).tolist() == [[1, 2], [3, 4]]
    assert np.asarray([x, x]).shape == (2, 2, 2)
    for use in (lambda: [1, 2, 3][handles[0]], lambda: range(handles[0])):  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            use()


def test_lists_and_arrays_of_handles_are_ids_in_bulk() -> None:
    tape = Tape()
    a, b = tape.var(2.0), tape.var(3.0)
    ids = tape.elementwise("mul", [a, b], [b.id, a], separate=True)
    assert [tape.value(int(i)) for i in ids] == [6, 6]
    assert tape.value(int(tape.sums(np.array([[a, b]]))[0])) == 5


def test_a_number_on_either_side_of_an_operator() -> None:
    tape = Tape()
    a = tape.var(3.0)
    for number in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0)):
        found = [a + number, number + a, a - number, number - a, a * number, number * a]
        assert [x.value for x in found] == [5, 5, 1, -1, 6, 6]
        assert [(a / number).value, (number / a).value, (a**number).value] == [1.5, 2 / 3, 9]
    with pytest.raises(TapeError, match="is too large"):
        a * 10**400
    total = (a + 1) * (2 - a) / 4.0
    total.backward()
    assert (total.value, a.grad) == (-1, (2 - 3 - 4) / 4)


def test_what_depends_on_a_changed_leaf_is_computed_anew() -> None:
    tape = Tape()
    a, b = tape.var(2.0), tape.var(5.0)
    c = a * b
    assert c.value == 10
    a.value = 3.0
    assert c.value == 15
    late = tape.var(1.0)
    d = c * late
    assert d.value == 15
    late.value = 2.0
    a.value = 4.0
    d.backward()
    assert (a.grad, late.grad, d.value) == (10, 20, 40)


def test_a_changed_leaf_of_a_recurrence() -> None:
    tape = Tape()
    w, table = tape.parameter(np.eye(2)), tape.parameter([[1.0, 2.0]])
    tape.batch(1, 2)
    tape.set_lengths([2])
    late = tape.parameter if False else tape.array([[1.0, 0.0], [0.0, 1.0]])
    x = tape.embed((table, tape.batch_input(1)))
    y = tape.scan(lambda h: tape.linear(h, late, residual=x), 2)
    assert tape.value(y).tolist() == [[1, 2], [2, 4]]
    tape.set_value(late, 2 * np.eye(2))
    assert tape.value(y).tolist() == [[1, 2], [3, 6]]
    assert tape.value(w).tolist() == [[1, 0], [0, 1]]


def test_gradients_are_those_of_the_last_backward() -> None:
    tape = Tape()
    a = tape.var(2.0)
    (a * a).backward()
    a.value -= 0.5 * a.grad
    assert (a.value, a.grad) == (0, 4)


def test_operators_of_two_threads() -> None:
    tape = Tape(capacity=1)
    start = [tape.var(float(k)) for k in range(4)]
    last = list(start)
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for turn in range(3000):
                last[k] = last[k] + start[k] if turn % 3 else (last[k] - 0.5) + 0.5
                if turn % 500 == 0:
                    assert last[k].value >= k
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [node.value for node in last] == [2001.0 * k for k in range(4)]
    last[3].backward()
    assert start[3].grad == 2001
    outs = tape._replay_arrays().records[:, 1]
    assert (np.diff(outs.astype(int)) > 0).all()
