"""Packed batches: how documents lie in the rows, and what a model makes of them."""

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from opcodes import all_named

from tapegpt.corpus import TokenizedCorpus
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.layout import BatchRange
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.train import loss_and_gradient
from tapegpt.settings import ModelConfig

VOCABULARY = 5
DOCUMENTS = 6  # a sweep holds so many
MODELS = {
    block: ModelConfig(
        n_layer=2, n_embd=n_embd, n_head=n_head, block_size=block, look_back=min(2, block - 1)
    )
    # Heads of 3, 4 and 2 columns, rows with and without padding, 12 to 30 heads in a position.
    for block, n_embd, n_head in ((1, 6, 2), (3, 16, 4), (8, 10, 5))
}
SHARE = 0.25  # of a document in the loss of a batch
TOKEN_SHARE = 0.01


@pytest.fixture(scope="module", params=MODELS, ids=lambda block: f"block{block}")
def model(request):
    return MODELS[request.param]


def recorded(model, dtype="float64"):
    compiled = compiled_model(model, VOCABULARY, "vector", dtype, DOCUMENTS)
    compiled.load()
    return compiled


@pytest.fixture(scope="module")
def compiled(model):
    return recorded(model)


def randomised(compiled, seed=0):
    rng = np.random.default_rng(seed)
    for weight in compiled.weights.values():
        weight[:] = rng.normal(size=weight.shape) * 0.5
    return compiled


documents_of_text = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=12), min_size=1, max_size=9
)


def corpus(documents):
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.array([token for document in documents for token in document])
    return TokenizedCorpus(tokens, offsets)


def chosen(documents, first, count):
    """The documents of a batch: around the end of the corpus, and again."""
    return [documents[d % len(documents)] for d in range(first, first + count)]


def naive_rows(documents, block, look_back):
    """What every row holds, and the number of rows at every position."""
    longest_first = sorted(documents, key=lambda document: -min(block, len(document) - 1))
    rows, counts = [], []
    for p in range(block):
        alive = [document for document in longest_first if p < len(document) - 1]
        counts.append(len(alive))
        for document in alive:
            weight = SHARE / min(block, len(document) - 1) + TOKEN_SHARE
            earlier = [document[max(0, p - 1 - k)] for k in range(look_back)]
            rows.append((document[p], p, document[p + 1], weight, *earlier))
    return rows, counts


@given(
    documents=documents_of_text,
    first=st.integers(0, 1000),
    count=st.integers(1, DOCUMENTS),
    stale=st.integers(0, 99),
)
def test_rows_are_packed_position_by_position(compiled, model, documents, first, count, stale):
    program, block = compiled.program, model.block_size
    inputs, weights = program.tape_arrays.inputs, program.tape_arrays.values[program.weights :]
    capacity = DOCUMENTS * block
    inputs[:] = weights[:capacity] = stale
    window = pack_batch(program, *corpus(documents), first, count, SHARE, TOKEN_SHARE)

    rows, counts = naive_rows(chosen(documents, first, count), block, model.look_back)
    longest = sum(alive > 0 for alive in counts)
    assert window == (0, longest, 0, len(rows))
    starts = inputs[program.slots.starts : program.slots.starts + block + 1]
    np.testing.assert_array_equal(starts, np.cumsum([0, *counts]))

    columns = [
        inputs[program.slots.tokens :],
        inputs[program.slots.positions :],
        inputs[program.slots.targets :],
        weights,
        *[inputs[program.slots.earlier + k * capacity :] for k in range(model.look_back)],
    ]
    packed = zip(*[column[: len(rows)].tolist() for column in columns], strict=True)
    assert list(packed) == rows
    for column in columns:
        assert (column[len(rows) : capacity] == stale).all()


def loss_and_parameter_gradient(compiled, documents, first, count):
    program = compiled.program
    program.tape_arrays.grads[: program.num_params] = 0
    window = pack_batch(program, *corpus(documents), first, count, SHARE, 0.0)
    loss = loss_and_gradient(program, window)
    gradients = compiled.by_name(program.tape_arrays.grads)
    return loss, {name: gradient.copy() for name, gradient in gradients.items()}


@given(documents=documents_of_text, first=st.integers(0, 9), count=st.integers(1, DOCUMENTS))
def test_loss_of_a_batch_is_that_of_its_documents(compiled, model, documents, first, count):
    loss, _ = loss_and_parameter_gradient(randomised(compiled), documents, first, count)
    expected = sum(
        SHARE
        * references.gpt_loss(
            compiled.weights, model.n_layer, model.n_head, document[: model.block_size + 1]
        )
        for document in chosen(documents, first, count)
    )
    assert loss == pytest.approx(expected, rel=1e-12)


