"""Values of many scalar nodes at once: read, set, and refused."""

import numpy as np
import pytest

from tapegpt.setting import DTYPES
from tapegpt.tape import Tape, TapeError


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_in_the_shape_of_the_ids(dtype):
    tape = Tape(dtype)
    x = tape.variables(np.arange(6.0).reshape(2, 3))
    y = tape.elementwise("mul", x, x)
    tape.backward(tape.sum(y.ravel().tolist()))
    assert tape.values_of(y.T).tolist() == [[0, 9], [1, 16], [4, 25]]
    assert tape.grads_of(x).tolist() == [[0, 2, 4], [6, 8, 10]]
    assert tape.grads_of(x).dtype == dtype


def test_many_set_at_once_are_as_one_by_one():
    tape = Tape()
    x = tape.variables(np.zeros(4))
    late = tape.exp(x[3])
    y = tape.elementwise("add", x, np.full(4, late.id))
    assert tape.values_of(y).tolist() == [1, 1, 1, 1]
    tape.set_values(x[1:3], [5.0, 7.0])
    assert tape.values_of(y).tolist() == [1, 6, 8, 1]
    tape.set_values([x[0], x[2]], 3)
    assert tape.values_of(y).tolist() == [4, 6, 4, 1]
    tape.set_values(x[3:], [np.log(2)])
    assert tape.values_of(y) == pytest.approx([5, 7, 5, 2 + np.log(2)])
    tape.set_values(x[:0], np.zeros(0))


def test_what_cannot_be_set_at_once():
    tape = Tape()
    a, b = tape.variables([1.0, 2.0]).tolist()
    several = tape.elementwise("mul", [a, b], [a, b])
    listed = tape.softmax(np.array([a, b]))
    x = tape.array([[1.0, 2.0]])
    for ids, values, message in (
        ([a, tape.exp(a).id], 1.0, "result of an operation"),
        ([a, several[1]], 1.0, "result of an operation"),
        ([listed[1], a], 1.0, "result of an operation"),
        ([a, x.id], 1.0, "an array where a scalar is wanted"),
        ([a, x.id + 1], 1.0, "part of the array"),
        ([a, 1000], 1.0, "not on the tape"),
        ([a, b], [1.0], "ids of the shape"),
        ([a, b], ["1", "2"], "not an array of numbers"),
        ([0.5], 1.0, "not an array of node ids"),
    ):
        with pytest.raises(TapeError, match=message):
            tape.set_values(ids, values)
    assert tape.values_of([a, b]).tolist() == [1, 2]
