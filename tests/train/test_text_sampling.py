"""Texts longer than a block, against a network in NumPy that reads the window again every time."""

from dataclasses import replace

import numpy as np
import pytest
import references

from tapegpt.corpus.stream import read_text
from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.errors import TapegptError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.loops.continuation import continue_texts
from tapegpt.sampling import copy_of
from tapegpt.sampling.stream import Sampler, draw_text, encoded, sample_text
from tapegpt.setting import GRANULARITIES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

CHARACTERS = "\nabcdef"
TOKENIZER = Tokenizer(CHARACTERS, delimited=False)
MODEL = ModelConfig(n_layer=2, n_embd=6, n_head=2, block_size=7)


def model(block, granularity="vector", texts=1, seed=0):
    compiled = compiled_model(
        replace(MODEL, block_size=block), len(CHARACTERS), granularity, "float64", texts
    )
    rng = np.random.default_rng(seed)
    for weights in compiled.weights.values():
        weights[:] = rng.normal(size=weights.shape) * 0.4
    return compiled


def expected_tokens(weights, window, block, uniforms, temperature):
    """Token after token: a full window becomes its last third, the new token included."""
    window, drawn = window[-block:], []
    for uniform in uniforms:
        logits = references.gpt_logits(weights, 2, 2, window)[-1] / temperature
        shares = np.exp(logits - logits.max()).cumsum()
        token = int((shares <= uniform * shares[-1]).sum())
        drawn.append(token)
        window = [*window, token]
        if len(window) > block:
            window = window[-((block + 2) // 3) :]
    return drawn


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("block", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("prompt", ["", "a", "abcdefa", "fedcba" * 5])
def test_a_text_goes_on_beyond_the_block(granularity, block, prompt):
    compiled = model(block, granularity)
    config = SampleConfig(length=40, temperature=0.7)
    tokens = encoded(prompt, TOKENIZER, of_bytes=False)
    pieces = draw_text(compiled, TOKENIZER, tokens, config, np.random.default_rng(5))
    text = "".join(pieces)
    window = [CHARACTERS.index(c) for c in prompt or "\n"]
    uniforms = np.random.default_rng(5).random(40)
    expected = expected_tokens(compiled.weights, window, block, uniforms, 0.7)
    assert text == prompt + TOKENIZER.decode(expected)


def test_texts_side_by_side_are_those_drawn_alone():
    compiled, rng = model(7, texts=5), np.random.default_rng(1)
    compiled.load()
    uniforms = rng.random((5, 30))
    windows = np.zeros((5, 7), np.int64)
    windows[:, :3] = rng.integers(0, 7, (5, 3))
    together, state = np.zeros((5, 30), np.int64), np.array([3, 0])
    limits = (1.5, len(CHARACTERS), 1.0)
    given = windows.copy()
    continue_texts(compiled.program, compiled.program, given, state, *limits, uniforms, together)
    few_rows = compiled.program_for(1)
    for i in range(5):
        alone, state = np.zeros((1, 30), np.int64), np.array([3, 0])
        for first in range(0, 30, 7):  # in any number of calls
            some = slice(first, first + 7)
            continue_texts(
                compiled.program, few_rows, windows[i : i + 1], state, *limits,
                np.ascontiguousarray(uniforms[i : i + 1, some]), part := alone[:, some].copy(),
            )  # fmt: skip
            alone[:, some] = part
        assert alone[0].tolist() == together[i].tolist()


@pytest.mark.parametrize("name", ["rnn", "rnn-att", "gpt"])
def test_any_network_draws_the_same_at_every_granularity(name):
    """The rotary block and the state of a recurrence are computed again where a window moves."""
    settings = {"gpt": {"look_back": 2, "ensemble": 2, "positions": "rotary"}}.get(name, {})
    config = ModelConfig(model=name, n_embd=8, n_state=8, n_att=4, block_size=6, **settings)
    texts = []
    for granularity in GRANULARITIES:
        compiled = compiled_model(config, len(CHARACTERS), granularity, "float64", 1)
        rng = np.random.default_rng(3)
        for weights in compiled.weights.values():
            weights[:] = rng.normal(size=weights.shape) * 0.5
        tokens = encoded("abcabcabc", TOKENIZER, of_bytes=False)
        sampling = SampleConfig(length=50, temperature=1.0)
        texts.append("".join(draw_text(compiled, TOKENIZER, tokens, sampling, rng)))
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0][9:])) > 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("fee\nbead\ncafe\n" * 20)
    trainer = Trainer(
        ModelConfig(n_embd=16, n_head=2, block_size=8),
        TrainConfig(text=True, batch_size=8, steps=300, learning_rate=0.01),
        read_text([path]),
    )
    trainer.advance(300)
    return trainer.snapshot()


def test_what_is_learned_is_drawn(run):
    (text,) = sample_text(run, SampleConfig(temperature=0, length=140, prompt="fee\n"))
    assert "".join(text) == "fee\n" + "bead\ncafe\nfee\n" * 10


def test_a_text_ends_before_the_stop(run):
    def drawn(**settings):
        (text,) = sample_text(run, SampleConfig(temperature=0, prompt="fee\n", **settings))
        return "".join(text)

    assert drawn(stop="fe\nf") == "fee\nbead\nca"
    assert drawn(stop="b") == "fee\n"
    assert drawn(stop="xx", length=7) == "fee\nbead\nca"
    assert drawn(stop="cafx", length=8) == "fee\nbead\ncaf"  # what waits is shown in the end
    assert drawn(length=1) == "fee\nb"


def test_equal_seeds_draw_equal_texts(run):
    def drawn(**settings):
        return ["".join(text) for text in sample_text(run, SampleConfig(length=30, **settings))]

    (first,) = drawn(temperature=2.0)
    many = drawn(temperature=2.0, num_samples=3)
    assert many[0] == first and len(set(many)) == 3
    assert drawn(temperature=2.0, seed=run.training.seed) == [first]
    assert drawn(temperature=2.0, seed=7) != [first]


def test_a_prompt_that_the_run_does_not_know_is_refused(run):
    with pytest.raises(TapegptError, match="character 'z'"):
        Sampler(run, SampleConfig()).text("fez")


def test_random_numbers_are_pythons():
    import random

    rng = random.Random(4)
    expected = copy_of(rng).random(3).tolist()
    assert [rng.random() for _ in range(3)] == expected
