"""Every operation against plain NumPy, in both dtypes, and where its gradients lie.

The operations are those of ops/catalogue.py; that gradients are slopes: test_gradients.py.
"""

import math

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import differentiable

from ops.catalogue import (
    ARRAY_OPERATIONS,
    CATALOGUE,
    FORMULAS,
    NO_RESULT,
    OF_LANES,
    RESULT_WIDTHS,
    SCALAR_OPERATIONS,
    Draw,
    Recorded,
    by_name,
    opcodes,
    recordable,
)
from tapegpt.graph.memory_plan import mark_overwritten
from tapegpt.kernels.interpreter import reverse_sweep
from tapegpt.kernels.layout import OPCODE
from tapegpt.tape import Tape

DTYPES = ["float32", "float64"]

# Relative to the largest element, or absolute where that is below 1: a result is some tens of
# roundings of 6e-8 away from its exact value, and RMSNorm of small rows multiplies them.
FLOAT32_TOLERANCE = 5e-5

seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=min(8, settings().max_examples))
every_operation = pytest.mark.parametrize("name", by_name(CATALOGUE))


def recorded(name, seed, dtype="float64"):
    draw = Draw(seed)
    return Recorded(CATALOGUE[name](draw), draw, dtype)


def assert_close(actual, expected, tolerance):
    assert np.shape(actual) == np.shape(expected)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_nothing_else_is_written(here):
    """Padding stays zero, and neighbours what they were."""
    tape = here.tape
    for node, shape in tape._shapes.items():
        for memory in (tape.values, tape.grads):
            count = tape.shape(node)[0]
            rows = memory[node : node + count * shape.stride].reshape(count, -1)
            assert (rows[:, shape.width :] == 0).all()
    for guard in here.guards:
        assert (tape.value(guard) == 7).all()
        assert (tape.grad(guard) == 0).all()


@pytest.mark.any_machine
def test_every_operation_has_a_case():
    """Whatever is in the table of opcodes is recorded, of results as many as they should be."""
    assert CATALOGUE.keys() >= OF_LANES
    found = set()
    for name in CATALOGUE:
        for seed in range(4):
            here = recorded(name, seed)
            total = 0
            for first, out, at, _ in here.records().tolist():
                opcode = first & OPCODE
                found.add(opcode)
                places = RESULT_WIDTHS.get(opcode, ())
                width = math.prod(int(here.tape._replay_arrays().operands[at + i]) for i in places)
                if name in SCALAR_OPERATIONS:
                    total += width * (opcode not in NO_RESULT)
                elif opcode not in NO_RESULT:
                    assert (width,) == (here.tape.shape(out)[1:] or (1,)), (name, opcode)
            assert total in (0, here.result.size), name
    names = opcodes()
    assert {names[code] for code in found} == {names[code] for code in recordable()}


@every_operation
@given(seed=seeds)
@few_examples
def test_forward_is_the_reference(name, seed):
    draw = Draw(seed)
    case = CATALOGUE[name](draw)
    here = Recorded(case, draw)
    assert_close(here.value, np.asarray(case.reference(*here.arrays)), 1e-12)
    assert_nothing_else_is_written(here)


# In float64 all formulas are compared with NumPy and their gradients with differences.
IN_FLOAT32 = sorted(CATALOGUE.keys() - FORMULAS)


@pytest.mark.parametrize("name", by_name(IN_FLOAT32, CATALOGUE.keys() - OF_LANES))
@given(seed=seeds)
@few_examples
def test_float32_follows_double(name, seed):
    draw = Draw(seed)
    case = CATALOGUE[name](draw)
    given = [draw.numbers(shape, case.kind).astype("float32") for shape in case.shapes]
    single, double = (Recorded(case, draw, dtype, given) for dtype in DTYPES)
    assert_close(single.value, double.value, FLOAT32_TOLERANCE)
    for actual, expected in zip(single.gradients(), double.gradients(), strict=True):
        assert_close(actual, expected, FLOAT32_TOLERANCE)
    assert_nothing_else_is_written(single)


