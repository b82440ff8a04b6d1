"""The recurrent nets against a second program, in plain NumPy."""

import numpy as np
import pytest
import recurrent_reference
from gradients import loss_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.corpus import TokenizedCorpus
from tapegpt.graph.compile import compiled_model
from tapegpt.settings import ModelConfig

GRANULARITIES = ["scalar", "dot", "vector"]

few_examples = settings(max_examples=min(15, settings().max_examples))


@st.composite
def problems(draw):
    """A net, its vocabulary, documents of unequal lengths and the generator of its weights."""
    n_state = draw(st.integers(1, 21) | st.sampled_from([32, 40]))
    model = ModelConfig(
        model=draw(st.sampled_from(["rnn", "rnn-att"])),
        n_embd=draw(st.integers(1, 9)),
        block_size=draw(st.integers(1, 7)),
        n_state=n_state,
        n_att=draw(st.integers(1, n_state)),
    )
    vocab_size = draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    return model, vocab_size, lengths, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(problem=problems())
@few_examples
def test_loss_and_gradients(granularity, problem):
    model, vocab_size, lengths, rng = problem
    delimiter = vocab_size - 1
    documents = [[delimiter, *rng.integers(0, delimiter, n), delimiter] for n in lengths]
    offsets = np.cumsum([0, *map(len, documents)])
    corpus = TokenizedCorpus(np.concatenate(documents).astype(np.int32), offsets)
    compiled = compiled_model(model, vocab_size, granularity, "float64", len(documents))
    for matrix in compiled.weights.values():
        matrix[:] = rng.normal(0, matrix.shape[1] ** -0.5, matrix.shape)
    found = loss_and_gradients(compiled, corpus, 0, len(documents))
    n_att = model.n_att if model.model == "rnn-att" else None
    each = [
        recurrent_reference.loss_and_gradients(compiled.weights, document, n_att)
        for document in documents
    ]
    assert found[0] == pytest.approx(np.mean([loss for loss, _ in each]), rel=1e-11)
    assert found[1].keys() == each[0][1].keys()
    for name, gradient in found[1].items():
        expected = np.mean([gradients[name] for _, gradients in each], axis=0)
        floor = 1e-11 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=floor, err_msg=name)
