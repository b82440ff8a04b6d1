"""Every operation against plain NumPy, in both dtypes, and where its gradients lie.

The operations are those of ops/catalogue.py; that gradients are slopes: test_gradients.py.
"""

import math

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.catalogue import (
    ARRAY_OPERATIONS,
    CATALOGUE,
    NO_RESULT,
    RESULT_WIDTHS,
    SCALAR_OPERATIONS,
    Draw,
    Recorded,
    opcodes,
    recordable,
)

from tapegpt.kernels import op
from tapegpt.kernels.interpreter import reverse_sweep
from tapegpt.passes import mark_overwritten
from tapegpt.tape import Tape

DTYPES = ["float32", "float64"]

# Relative to the largest element, or absolute where that is below 1: a result is some tens of
# roundings of 6e-8 away from its exact value, and RMSNorm of small rows multiplies them.
FLOAT32_TOLERANCE = 5e-5

seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=min(12, settings().max_examples))
every_operation = pytest.mark.parametrize("name", CATALOGUE)


def recorded(name, seed, dtype="float64"):
    draw = Draw(seed)
    return Recorded(CATALOGUE[name](draw), draw, dtype)


def assert_close(actual, expected, tolerance):
    assert np.shape(actual) == np.shape(expected)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_every_operation_has_a_case():
    """Whatever is in the table of opcodes is recorded, of results as many as they should be."""
    found = set()
    for name in CATALOGUE:
        for seed in range(4):
            here = recorded(name, seed)
            total = 0
            for opcode, out, at, _ in here.records().tolist():
                found.add(opcode)
                places = RESULT_WIDTHS.get(opcode, ())
                width = math.prod(int(here.tape.machine().operands[at + i]) for i in places)
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


@every_operation
@given(seed=seeds)
@few_examples
def test_float32_follows_float64(name, seed):
    draw = Draw(seed)
    case = CATALOGUE[name](draw)
    given = [draw.numbers(shape, case.kind).astype("float32") for shape in case.shapes]
    single, double = (Recorded(case, draw, dtype, given) for dtype in DTYPES)
    assert_close(single.value, double.value, FLOAT32_TOLERANCE)
    for actual, expected in zip(single.gradients(), double.gradients(), strict=True):
        assert_close(actual, expected, FLOAT32_TOLERANCE)


@every_operation
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds)
@few_examples
def test_padding_stays_zero_and_neighbours_untouched(dtype, name, seed):
    here = recorded(name, seed, dtype)
    tape = here.tape
    for node, shape in tape._shapes.items():
        for memory in (tape.values, tape.grads):
            count = tape.shape(node)[0]
            rows = memory[node : node + count * shape.stride].reshape(count, -1)
            assert (rows[:, shape.width :] == 0).all()
    for guard in here.guards:
        assert (tape.value(guard) == 7).all()
        assert (tape.grad(guard) == 0).all()


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


def sweep_back(here, machine):
    machine.grads[here.root] = 1
    reverse_sweep(machine, 0, len(machine.records), here.tape._window())


# A recurrence's result is read by scalar records too, here alone: of those the pass knows nothing.
@pytest.mark.parametrize("name", sorted(ARRAY_OPERATIONS.keys() - {"recurrence"}))
@given(seed=seeds)
@few_examples
def test_first_gradient_of_an_array_may_overwrite(name, seed):
    """As in a recorded model, where nothing clears gradients between steps."""
    here = recorded(name, seed)
    tape, expected = here.tape, here.gradients()
    machine = mark_overwritten(tape.machine(), 0)
    machine.grads[:] = 0
    for opcode, _, at, back in machine.records.tolist():
        for bit, place in enumerate(op.DIFFERENTIABLE.get(opcode, ())):
            if machine.operands[back] >> bit & 1:
                machine.grads[here.elements(int(machine.operands[at + place]))] = 1e9
    sweep_back(here, machine)
    for actual, gradient in zip(here.gradients(), expected, strict=True):
        np.testing.assert_array_equal(actual, gradient)


@every_operation
@given(seed=seeds)
@few_examples
def test_gradients_add_to_what_is_there(name, seed):
    here = recorded(name, seed)
    tape, expected = here.tape, here.gradients()
    machine = tape.machine()
    machine.grads[:] = 0
    for places in here.places:
        machine.grads[places] = 3
    sweep_back(here, machine)
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
