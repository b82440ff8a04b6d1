"""Counts as a part of a network: one whose weights are zero says what they say, and no more."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from opcodes import named

import tapegpt
from tapegpt.api.language_model import LanguageModel
from tapegpt.api.training import train
from tapegpt.checkpoint import RunError, load, load_manifest, save
from tapegpt.corpus.stream import read_text
from tapegpt.counting import CountingModel
from tapegpt.errors import UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.layout import NONE
from tapegpt.presets import configure
from tapegpt.runs.measure import measure
from tapegpt.runs.text import parts_of
from tapegpt.runs.transfer import extended
from tapegpt.sampling import sample
from tapegpt.sampling.stream import sample_text
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.sweep_size import check_table
from tapegpt.train.trainer import Trainer

K = 3
MODEL = ModelConfig(n_embd=4, n_head=2, block_size=8, zero_init=True, counting=K)
DOCUMENTS = [f"{'abc'[i % 3]}{'bca' * (i % 4)}{'ab' * (i * i % 3)}" for i in range(43)]
TEXT = "".join(np.random.default_rng(0).choice(list("abcdef \n"), 400))


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT)
    return read_text([path])


def make(corpus, model=MODEL, **settings):
    text = not isinstance(corpus, list)
    settings = {"text": text, "dtype": "float64", "val_fraction": 0.2, "steps": 4} | settings
    return Trainer(model, TrainConfig(**settings), corpus)


def parted(trainer, corpus):
    """Texts that are trained on, those that are held out, and how many of their tokens are read."""
    if isinstance(corpus, list):
        tokenizer = trainer.tokenizer
        parts = parts_of(corpus, trainer.training, MODEL.block_size)
        training, held_out = (
            [np.append(tokenizer.encode(text), tokenizer.bos) for text in part]
            for part in (parts.training, parts.held_out)
        )
        block = MODEL.block_size
        return training, [text[:block] for text in held_out], 0
    tokens, end = trainer.tokenizer.encode(TEXT), round(0.8 * len(TEXT))
    edges = np.arange(11) * end // 10
    parts = [tokens[begin:end] for begin, end in pairwise(edges)]
    return parts, [tokens[edges[-1] - K :]], K


@pytest.fixture(params=["documents", "text"])
def corpus(request, stream):
    return stream if request.param == "text" else DOCUMENTS


@pytest.mark.parametrize(("ensemble", "threads"), [(1, 1), (2, 2)])
def test_a_network_of_zeros_predicts_what_is_held_out_as_counting_does(corpus, ensemble, threads):
    model = replace(MODEL, ensemble=ensemble)
    trainer = make(corpus, model, threads=threads, batch_size=threads)
    training, held_out, read = parted(trainer, corpus)
    expected = CountingModel(training, trainer.tokenizer.vocab_size, K).losses(held_out)[read:]
    assert trainer.evaluate() == pytest.approx(expected.mean())


def test_a_network_of_zeros_learns_from_what_other_tenths_say(corpus):
    trainer = make(corpus, batch_size=40)
    training, _, _ = parted(trainer, corpus)
    vocab_size = trainer.tokenizer.vocab_size
    tenths = np.arange(len(training)) * 10 // len(training)
    models = [
        CountingModel(
            [text for text, own in zip(training, tenths, strict=True) if own != tenth],
            vocab_size,
            K,
        )
        for tenth in range(10)
    ]
    tokens, offsets, _ = trainer.data.numbered(0, 40)
    losses = []
    if isinstance(corpus, list):
        for document in range(40):
            text = training[document % len(training)]
            own = models[tenths[document % len(training)]].losses([text])
            losses.append(own[: MODEL.block_size].mean())
    else:
        joined = np.concatenate(training)
        tenth_of = np.repeat(tenths, list(map(len, training)))
        windows = [tokens[begin : begin + MODEL.block_size + 1] for begin in offsets[:-1]]
        everywhere = np.lib.stride_tricks.sliding_window_view(joined, MODEL.block_size + 1)
        by_tenth = [model.losses([joined]) for model in models]
        for window in windows:
            (begin,) = np.flatnonzero((everywhere == window).all(1))
            places = range(begin + 1, begin + len(window))
            losses.append(np.mean([by_tenth[tenth_of[i]][i] for i in places]))
    (loss,) = trainer.advance(1)
    assert loss == pytest.approx(np.mean(losses))


def test_a_document_knows_nothing_of_its_own_tenth():
    ordered = parts_of(DOCUMENTS, TrainConfig(), MODEL.block_size).training
    place = DOCUMENTS.index(ordered[1])  # in the first tenth, beside the first document

    def first_loss(documents):
        (loss,) = make(documents, val_fraction=0.0).advance(1)
        return loss

    changed = [*DOCUMENTS]
    changed[place] = "ccccaaa"
    elsewhere = [*DOCUMENTS]
    elsewhere[DOCUMENTS.index(ordered[-1])] = "ccccaaa"
    assert first_loss(changed) == first_loss(DOCUMENTS)
    assert first_loss(elsewhere) != first_loss(DOCUMENTS)


def test_it_goes_on_to_the_same_bits(corpus, tmp_path):
    model = replace(MODEL, zero_init=False)
    whole, first = make(corpus, model), make(corpus, model)
    losses = whole.advance(4)
    assert losses[:2].tolist() == first.advance(2).tolist()
    save(first.snapshot(), tmp_path)
    run = load(tmp_path)
    assert run.counted.dtype == np.uint8
    second = Trainer.resumed(run, corpus)
    assert second.advance(2).tolist() == losses[2:].tolist()
    assert np.array_equal(second.compiled.parameters, whole.compiled.parameters)
    assert any(weights.any() for name, weights in run.tensors.items() if name == "count_in")


def test_a_saved_run_knows_what_the_training_knew(corpus, tmp_path):
    trainer = make(corpus, replace(MODEL, zero_init=False), batch_size=5)
    trainer.advance(4)
    save(trainer.snapshot(), tmp_path)
    run = load(tmp_path)
    parts = parts_of(corpus, run.training, MODEL.block_size)
    held_out = measure(run, parts.held_out)
    assert held_out.nats_per_token == pytest.approx(trainer.evaluate())
    # Its own text would be told by heart if the counts had not left out its tenth.
    honest, told = measure(run, parts.training, trained_on=True), measure(run, parts.training)
    assert told.nats_per_token < honest.nats_per_token - 0.02


def greedy(model, tokens, vocab_size):
    """What counting holds for the likeliest token to follow."""
    shares = [-model.losses([np.append(tokens, token)])[-1] for token in range(vocab_size)]
    return int(np.argmax(shares))


def test_documents_are_drawn_as_counting_draws_them(tmp_path):
    trainer = make(DOCUMENTS)
    save(trainer.snapshot(), tmp_path)
    training, _, _ = parted(trainer, DOCUMENTS)
    tokenizer, model = trainer.tokenizer, CountingModel(training, 4, K)
    tokens = list(tokenizer.encode("a"))
    while len(tokens) < MODEL.block_size and tokens[-1] != tokenizer.bos:
        tokens.append(greedy(model, tokens, 4))
    expected = tokenizer.decode(token for token in tokens if token != tokenizer.bos)
    config = SampleConfig(temperature=0.0, prompt="a", num_samples=2)
    assert list(sample(load(tmp_path), config)) == [expected] * 2


@pytest.mark.parametrize("prompt", ["", "ab", "cfbf c f\nf f", TEXT[30:70]])
def test_a_text_goes_on_past_the_block_as_counting_goes_on(stream, tmp_path, prompt):
    trainer = make(stream)
    save(trainer.snapshot(), tmp_path)
    training, _, _ = parted(trainer, stream)
    tokenizer = trainer.tokenizer
    model = CountingModel(training, tokenizer.vocab_size, K)
    before = prompt or "\n"
    tokens = list(tokenizer.encode(before))
    for _ in range(3 * MODEL.block_size):
        tokens.append(greedy(model, tokens, tokenizer.vocab_size))
    drawn = tokenizer.decode(tokens[len(before) :])
    config = SampleConfig(temperature=0.0, prompt=prompt, length=3 * MODEL.block_size)
    (text,) = sample_text(load(tmp_path), config)
    assert "".join(text) == prompt + drawn


def test_a_model_in_python(tmp_path):
    settings = {"n_embd": 4, "n_head": 2, "block_size": 8, "counting": K}
    model = LanguageModel("gpt", DOCUMENTS, **settings)
    assert len(list(model.sample(2))) == 2  # nothing is counted yet
    assert np.isfinite(model.logits("ab")).all()
    train(model, DOCUMENTS, steps=2)
    known = model.logits("ab")
    model.save(tmp_path / "run")
    assert np.array_equal(tapegpt.load(tmp_path / "run").logits("ab"), known)


def test_a_run_with_other_counts_is_refused(tmp_path):
    save(make(DOCUMENTS).snapshot(), tmp_path)
    run = load(tmp_path)
    for counted, problem in (
        (run.counted.astype(np.uint16), "no tokens"),
        (run.counted + np.uint8(9), "no token"),
        (run.counted[:, None], "no tokens"),
    ):
        with pytest.raises(RunError, match=problem):
            save(replace(run, counted=counted), tmp_path / "other")
    assert load_manifest(tmp_path).counted is None
    nothing = replace(run, counted=None)
    save(nothing, tmp_path / "other")
    assert load(tmp_path / "other").counted.tolist() == []


def test_what_is_not_there_costs_nothing():
    without = compiled_model(replace(MODEL, counting=0), 5, "vector", "float64", 2).program
    slots = without.slots
    assert (slots.history, slots.orders, slots.folds) == (NONE, 0, NONE)
    with_counts = compiled_model(MODEL, 5, "vector", "float64", 2).program
    codes = [set(p.tape_arrays.records[:, 0]) for p in (without, with_counts)]
    assert codes[1] - codes[0] == {named("counted_features"), named("gated_sum")}


def test_what_counts_say_is_passed_no_gradient():
    program = compiled_model(MODEL, 5, "vector", "float64", 2).program
    records, operands = program.tape_arrays.records.tolist(), program.tape_arrays.operands
    (features,) = (out for code, out, _, _ in records if code == named("counted_features"))
    (back,) = (
        back
        for code, _, at, back in records
        if code == named("linear") and operands[at + 3] == features
    )
    assert operands[back + 2] == NONE


def test_a_larger_alphabet_keeps_what_was_learned():
    trainer = make(DOCUMENTS, replace(MODEL, zero_init=False))
    trainer.advance(4)
    run = trainer.snapshot()
    other = make([*DOCUMENTS, "zab"], replace(MODEL, zero_init=False), val_fraction=0.0)
    drawn = other.compiled.weights["count_in"].copy()
    weights = extended(run, other.compiled.weights, other.tokenizer)["count_in"]
    size, larger = run.vocab_size, other.tokenizer.vocab_size
    assert larger == size + 1
    known = [0, 1, 2, 4]  # a, b, c and the end
    for order in range(K):
        here = weights[:, order * larger : (order + 1) * larger]
        expected = run.tensors["count_in"][:, order * size : (order + 1) * size]
        assert np.array_equal(here[:, known], expected)
        assert np.array_equal(here[:, 3], drawn[:, order * larger + 3])
    assert np.array_equal(weights[:, -2 * K :], run.tensors["count_in"][:, -2 * K :])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"counting": 3, "granularity": "dot"}, "--counting 3 is for --granularity vector alone"),
        ({"counting": 3, "model": "rnn"}, "--counting 3 is for --model gpt alone"),
        ({"counting": 17}, "--counting 17"),
        ({"counting": -1}, "--counting -1"),
    ],
)
def test_refusals(settings, problem):
    with pytest.raises(UsageError) as error:
        configure(None, settings)
    assert problem in str(error.value)


def test_counts_that_memory_does_not_hold(monkeypatch):
    monkeypatch.setattr("tapegpt.train.sweep_size.bytes_available", lambda: 1e9)
    with pytest.raises(UsageError, match=r"the counts of 4000000 tokens need about .* GB"):
        check_table(4_000_000, 8, crossed=True)


def test_counting_leaves_time_for_a_step():
    trainer = make(DOCUMENTS, steps=None, seconds=1e-9)
    assert trainer.elapsed > trainer.training.seconds
    assert not trainer.finished
    trainer.advance(1)
    assert trainer.finished
