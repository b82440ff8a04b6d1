"""Rows that go on from the position before, on a tape with a batch of ragged documents."""

from functools import partial

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.tape import Tape, TapeError

few_examples = settings(max_examples=min(25, settings().max_examples))
seeds = st.integers(0, 2**32 - 1)


class Ragged:
    """A tape with a batch: documents of these lengths, the longest first, and their tokens."""

    def __init__(self, lengths, vocab_size=5, dtype="float64", documents_more=0):
        self.lengths = sorted(lengths, reverse=True)
        self.tape = Tape(dtype)
        self.vocab_size = vocab_size
        self.block = self.lengths[0] + 1
        self.documents_more = documents_more

    def pack(self, seed=0):
        """Declare the batch and fill it in."""
        self.tape.batch(len(self.lengths) + self.documents_more, self.block)
        self.row = self.tape.batch_input(self.vocab_size)
        alive = [sum(n > p for n in self.lengths) for p in range(self.block)]
        self.starts = np.cumsum([0, *alive])
        self.tokens = np.random.default_rng(seed).integers(0, self.vocab_size, self.starts[-1])
        self.tape.set_lengths(self.lengths)
        self.tape.set_input(self.row, self.tokens)

    def rows(self, document):
        return self.starts[: self.lengths[document]] + document


def sparse_step(x, h, w, k):
    """What the nets do at a position, and a norm."""
    fired = references.sparse_linear(h, references.topk(h, k), w)
    return references.relu(references.rmsnorm(x + h + fired))


