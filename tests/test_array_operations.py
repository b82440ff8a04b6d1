"""Every array operation against plain NumPy, its gradients against differences.

One case is an operation with the arrays it differentiates. Its gradient is checked for all of
them at once: the derivative along a random direction, of a random projection of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.kernels import op
from tapegpt.kernels.interpreter import reverse_sweep
from tapegpt.passes import mark_overwritten
from tapegpt.tape import Tape

DTYPES = ["float32", "float64"]
HEAD_DIMS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 25, 32]

# Relative to the largest element, or absolute where that is below 1: a result is some tens of
# roundings of 6e-8 away from its exact value, and RMSNorm of small rows multiplies them.
FLOAT32_TOLERANCE = 5e-5


@dataclass(frozen=True)
class Case:
    arrays: list[np.ndarray]
    record: Callable  # (tape, a node for each array) -> the result's node
    reference: Callable  # (the arrays) -> the result


# Around whole vectors of 2 to 16 lanes and rows of a tile, or too long for small strides.
sizes = st.integers(1, 37) | st.sampled_from([64, 100, 129])
few = st.integers(1, 7)
heads = st.integers(1, 4) | st.integers(1, 19)  # some of them in more vectors than one
seeds = st.integers(0, 2**32 - 1)


def normal(draw, *shapes):
    """Random arrays; none of their elements is so close to 0 that a step would change its sign."""
    rng = np.random.default_rng(draw(seeds))
    arrays = [rng.normal(size=shape) for shape in shapes]
    return [array + 1e-3 * np.copysign(1, array) for array in arrays]


@st.composite
def embed(draw):
    rows, width = draw(few), draw(sizes)
    heights = draw(st.lists(few, min_size=1, max_size=3))
    indices = [
        draw(st.lists(st.integers(0, height - 1), min_size=rows, max_size=rows))
        for height in heights
    ]
    return Case(
        normal(draw, *[(height, width) for height in heights]),
        lambda tape, *tables: tape.embed(*zip(tables, indices, strict=True)),
        lambda *tables: references.embed(tables, indices),
    )


@st.composite
def linear(draw):
    rows, n_in, n_out = draw(sizes), draw(sizes), draw(sizes)
    shapes = [(rows, n_in), (n_out, n_in), (rows, n_out)]
    arrays = normal(draw, *shapes[: draw(st.integers(2, 3))])
    return Case(arrays, Tape.linear, references.linear)


@st.composite
def linear_of_itself(draw):
    """x as rows, weights and what is added, all in one."""
    size = draw(sizes)
    return Case(
        normal(draw, (size, size)),
        lambda tape, x: tape.linear(x, x, x),
        lambda x: references.linear(x, x, x),
    )


@st.composite
def rmsnorm(draw):
    epsilon = draw(st.sampled_from([1e-5, 0.3]))
    return Case(
        normal(draw, (draw(few), draw(sizes))),
        lambda tape, x: tape.rmsnorm(x, epsilon),
        lambda x: references.rmsnorm(x, epsilon),
    )


@st.composite
def softmax(draw):
    return Case(normal(draw, (draw(few), draw(sizes))), Tape.softmax, references.softmax)


def attention_case(draw, head_dim):
    rows, n_head = draw(few), draw(heads)
    return Case(
        normal(draw, *[(rows, n_head * head_dim)] * 3),
        lambda tape, q, k, v: tape.attention(q, k, v, n_head),
        lambda q, k, v: references.attention(q, k, v, n_head),
    )


@st.composite
def attention(draw):
    return attention_case(draw, draw(st.sampled_from(HEAD_DIMS)))


@st.composite
def attention_to_itself(draw):
    rows, n_head = draw(few), draw(st.integers(1, 3))
    return Case(
        normal(draw, (rows, n_head * draw(few))),
        lambda tape, x: tape.attention(x, x, x, n_head),
        lambda x: references.attention(x, x, x, n_head),
    )


@st.composite
def cross_entropy(draw):
    rows, width = draw(few), draw(sizes)
    targets = draw(st.lists(st.integers(0, width - 1), min_size=rows, max_size=rows))
    return Case(
        normal(draw, (rows, width)),
        lambda tape, logits: tape.cross_entropy(logits, targets),
        lambda logits: references.cross_entropy(logits, targets),
    )


@st.composite
def relu(draw):
    return Case(normal(draw, (draw(few), draw(sizes))), Tape.relu, references.relu)


@st.composite
def add(draw):
    return Case(normal(draw, *[(draw(few), draw(sizes))] * 2), Tape.add, np.add)


@st.composite
def add_to_itself(draw):
    arrays = normal(draw, (draw(few), draw(sizes)))
    return Case(arrays, lambda tape, x: tape.add(x, x), lambda x: x + x)


@st.composite
def scale(draw):
    factor = draw(st.floats(-3, 3))
    return Case(
        normal(draw, (draw(few), draw(sizes))),
        lambda tape, x: tape.scale(x, factor),
        lambda x: factor * x,
    )


@st.composite
def mean(draw):
    return Case(normal(draw, (draw(few), draw(sizes))), Tape.mean, np.mean)


@st.composite
def several(draw):
    """Results that are used twice, and weights that serve two operations."""
    rows, n_head = draw(few), draw(st.integers(1, 3))
    width = n_head * draw(few)

    def build(tape, x, w, u):
        h = tape.linear(tape.rmsnorm(x), w)
        h = tape.linear(tape.attention(h, x, h, n_head), w, plus=h)
        return tape.add(tape.softmax(tape.linear(h, u)), tape.scale(tape.linear(x, u), 0.5))

    def reference(x, w, u):
        h = references.linear(references.rmsnorm(x), w)
        h = references.linear(references.attention(h, x, h, n_head), w, h)
        return references.softmax(references.linear(h, u)) + 0.5 * references.linear(x, u)

    x, w, u = normal(draw, (rows, width), (width, width), (5, width))
    # Rows keep their size through the weights: larger scores would magnify rounding errors.
    return Case([x, w / np.sqrt(width), u / np.sqrt(width)], build, reference)


@st.composite
def gathered_linear(draw):
    rows, n_in, n_out = draw(few), draw(sizes), draw(sizes)
    k = draw(st.integers(1, n_in))
    shapes = [(n_in, n_out), (rows, n_out)]
    more = normal(draw, *shapes[: draw(st.integers(1, 2))])
    # So far apart that a step does not change the choice.
    x = np.arange(rows * n_in).reshape(rows, n_in) / n_in - rows / 2 + 1e-3
    x = np.random.default_rng(draw(seeds)).permuted(x, axis=1)
    return Case(
        [x, *more],
        lambda tape, x, w, *plus: tape.gathered_linear(x, tape.topk(x, k), w, *plus),
        lambda x, w, *plus: references.gathered_linear(x, references.topk(x, k), w, *plus),
    )


@st.composite
def dropout(draw):
    rows, width = draw(few), draw(sizes)
    rate, key = draw(st.sampled_from([0.0, 0.1, 0.5, 0.999])), draw(st.integers(0, 2**63 - 2))

    def record(tape, x, *plus):
        keys = tape.input([0], 1)
        tape._inputs[keys.slot] = key  # beyond what is a row number, as in training
        return tape.dropout(x, rate, keys, *plus)

    return Case(
        normal(draw, *[(rows, width)] * draw(st.integers(1, 2))),
        record,
        lambda x, *plus: references.dropout(x, rate, key, 0, *plus),
    )


CASES = [
    embed, linear, linear_of_itself, rmsnorm, softmax, attention, attention_to_itself,
    cross_entropy, relu, add, add_to_itself, scale, mean, gathered_linear, dropout,
    several,
]  # fmt: skip

few_examples = settings(max_examples=min(25, settings().max_examples))
every_operation = pytest.mark.parametrize("operation", CASES, ids=lambda case: case.__name__)


class Recorded:
    """A case on a tape, with a guard array before, between and after."""

    def __init__(self, case, dtype, projection_seed=0):
        self.tape = tape = Tape(dtype)
        self.guards = [self._guard()]
        self.leaves = [tape.array(array) for array in case.arrays]
        self.guards.append(self._guard())
        self.out = case.record(tape, *self.leaves)
        self.guards.append(self._guard())
        shape = tape.shape(self.out)
        self.weights = np.random.default_rng(projection_seed).normal(size=shape)
        if shape:
            elements = self.out + np.arange(shape[0])[:, None] * tape.stride(shape[1])
            elements = elements + np.arange(shape[1])
            weights = tape.variables(self.weights)
            self.root = int(tape.dots(elements.reshape(1, -1), weights.reshape(1, -1))[0])
        else:
            self.root = tape.scale(self.out, self.weights[()])
        tape.backward(self.root)

    def _guard(self):
        return self.tape.array(np.full((1, self.tape.lanes), 7.0))

    def gradients(self):
        return [self.tape.grad(leaf) for leaf in self.leaves]

    def set(self, arrays):
        """The projection of the result for other arrays."""
        for leaf, array in zip(self.leaves, arrays, strict=True):
            self.tape.set_value(leaf, array)
        self.tape.forward()
        return self.tape.value(self.root)


def check_directional_derivative(case, seed):
    recorded = Recorded(case, "float64")
    rng = np.random.default_rng(seed)
    directions = [rng.normal(size=array.shape) for array in case.arrays]
    terms = [
        gradient * direction
        for gradient, direction in zip(recorded.gradients(), directions, strict=True)
    ]
    step = 1e-6
    forward, backward = (
        recorded.set(
            [
                array + sign * step * direction
                for array, direction in zip(case.arrays, directions, strict=True)
            ]
        )
        for sign in (1, -1)
    )
    slope = (forward - backward) / (2 * step)
    scale = 1 + abs(forward) + sum(np.abs(term).sum() for term in terms)
    assert abs(slope - sum(term.sum() for term in terms)) <= 1e-7 * scale


def assert_close(actual, expected, tolerance):
    assert np.shape(actual) == np.shape(expected)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@every_operation
@given(data=st.data())
@few_examples
def test_forward_is_the_reference(operation, data):
    case = data.draw(operation())
    recorded = Recorded(case, "float64")
    assert_close(recorded.tape.value(recorded.out), case.reference(*case.arrays), 1e-12)


@every_operation
@given(data=st.data(), seed=seeds)
@few_examples
def test_gradient_is_the_slope(operation, data, seed):
    check_directional_derivative(data.draw(operation()), seed)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@given(data=st.data(), seed=seeds)
@few_examples
def test_attention_with_heads_of_every_width(head_dim, data, seed):
    case = attention_case(data.draw, head_dim)
    for dtype, tolerance in (("float64", 1e-12), ("float32", FLOAT32_TOLERANCE)):
        recorded = Recorded(case, dtype)
        assert_close(recorded.tape.value(recorded.out), case.reference(*case.arrays), tolerance)
    check_directional_derivative(case, seed)


@every_operation
@given(data=st.data())
@few_examples
def test_float32_follows_float64(operation, data):
    case = data.draw(operation())
    case = Case([array.astype("float32") for array in case.arrays], case.record, case.reference)
    single, double = Recorded(case, "float32"), Recorded(case, "float64")
    assert_close(single.tape.value(single.out), double.tape.value(double.out), FLOAT32_TOLERANCE)
    for actual, expected in zip(single.gradients(), double.gradients(), strict=True):
        assert_close(actual, expected, FLOAT32_TOLERANCE)


@every_operation
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@few_examples
def test_padding_stays_zero_and_neighbours_untouched(dtype, operation, data):
    recorded = Recorded(data.draw(operation()), dtype)
    tape = recorded.tape
    for node, shape in tape._shapes.items():
        for memory in (tape.values, tape.grads):
            rows = memory[node : node + shape.rows * shape.stride].reshape(shape.rows, -1)
            assert (rows[:, shape.width :] == 0).all()
    for guard in recorded.guards:
        assert (tape.value(guard) == 7).all()
        assert (tape.grad(guard) == 0).all()


@every_operation
@given(data=st.data(), seed=seeds)
@few_examples
def test_replay_with_other_values_is_a_new_recording(operation, data, seed):
    case = data.draw(operation())
    rng = np.random.default_rng(seed)
    others = [rng.normal(size=array.shape) for array in case.arrays]
    replayed = Recorded(case, "float64")
    replayed.set(others)
    replayed.tape.backward(replayed.root)
    recorded = Recorded(Case(others, case.record, case.reference), "float64")
    for actual, expected in zip(replayed.gradients(), recorded.gradients(), strict=True):
        np.testing.assert_array_equal(actual, expected)


@every_operation
@given(data=st.data())
@few_examples
def test_first_gradient_of_an_array_may_overwrite(operation, data):
    """As in a recorded model, where nothing clears gradients between steps."""
    recorded = Recorded(data.draw(operation()), "float64")
    tape, expected = recorded.tape, recorded.gradients()
    machine = mark_overwritten(tape.machine(), 0)
    machine.grads[:] = 0
    machine.grads[recorded.root] = 1
    for opcode, _, at, back in machine.records.tolist():
        for bit, place in enumerate(op.DIFFERENTIABLE.get(opcode, ())):
            if machine.operands[back] >> bit & 1:
                node = int(machine.operands[at + place])
                rows, width = tape.shape(node)
                stale = machine.grads[node : node + rows * tape.stride(width)]
                stale.reshape(rows, -1)[:, :width] = 1e9
    reverse_sweep(machine, 0, len(machine.records), (0, 0, 0, 0))
    for actual, gradient in zip(recorded.gradients(), expected, strict=True):
        np.testing.assert_array_equal(actual, gradient)


@every_operation
@given(data=st.data())
@few_examples
def test_gradients_add_to_what_is_there(operation, data):
    recorded = Recorded(data.draw(operation()), "float64")
    tape, expected = recorded.tape, recorded.gradients()
    machine = tape.machine()
    machine.grads[:] = 0
    machine.grads[recorded.root] = 1
    for leaf in recorded.leaves:
        rows, width = tape.shape(leaf)
        there = machine.grads[leaf : leaf + rows * tape.stride(width)]
        there.reshape(rows, -1)[:, :width] = 3
    reverse_sweep(machine, 0, len(machine.records), (0, 0, 0, 0))
    for actual, gradient in zip(recorded.gradients(), expected, strict=True):
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
