"""The choice of the k largest, for rows of arrays and for scalars."""

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.tape import Tape

DTYPES = ["float32", "float64"]

few_examples = settings(max_examples=min(50, settings().max_examples))


def chosen(tape, which, rows):
    """The numbers of an input that records write, (rows, numbers of a row)."""
    tape.forward()
    numbers = tape._replay_arrays().inputs[which.slot : which.slot + rows * which.width]
    return numbers.reshape(rows, which.width)


@st.composite
def rows_and_k(draw):
    """Rows of every kind: few or all equal, infinite, of many magnitudes, of one sign."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 40) | st.sampled_from([100, 257]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(rows, width))
    kind = draw(st.sampled_from(["any", "relu", "equal", "ties", "wild", "infinite", "negative"]))
    x = {
        "any": x,
        "relu": np.maximum(x, 0),
        "equal": np.full_like(x, 3),
        "ties": np.round(x),
        "wild": x * 10.0 ** rng.integers(-30, 30, x.shape),
        "infinite": np.where(rng.random(x.shape) < 0.3, np.copysign(np.inf, x), x),
        "negative": -np.abs(x),
    }[kind]
    return x, draw(st.integers(1, width))


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=rows_and_k())
@few_examples
def test_topk_is_the_first_k_of_a_sorted_row(dtype, case):
    x, k = case[0].astype(dtype), case[1]
    tape = Tape(dtype)
    which = tape.topk(tape.array(x), k)
    np.testing.assert_array_equal(chosen(tape, which, len(x)), references.topk(x, k))


@given(case=rows_and_k())
@few_examples
def test_largest_of_scalars_chooses_the_same(case):
    x, k = case
    tape = Tape()
    nodes = tape.variables(x)
    for row, numbers in zip(nodes, x, strict=True):
        which = tape.topk(row, k)
        expected = references.topk(numbers[None], k)
        np.testing.assert_array_equal(chosen(tape, which, 1), expected)
        found = [tape.value(int(tape.take(row[:1], which, j, 1)[0])) for j in range(k)]
        np.testing.assert_array_equal(found, numbers[expected[0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_choice_among_nan_is_still_of_columns(dtype):
    rng = np.random.default_rng(0)
    for width in (1, 5, 33):
        x = np.where(rng.random((7, width)) < 0.5, np.nan, rng.normal(size=(7, width)))
        tape = Tape(dtype)
        for k in range(1, width + 1):
            columns = chosen(tape, tape.topk(tape.array(x), k), 7)
            assert columns.min() >= 0
            assert columns.max() < width


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_choice_touches_no_neighbours(dtype):
    for width in range(1, 20):
        tape = Tape(dtype)
        x = tape.array(np.ones((2, width)))
        tape.topk(x, 1)
        near = tape.variables(np.arange(40.0))
        tape.topk(near[:width], 1)
        after = tape.variables(np.arange(40.0))
        tape.forward()
        for nodes in (near, after):
            np.testing.assert_array_equal(tape.values[nodes], np.arange(40))


def test_the_choice_follows_the_values():
    tape = Tape()
    x = tape.array([[1.0, 2.0, 3.0]])
    w = tape.array([[1.0], [10.0], [100.0]])
    which = tape.topk(x, 1)
    out = tape.sparse_linear(x, which, w)
    assert tape.value(out) == 300
    tape.set_value(x, [[7.0, 6.0, 5.0]])
    tape.forward()
    assert tape.value(out) == 7
    tape.backward(tape.mean(out))
    np.testing.assert_array_equal(tape.grad(x), [[1, 0, 0]])
    np.testing.assert_array_equal(tape.grad(w), [[7], [0], [0]])