def projected_states(ragged, table, w, u, k, step=sparse_step):
    """The mean over rows and columns of u times every row's state."""
    states = np.zeros((ragged.starts[-1], len(w)))
    for document in range(len(ragged.lengths)):
        h = np.zeros((1, len(w)))
        for row in ragged.rows(document):
            h = step(table[ragged.tokens[row]][None], h, w, k)
            states[row] = h[0]
    return references.linear(states, u).mean()


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    width=st.integers(1, 21),
    more=st.integers(0, 2),
    k_seed=st.tuples(st.floats(0, 1), seeds),
)
@few_examples
def test_a_recurrence_against_numpy_and_differences(lengths, width, more, k_seed):
    k = 1 + int(k_seed[0] * (width - 1))
    rng = np.random.default_rng(k_seed[1])
    arrays = [rng.normal(size=shape) for shape in ((5, width), (width, width), (3, width))]
    ragged = Ragged(lengths, documents_more=more)
    tape = ragged.tape
    table, w, u = (tape.parameter(array) for array in arrays)
    ragged.pack()
    x = tape.embed((table, ragged.row))

    def step(h):
        fired = tape.sparse_linear(h, tape.topk(h, k), w, residual=x)
        return tape.relu(tape.rmsnorm(tape.add(fired, h)))

    h = tape.scan(step, width)
    root = tape.mean(tape.linear(h, u))
    assert tape.value(root) == pytest.approx(projected_states(ragged, *arrays, k), rel=1e-10)

    tape.backward(root)
    gradients = [tape.grad(node) for node in (table, w, u)]
    directions = [rng.normal(size=array.shape) for array in arrays]
    step = 1e-7
    after, before = (
        projected_states(
            ragged,
            *(a + sign * step * d for a, d in zip(arrays, directions, strict=True)),
            k,
        )
        for sign in (1, -1)
    )
    terms = [(g * d).sum() for g, d in zip(gradients, directions, strict=True)]
    scale = 1 + sum(np.abs(g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert abs((after - before) / (2 * step) - sum(terms)) <= 1e-5 * scale


@pytest.mark.parametrize("inside", [False, True])
def test_the_gradient_of_a_state_itself(inside):
    """Seeded at every row: as of the mean of its squares, which is recorded after the scan."""
    ragged = Ragged([4, 2, 1])
    tape, rng, seen = ragged.tape, np.random.default_rng(0), []
    table, w = (tape.parameter(rng.normal(size=shape)) for shape in ((5, 3), (3, 3)))
    ragged.pack()
    x = tape.embed((table, ragged.row))

    def step(before):
        seen.append(tape.linear(before, w, residual=x))
        return tape.tanh(seen[0])

    state = tape.scan(step, 3)
    root = seen[0] if inside else state
    found = tape.grad(root, [table, w], seed=2 * root.value / root.value.size)
    total = tape.mean(root * root)
    for one, other in zip(found, tape.grad(total, [table, w]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    assert tape.check(total, [table, w]) < 1e-6


def dense_tape(peek=False):
    """Two recurrences, one after the other; peek: look at values where one is not closed yet."""
    rng = np.random.default_rng(0)
    ragged = Ragged([4, 2, 2, 1])
    tape = ragged.tape
    table, w, u = (tape.parameter(rng.normal(size=shape)) for shape in ((5, 3), (3, 3), (3, 3)))
    ragged.pack()
    x = tape.embed((table, ragged.row))

    def step(weights, x, before):
        h = tape.linear(before, weights, residual=x)
        if peek:
            tape.value(h)
        return tape.relu(h)

    for weights in (w, u):
        x = tape.scan(partial(step, weights, x), 3)
    root = tape.mean(x)
    tape.backward(root)
    return ragged, [table, w, u], x, root


def test_two_recurrences_one_after_the_other():
    ragged, parameters, x, _ = dense_tape()
    table, w, u = (ragged.tape.value(node) for node in parameters)
    states = np.zeros((ragged.starts[-1], 3))
    for document in range(len(ragged.lengths)):
        lower, upper = np.zeros(3), np.zeros(3)
        for row in ragged.rows(document):
            lower = np.maximum(table[ragged.tokens[row]] + w @ lower, 0)
            upper = np.maximum(lower + u @ upper, 0)
            states[row] = upper
    np.testing.assert_allclose(ragged.tape.value(x), states, rtol=1e-12, atol=1e-14)


def test_a_look_at_values_on_the_way_changes_nothing():
    results = []
    for peek in (False, True):
        ragged, parameters, x, root = dense_tape(peek)
        results.append([ragged.tape.value(x), *map(ragged.tape.grad, parameters)])
        assert np.isfinite(ragged.tape.value(root))
    for plain, peeked in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, peeked)


def test_replay_with_other_tokens():
    ragged, parameters, x, root = dense_tape()
    tape = ragged.tape
    before = tape.value(x)
    for i in range(len(ragged.tokens)):
        tape._inputs[ragged.row.slot + i] = 0
    tape.forward()
    changed = tape.value(x)
    assert (changed != before).any()
    for i, token in enumerate(ragged.tokens.tolist()):
        tape._inputs[ragged.row.slot + i] = token
    tape.forward()
    np.testing.assert_array_equal(tape.value(x), before)
    gradients = [tape.grad(node) for node in parameters]
    tape.backward(root)
    for node, gradient in zip(parameters, gradients, strict=True):
        np.testing.assert_array_equal(tape.grad(node), gradient)


@pytest.fixture
def tape():
    ragged = Ragged([3, 1])
    ragged.tape.parameter(np.ones((4, 4)))
    ragged.pack()
    return ragged.tape


def refused(tape, use, message):
    """A misuse, after which the tape is as it was."""
    before = tape._end(), tape._recurrence, bytes(tape._operands)
    with pytest.raises(TapeError, match=message):
        use()
    assert (tape._end(), tape._recurrence, bytes(tape._operands)) == before


def test_a_state_keeps_its_shape(tape):
    narrow = tape.embed((tape.array(np.ones((5, 3))), tape.batch_input(5)))
    refused(tape, lambda: tape.scan(lambda h: narrow, 4), r"of \(4, 4\) cannot become \(4, 3\)")
    refused(tape, lambda: tape.scan(lambda h: 0, 4), "cannot become")
    refused(tape, lambda: tape.scan(lambda h: None, 4), "None")
    tape.scan(tape.relu, 4)


def test_one_scan_at_a_time(tape):
    refused(tape, lambda: tape.scan(lambda h: tape.scan(tape.relu, 4), 4), "another scan")
    refused(tape, lambda: tape.scan(lambda h: tape.mark(), 4), "a scan is not done")
    tape.scan(tape.relu, 4)
    tape.reset(tape.mark())
    tape.scan(tape.relu, 4)


def test_a_step_that_fails_leaves_the_tape_as_it_was(tape):
    before = tape._end()
    with pytest.raises(ZeroDivisionError):
        tape.scan(lambda h: tape.relu(h) if 1 / 0 else h, 4)
    assert (tape._end(), tape._recurrence) == (before, None)


def test_a_scan_wants_a_batch_and_columns(tape):
    refused(tape, lambda: tape.scan(tape.relu, 0), "0 is not a number of columns")
    empty = Tape()
    refused(empty, lambda: empty.scan(empty.relu, 3), "no batch")


@pytest.mark.parametrize(
    "use",
    [
        lambda tape, h: tape.mean(h),
        lambda tape, h: tape.attention(h, h, h, 2),
        lambda tape, h: tape.relu(0),
        lambda tape, h: tape.neg(tape.constant(1.0)),
        lambda tape, h: tape.cross_entropy(h, tape.batch_input(4)),
        lambda tape, h: tape.max([tape.constant(1.0)]),
    ],
    ids=["mean", "attention", "fixed rows", "scalar", "loss", "max"],
)
def test_what_does_not_keep_to_its_rows_is_refused(use):
    ragged = Ragged([3, 1], vocab_size=4)
    tape = ragged.tape
    tape.parameter(np.ones((4, 4)))
    ragged.pack()

    def step(h):
        use(tape, h)
        return h

    refused(tape, lambda: tape.scan(step, 4), "every operation is one on batch arrays")
    assert tape._recurrence is None