@given(
    documents=documents_of_text,
    count=st.integers(1, DOCUMENTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradient_of_a_batch_is_the_slope(compiled, documents, count, seed):
    randomised(compiled, seed)
    rng = np.random.default_rng(seed + 1)
    _, gradients = loss_and_parameter_gradient(compiled, documents, 0, count)
    directions = {name: rng.normal(size=weight.shape) for name, weight in compiled.weights.items()}
    start = {name: weight.copy() for name, weight in compiled.weights.items()}

    def loss_after(step):
        for name, weight in compiled.weights.items():
            weight[:] = start[name] + step * directions[name]
        return loss_and_parameter_gradient(compiled, documents, 0, count)[0]

    expected = sum((gradients[name] * directions[name]).sum() for name in directions)
    # A step may take one of the ReLUs across its kink; a much smaller one then does not.
    steps = (1e-6, 1e-7, 1e-8)
    slopes = [(loss_after(step) - loss_after(-step)) / (2 * step) for step in steps]
    assert min(abs(slope - expected) for slope in slopes) <= 1e-6 * (1 + abs(expected))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_left_over_from_the_batch_before(model, dtype):
    """Gradients that the first record to reach them overwrites are not cleared between batches."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCABULARY, length).tolist() for length in (9, 2, 5, 7, 3, 9)]
    used, fresh = randomised(recorded(model, dtype)), randomised(recorded(model, dtype))
    loss_and_parameter_gradient(used, documents, 0, DOCUMENTS)
    grads = used.program.tape_arrays.grads
    grads[used.program.num_params :] *= 1e6
    for first, count in ((1, 2), (3, 1), (0, DOCUMENTS)):
        loss, gradients = loss_and_parameter_gradient(used, documents, first, count)
        expected, expected_gradients = loss_and_parameter_gradient(fresh, documents, first, count)
        assert loss == expected
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, expected_gradients[name])
        fresh = randomised(recorded(model, dtype))


def test_float32_follows_float64(model):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCABULARY, length).tolist() for length in (9, 2, 5, 7, 3, 9)]
    single, double = (randomised(recorded(model, dtype)) for dtype in ("float32", "float64"))
    for first, count in ((0, DOCUMENTS), (4, 3)):
        loss, gradients = loss_and_parameter_gradient(single, documents, first, count)
        expected, expected_gradients = loss_and_parameter_gradient(double, documents, first, count)
        assert loss == pytest.approx(expected, rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, expected_gradients[name], rtol=0, atol=2e-5)


def windows_of_positions(program, longest):
    """One window for every position, in order."""
    starts = program.tape_arrays.inputs[program.slots.starts :]
    return [BatchRange(p, p + 1, starts[p], starts[p + 1]) for p in range(longest)]


def test_forward_goes_position_by_position_too(model):
    """As sampling does: the keys and values of earlier positions are those on the tape."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCABULARY, length).tolist() for length in (9, 2, 5, 7, 3)]
    whole, stepwise = randomised(recorded(model)), randomised(recorded(model))
    loss, _ = loss_and_parameter_gradient(whole, documents, 0, 5)
    program = stepwise.program
    window = pack_batch(program, *corpus(documents), 0, 5, SHARE, 0.0)
    total = 0
    for part in windows_of_positions(program, window[1]):
        forward_sweep(program.tape_arrays, 0, program.ends[window[1]], part)
        total += program.tape_arrays.values[program.roots[window[1]]]
    assert total == pytest.approx(loss, rel=1e-12)


def test_reverse_goes_position_by_position_too(model):
    """All but attention, whose gradients go from later positions to earlier ones."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCABULARY, length).tolist() for length in (9, 2, 5, 7, 3)]
    compiled = randomised(recorded(model))
    program = compiled.program
    tape_arrays = program.tape_arrays
    loss_and_parameter_gradient(compiled, documents, 0, 5)
    attention = all_named("attention")
    begin = int(np.flatnonzero(np.isin(tape_arrays.records[:, 0], attention))[-1]) + 1
    window = BatchRange(
        0, model.block_size, 0, tape_arrays.inputs[program.slots.starts + model.block_size]
    )
    results = []
    for parts in ([window], windows_of_positions(program, model.block_size)):
        tape_arrays.grads[: program.num_params] = 0
        for part in parts:
            reverse_sweep(tape_arrays, begin, program.ends[-1], part)
        gradients = compiled.by_name(tape_arrays.grads)
        results.append({name: gradient.copy() for name, gradient in gradients.items()})
    whole, stepwise = results
    assert np.abs(whole["layer1.attn_wo"]).max() > 1e-3
    for name, gradient in whole.items():
        np.testing.assert_allclose(stepwise[name], gradient, rtol=0, atol=1e-12)
