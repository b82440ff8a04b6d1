"""Attention over a packed batch alone, against plain NumPy, amid memory that holds NaN."""

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.layout import BatchRange
from tapegpt.kernels.ops import streaming_attention
from tapegpt.kernels.registry import kernels_of, load_kernels
from tapegpt.tape import Tape

DTYPES = ["float32", "float64"]
HEAD_DIMS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 25, 32]
TOLERANCES = {"float32": 5e-5, "float64": 1e-12}
EVERYTHING_FRESH = 0b111
PAYS = streaming_attention.pays  # the rule itself, which the tests below replace

few_examples = settings(max_examples=min(25, settings().max_examples))


class Packed:
    """A tape with one attention record, of batch rows, that is replayed for documents' rows.

    Everything is NaN that is not given: rows beyond those of the documents, scratch memory that
    no document has filled, what a gradient is not added to.
    """

    def __init__(self, dtype, n_head, head_dim, lengths, more):
        documents_more, block_more = more
        self.n_head, width = n_head, n_head * head_dim
        self.lengths = sorted(lengths, reverse=True)
        self.block = max(lengths) + block_more
        tape = Tape(dtype)
        batch = tape.batch(len(lengths) + documents_more, self.block)
        row = tape.batch_input(1)
        table = tape.array(np.zeros((1, width)))
        operands = [tape.embed((table, row)) for _ in range(3)]
        out = tape.attention(*operands, n_head)
        self.tape_arrays = tape._replay_arrays()
        self.record = len(self.tape_arrays.records) - 1
        kernels = kernels_of(self.tape_arrays.records[-1:])
        for direction in (FORWARD, BACKWARD):
            load_kernels(self.tape_arrays.kernels, tape.dtype, kernels, direction)
        alive = [sum(length > p for length in self.lengths) for p in range(self.block)]
        self.starts = np.cumsum([0, *alive])
        self.tape_arrays.inputs[batch.starts : batch.starts + self.block + 1] = self.starts
        # Node ids of every element of the documents' rows: (rows, width).
        elements = np.add.outer(np.arange(self.starts[-1]) * tape._stride(width), np.arange(width))
        self.operands = [node.id + elements for node in operands]
        self.out = out.id + elements
        self.extent = slice(out.id, out.id + batch.capacity * tape._stride(width))
        self.clear()

    def clear(self):
        self.tape_arrays.values[:] = self.tape_arrays.grads[:] = np.nan

    def rows(self, document):
        """The rows of a document: it is the same one of those alive at every position."""
        return self.starts[: self.lengths[document]] + document

    def attend(self, q, k, v, positions=None):
        """Rows of the result; position by position, as sampling does, or all at once."""
        values = self.tape_arrays.values
        for elements, array in zip(self.operands, (q, k, v), strict=True):
            values[elements] = array
        for first, last in positions or [(0, self.block)]:
            window = BatchRange(first, last, self.starts[first], self.starts[last])
            forward_sweep(self.tape_arrays, self.record, self.record + 1, window)
        return values[self.out]

    def gradients(self, dout, before=None):
        """dq, dk and dv; added to `before` or where nothing was."""
        grads = self.tape_arrays.grads
        grads[self.out] = dout
        back = self.tape_arrays.records[self.record, 3]
        self.tape_arrays.operands[back] = EVERYTHING_FRESH if before is None else 0
        for elements, array in zip(self.operands, before or (), strict=False):
            grads[elements] = array
        window = BatchRange(0, self.block, 0, self.starts[-1])
        reverse_sweep(self.tape_arrays, self.record, self.record + 1, window)
        return [grads[elements] for elements in self.operands]


def reference(packed, q, k, v):
    out = np.empty_like(q)
    for document in range(len(packed.lengths)):
        rows = packed.rows(document)
        out[rows] = references.attention(q[rows], k[rows], v[rows], packed.n_head)
    return out


@pytest.fixture(params=["in lanes", "streaming"], autouse=True)
def kind(request, monkeypatch):
    """Either attention, whatever the sizes of a batch."""
    monkeypatch.setattr(streaming_attention, "pays", lambda *_: request.param == "streaming")
    return request.param


@st.composite
def batches(draw, dtype, head_dim=None, most=9):
    """A batch, documents of unequal lengths in it, and q, k, v and dout for its rows."""
    longest = draw(st.sampled_from([9, 9, 40, 150]))
    most = most if longest == 9 else 3
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=most))
    # The reference takes long over long documents.
    n_head = draw(
        st.integers(1, 5) | st.sampled_from([16, 19]) if longest == 9 else st.integers(1, 2)
    )
    head_dim = head_dim or draw(st.sampled_from(HEAD_DIMS))
    more = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    packed = Packed(dtype, n_head, head_dim, lengths, more)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return packed, rng.normal(size=(4, *packed.out.shape)).astype(dtype)