@every_operation
@given(seed=seeds)
@few_examples
def test_replay_with_other_values_is_a_new_recording(name, seed):
    draw = Draw(seed)
    case = CATALOGUE[name](draw)
    replayed = Recorded(case, draw)
    others = [draw.numbers(shape, case.kind) for shape in case.shapes]
    replayed.at(others)
    replayed.tape.backward(replayed.root)
    again = Recorded(case, draw, given=others)
    np.testing.assert_array_equal(replayed.value, again.value)
    for actual, expected in zip(replayed.gradients(), again.gradients(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def sweep_back(here, tape_arrays):
    tape_arrays.grads[here.root] = 1
    reverse_sweep(tape_arrays, 0, len(tape_arrays.records), here.tape._batch_range())


# A recurrence's result is read by scalar records too, here alone: of those the pass knows nothing.
@pytest.mark.parametrize("name", by_name(sorted(ARRAY_OPERATIONS.keys() - {"recurrence"})))
@given(seed=seeds)
@few_examples
def test_first_gradient_of_an_array_may_overwrite(name, seed):
    """As in a recorded model, where nothing clears gradients between steps."""
    here = recorded(name, seed)
    tape, expected = here.tape, here.gradients()
    tape_arrays = mark_overwritten(tape._replay_arrays(), 0)
    tape_arrays.grads[:] = 0
    for opcode, _, at, back in tape_arrays.records.tolist():
        for bit, place in enumerate(differentiable(opcode)):
            if tape_arrays.operands[back] >> bit & 1:
                tape_arrays.grads[here.elements(int(tape_arrays.operands[at + place]))] = 1e9
    sweep_back(here, tape_arrays)
    for actual, gradient in zip(here.gradients(), expected, strict=True):
        np.testing.assert_array_equal(actual, gradient)


@every_operation
@given(seed=seeds)
@few_examples
def test_gradients_add_to_what_is_there(name, seed):
    here = recorded(name, seed)
    tape, expected = here.tape, here.gradients()
    tape_arrays = tape._replay_arrays()
    tape_arrays.grads[:] = 0
    for places in here.places:
        tape_arrays.grads[places] = 3
    sweep_back(here, tape_arrays)
    for actual, gradient in zip(here.gradients(), expected, strict=True):
        assert_close(actual, gradient + 3, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_at_zero_passes_nothing(dtype):
    tape = Tape(dtype)
    x = tape.array([[-1.0, 0.0, 2.0]])
    tape.backward(tape.mean(tape.relu(x)))
    np.testing.assert_allclose(tape.grad(x), [[0, 0, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 5, 21])
def test_extreme_logits_neither_overflow_nor_vanish(dtype, width):
    logits = np.zeros((3, width))
    logits[0, 0], logits[1], logits[2, -1] = 1e4, -1e4, -1e4
    tape = Tape(dtype)
    x = tape.array(logits)
    np.testing.assert_allclose(tape.value(tape.softmax(x)), references.softmax(logits), atol=1e-7)
    for row, target in ((0, 0), (0, width - 1), (1, 0), (2, width - 1)):
        row = logits[row : row + 1]
        loss = tape.cross_entropy(tape.array(row), [target])
        exact = np.log(np.exp(row - row.max()).sum()) + row.max() - row[0, target]
        np.testing.assert_allclose(tape.value(loss), exact, rtol=1e-6, atol=1e-6)
        tape.backward(loss)
        assert np.isfinite(tape.grads[: len(tape)]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores_pick_one_row(dtype):
    tape = Tape(dtype)
    q, k = tape.array([[100.0], [100.0]]), tape.array([[100.0], [-100.0]])
    v = tape.array([[2.0], [3.0]])
    out = tape.attention(q, k, v, 1)
    np.testing.assert_allclose(tape.value(out), [[2], [2]], rtol=1e-6)
    tape.backward(tape.mean(out))
    np.testing.assert_allclose(tape.grad(v), [[1], [0]], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_follows_the_largest_of_extreme_scores(dtype):
    """Wherever it stands, and however far beyond all exponentials the others are as well."""
    tape = Tape(dtype)
    q, k = tape.array([[100.0]] * 3), tape.array([[-100.0], [100.0], [200.0]])
    out = tape.attention(q, k, tape.array([[2.0], [3.0], [4.0]]), 1)
    np.testing.assert_allclose(tape.value(out), [[2], [3], [4]], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 6, 20])
def test_nan_and_infinity_reach_the_loss(dtype, column):
    for bad in (np.nan, np.inf):
        logits = np.zeros((2, 21))
        logits[1, column] = bad
        tape = Tape(dtype)
        loss = tape.cross_entropy(tape.array(logits), [3, 4])
        assert not np.isfinite(tape.value(loss))


def test_float32_sums_of_millions():
    rng = np.random.default_rng(0)
    array = rng.uniform(0.5, 1, (1100, 1000)).astype("float32")
    wide = array.reshape(1, -1)
    exact, exact_wide = array.astype("float64"), wide.astype("float64")
    targets = [7] * len(array)
    tape = Tape("float32")
    for node, expected in (
        (tape.mean(tape.array(array)), exact.mean()),
        (tape.mean(tape.array(wide)), exact.mean()),
        (tape.cross_entropy(tape.array(array), targets), references.cross_entropy(exact, targets)),
        (tape.cross_entropy(tape.array(wide), [7]), references.cross_entropy(exact_wide, [7])),
    ):
        assert tape.value(node) == pytest.approx(expected, rel=4e-7)
    flat = tape.array(np.full((1, 2**20), 0.1))
    np.testing.assert_allclose(tape.value(tape.rmsnorm(flat, 0.0)), 1, rtol=3e-7)
    np.testing.assert_allclose(tape.value(tape.softmax(flat)), 2.0**-20, rtol=3e-7)
    rows = tape.array(np.zeros((2**17, 3)))
    loss = tape.cross_entropy(rows, [0] * 2**17)
    assert tape.value(loss) == pytest.approx(np.log(3), rel=3e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 4, 37, 2000])
def test_rmsnorm_of_huge_and_of_tiny_rows(dtype, width):
    info = np.finfo(dtype)
    rng = np.random.default_rng(width)
    unit = rng.uniform(0.5, 1, (6, width)) * rng.choice([-1, 1], (6, width))
    size = np.array([[1.0], [float(info.max)], [float(info.tiny) * 1e4], [1e25], [1e-25], [3.0]])
    weights = rng.normal(size=(6, width))

    def run(x):
        tape = Tape(dtype)
        node = tape.parameter(x)
        out = tape.rmsnorm(node, 0.0)
        row = tape.array(weights)
        picked = tape.mean(tape.linear(out, row))
        tape.backward(picked)
        return tape.value(out), tape.grad(node)

    out, slope = run(unit)
    scaled, scaled_slope = run(unit * size)
    np.testing.assert_allclose(scaled, out, rtol=4e-6)
    # The slope of a row is the smaller, the larger the row; where it is beyond the type, none.
    inside = (size[:, 0] > 1e-30) & (size[:, 0] < 1e30)
    np.testing.assert_allclose((scaled_slope * size)[inside], slope[inside], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_takes_nan_for_the_largest(dtype):
    tape = Tape(dtype)
    row = np.array([[np.inf, 1.0, np.nan, 3.0], [3.0, np.nan, -np.inf, np.nan]])
    x = tape.array(row)
    which = tape.topk(x, 1)
    weights = tape.array(np.eye(4))
    picked = tape.value(tape.sparse_linear(x, which, weights))
    assert np.isnan(picked[:, :]).any(axis=1).all()


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.0019, 0.1, 0.3, 0.999, 1 - 1e-6])
def test_dropout_leaves_out_its_share(rate):
    tape = Tape("float32")
    count = 2**22
    x = tape.array(np.ones((count // 1024, 1024)))
    value = tape.value(tape.dropout(x, rate, tape.input([5], 8)))
    left_out = np.count_nonzero(value == 0)
    # Six standard deviations, and one for a share that is small.
    assert abs(left_out - rate * count) <= 6 * np.sqrt(rate * (1 - rate) * count) + 1
    assert value.max() in (0, pytest.approx(1 / (1 - rate), rel=1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_gradients_pass_through_attention(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4))
    small = float(np.finfo(dtype).tiny) * 2**-3

    def slope(outer, inner):
        tape = Tape(dtype)
        node = tape.parameter(x / inner)
        q = tape.scale(node, inner)
        out = tape.attention(q, tape.array(x[::-1].copy()), tape.array(x**2), 2)
        tape.backward(tape.scale(tape.mean(out), outer))
        return tape.grad(node)

    passed = slope(small, 2.0**20)
    np.testing.assert_allclose(passed / small, slope(1.0, 2.0**20), rtol=1e-2, atol=2.0)