def assert_close(actual, expected, tolerance):
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@given(data=st.data())
@few_examples
def test_documents_attend_to_themselves(dtype, head_dim, data):
    packed, (q, k, v, dout) = data.draw(batches(dtype, head_dim))
    out = packed.attend(q, k, v)
    assert_close(out, reference(packed, q, k, v), TOLERANCES[dtype])
    gradients = packed.gradients(dout)
    assert np.isfinite(gradients).all()
    # Nothing but the documents' elements was written: the rest is still NaN.
    for memory in (packed.tape_arrays.values, packed.tape_arrays.grads):
        memory[packed.out] = np.nan
        assert np.isnan(memory[packed.extent]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@few_examples
def test_large_scores_choose_one_position(dtype, data):
    packed, (q, k, v, dout) = data.draw(batches(dtype))
    q, k = 1e6 * q, 1e6 * k
    out = packed.attend(q, k, v)
    assert_close(out, reference(packed, q, k, v), TOLERANCES[dtype])
    assert np.isfinite(packed.gradients(dout)).all()


@given(data=st.data())
@few_examples
def test_gradient_is_the_slope(data):
    packed, (q, k, v, dout) = data.draw(batches("float64"))
    packed.attend(q, k, v)
    gradients = packed.gradients(dout)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, *q.shape))
    step = 1e-6
    ahead, behind = (
        (dout * packed.attend(*(np.stack([q, k, v]) + sign * step * directions))).sum()
        for sign in (1, -1)
    )
    terms = np.stack(gradients) * directions
    scale = 1 + abs(ahead) + np.abs(terms).sum()
    assert abs((ahead - behind) / (2 * step) - terms.sum()) <= 1e-7 * scale


@given(data=st.data())
@few_examples
def test_float32_gradients_follow_double(data):
    packed, (q, k, v, dout) = data.draw(batches("float32", most=4))
    double = Packed("float64", packed.n_head, q.shape[1] // packed.n_head, packed.lengths, (0, 0))
    for tape_arrays in (packed, double):
        tape_arrays.attend(q, k, v)
    for actual, expected in zip(packed.gradients(dout), double.gradients(dout), strict=True):
        assert_close(actual, expected, TOLERANCES["float32"])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@few_examples
def test_gradients_add_to_what_is_there(dtype, data):
    packed, (q, k, v, dout) = data.draw(batches(dtype))
    packed.attend(q, k, v)
    alone = packed.gradients(dout)
    before = [q + 1, k - 1, 2 * v]
    together = packed.gradients(dout, before)
    for total, gradient, other in zip(together, alone, before, strict=True):
        np.testing.assert_array_equal(total, gradient + other)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@few_examples
def test_position_by_position_is_all_at_once(dtype, data):
    packed, (q, k, v, _) = data.draw(batches(dtype))
    whole = packed.attend(q, k, v)
    packed.clear()
    positions = [(p, p + 1) for p in range(packed.lengths[0])]
    assert_close(packed.attend(q, k, v, positions), whole, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@few_examples
def test_documents_do_not_disturb_each_other(dtype, data):
    packed, arrays = data.draw(batches(dtype))
    q, k, v, dout = arrays
    out, gradients = packed.attend(q, k, v), packed.gradients(dout)
    poisoned = packed.rows(data.draw(st.integers(0, len(packed.lengths) - 1)))
    arrays[:, poisoned] = data.draw(st.sampled_from([np.nan, np.inf]))
    others = np.delete(np.arange(len(q)), poisoned)
    np.testing.assert_array_equal(packed.attend(q, k, v)[others], out[others])
    for after, before in zip(packed.gradients(dout), gradients, strict=True):
        np.testing.assert_array_equal(after[others], before[others])


def test_memory_grows_with_the_block_not_with_its_square(monkeypatch):
    monkeypatch.setattr(streaming_attention, "pays", PAYS)

    def nodes(block):
        tape = Tape("float32")
        x = tape.array(np.ones((block, 16)))
        before = len(tape)
        tape.attention(x, x, x, 4)
        return len(tape) - before

    assert nodes(4096) < 4.1 * nodes(1024)


@pytest.mark.parametrize(
    ("heads", "block", "head_dim", "expected"),
    [
        (4, 16, 4, False),  # microgpt
        (64, 16, 16, False),
        (4, 64, 32, True),
        (48, 64, 32, False),
        (4, 1024, 32, True),
        (64, 1024, 4, True),
    ],
)
def test_the_choice_follows_what_was_measured(heads, block, head_dim, expected):
    assert PAYS(heads, block, head_dim, lanes=16) == expected
