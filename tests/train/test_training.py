"""Training in memory: the optimizer, the schedule, batches, divergence, and exact resumption."""

import hashlib
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import references
from gradients import loss_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.checkpoint import RunError, load, save
from tapegpt.corpus import TokenizedCorpus
from tapegpt.errors import DivergedError, UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.ops.product.amx import amx_room
from tapegpt.kernels.ops.product.matmul import matmul_room
from tapegpt.kernels.simd import VECTOR_BYTES
from tapegpt.models.registry import parameter_shapes, parameter_totals
from tapegpt.presets import configure, default_learning_rate
from tapegpt.recorders.memory_estimate import bytes_needed, nodes_needed
from tapegpt.sampling import sample_in_turn
from tapegpt.setting import DTYPES, GRANULARITIES, OPTIMIZERS, SCHEDULES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train import sweep_size
from tapegpt.train.initialization import normals
from tapegpt.train.trainer import Trainer

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = ModelConfig(n_embd=6, n_head=2, block_size=5)
DOCUMENTS = ["ab", "b", "abcab", "cabbage", "a", "bca", "gab"]  # one is longer than the block
CONFIG = TrainConfig(steps=40, learning_rate=0.01, dtype="float64")
KINDS = [(granularity, dtype) for granularity in GRANULARITIES for dtype in DTYPES]


def make(model=MODEL, documents=DOCUMENTS, **settings):
    return Trainer(model, replace(CONFIG, **settings), documents)


def state(trainer):
    """All that a step changes, as bytes."""
    return [
        array.tobytes()
        for arrays in (trainer.compiled.weights, *trainer.snapshot().optimizer.values())
        for array in arrays.values()
    ]


def everything(arrays):
    return np.concatenate([array.ravel() for array in arrays.values()])


LINEAR = [1 - step / CONFIG.steps for step in range(CONFIG.steps)]
COSINE = [math.cos(math.pi / 2 * step / CONFIG.steps) ** 2 for step in range(CONFIG.steps)]
SGD = {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.7}
ADAM = {"learning_rate": 0.03, "beta1": 0.6, "beta2": 0.9, "epsilon": 1e-2}


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        (ADAM, LINEAR),
        (ADAM | {"schedule": "constant", "clip_norm": 0.3}, [1] * 9),
        (ADAM | {"schedule": "cosine", "warmup": 0.0}, COSINE),
        (ADAM | {"schedule": "cosine", "warmup": 0.125}, [0.2, 0.4, 0.6, 0.8, 1, 1]),
        (ADAM | {"optimizer": "adamw", "weight_decay": 0.2}, LINEAR),
        (SGD | {"clip_norm": 0.3}, LINEAR),
        (SGD | {"schedule": "exponential", "decay": 0.9}, 0.9 ** np.arange(9)),
        (SGD | {"momentum": 0.0}, LINEAR),
    ],
)
def test_a_step_clips_and_optimizes_at_the_scheduled_rate(settings, shares):
    trainer = make(**settings)
    config, weights = trainer.training, trainer.compiled.weights
    corpus = trainer.data.numbered(0, 1)
    first, second = 0.0, 0.0
    for step, share in enumerate(shares[:6]):
        _, gradients = loss_and_gradients(trainer.compiled, corpus, step, 1)
        w, g = everything(weights), everything(gradients)
        g = references.clip(g, config.clip_norm or math.inf)
        rate = share * settings["learning_rate"]
        if config.optimizer == "sgd":
            w, first = references.sgd(w, g, first, rate, config.momentum)
        else:
            decay = settings.get("weight_decay", 0.0)
            w, first, second = references.adam(
                w, g, first, second, step + 1, rate, 0.6, 0.9, 1e-2, decay
            )
        trainer.advance(1)
        np.testing.assert_allclose(everything(weights), w, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ({"optimizer": "adam"}, {"weight_decay": 0.5, "momentum": 0.1}),
        ({"optimizer": "sgd"}, {"weight_decay": 0.5, "beta1": 0.1, "epsilon": 1.0}),
        ({"schedule": "linear"}, {"decay": 0.5, "warmup": 0.5}),
    ],
)
def test_settings_of_others_are_not_heeded(kind, others):
    plain, other = make(**kind), make(**kind, **others)
    plain.advance(3)
    other.advance(3)
    assert state(plain) == state(other)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("batch_size", "fractions"),
    [(1, {}), (3, {}), (1, {"val_fraction": 0.3}), (2, {"test_fraction": 0.4})],
)
def test_tokens_that_weigh_the_same(granularity, batch_size, fractions):
    """Over all documents to train on together the loss is the mean over their tokens."""
    trainer = make(
        granularity=granularity,
        batch_size=batch_size,
        weighting="token",
        learning_rate=1e-300,
        **fractions,
    )
    documents = shuffled_tokens(trainer)
    documents = documents[: 7 - round(7 * sum(fractions.values()))]
    losses = trainer.advance(len(documents))  # each document has come batch_size times
    expected, tokens = 0.0, 0
    for document in documents:
        loss = references.gpt_loss(trainer.compiled.weights, 1, 2, document)
        expected += loss * (len(document) - 1)
        tokens += len(document) - 1
    assert losses.mean() == pytest.approx(expected / tokens, rel=1e-12)


DROPOUT = replace(MODEL, dropout=0.25)


def test_dropout_leaves_out_something_else_in_every_sweep(monkeypatch):
    monkeypatch.setattr(sweep_size, "ROWS_PER_SWEEP", MODEL.block_size)
    documents = ["abc"] * 5
    whole = make(documents=documents, learning_rate=1e-300).advance(4)
    losses = [
        make(DROPOUT, documents, seed=seed, learning_rate=1e-300, batch_size=batch_size).advance(4)
        for seed, batch_size in ((1, 1), (1, 1), (2, 1), (1, 2))
    ]
    np.testing.assert_allclose(whole, whole[0])
    assert losses[0].tolist() == losses[1].tolist()
    once = np.concatenate([losses[0], losses[2], losses[3]])
    assert len(set(once.tolist())) == 12


def test_every_bit_of_the_seed_chooses_what_dropout_leaves_out():
    """With one document and given weights, which the seed would choose too."""
    rng = np.random.default_rng(0)
    given_weights = {
        name: rng.normal(size=weights.shape)
        for name, weights in make(DROPOUT, ["abc"]).compiled.weights.items()
    }
    seeds = [5, *(5 ^ 1 << bit for bit in range(64)), 0, 2**64 - 1]
    losses = []
    for seed in seeds:
        trainer = make(DROPOUT, ["abc"], seed=seed, learning_rate=1e-300)
        for name, weights in given_weights.items():
            trainer.compiled.weights[name][:] = weights
        losses.append(tuple(trainer.advance(4)))
    assert len(set(losses)) == len(seeds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_is_for_training_alone(dtype):
    plain, other = (make(model, dtype=dtype, val_fraction=0.3) for model in (MODEL, DROPOUT))
    other.advance(3)
    for name, weights in plain.compiled.weights.items():
        weights[:] = other.compiled.weights[name]
    assert plain.evaluate() == pytest.approx(other.evaluate(), rel=1e-6)
    config = SampleConfig(num_samples=5, temperature=1.0)
    drawn = [
        list(sample_in_turn(it.compiled, it.tokenizer, config, random.Random(1)))
        for it in (plain, other)
    ]
    assert (
        drawn[0]
        == drawn[1]
        == list(sample_in_turn(other.compiled, other.tokenizer, config, random.Random(1)))
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_default_rate_for_every_optimizer(optimizer):
    model, training = configure(None, {"optimizer": optimizer})
    trainer = make(optimizer=optimizer, learning_rate=None)
    assert trainer.learning_rate == default_learning_rate(model, training) > 0
    assert trainer.snapshot().training.learning_rate == trainer.learning_rate
    assert make(optimizer=optimizer).learning_rate == CONFIG.learning_rate


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_follows_the_clock(schedule):
    """A step halfway through the seconds has the rate of one halfway through the steps."""
    kind = {"schedule": schedule, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}
    for done, pace in ((0.5, 0.5), (0.25, 1e-3), (0.0, 0.0)):
        timed, counted = make(steps=None, seconds=60.0, **kind), make(steps=1000, **kind)
        timed.elapsed = done * 60
        timed.step = counted.step = int(done * 1000)
        timed.advance(1, pace)
        counted.advance(1)
        if (
            schedule in ("cosine", "wsd") and done == 0
        ):  # which rises with the first step, however long
            continue
        np.testing.assert_allclose(
            everything(timed.compiled.weights), everything(counted.compiled.weights), rtol=1e-9
        )


def test_the_schedule_goes_on_at_the_pace_given():
    """With plain SGD the weights move by the rate; the budget ends within these steps."""
    trainer = make(steps=None, seconds=10.0, optimizer="sgd", momentum=0.0, learning_rate=0.1)
    trainer.elapsed, together = 9.0, []
    corpus = trainer.data.numbered(0, 1)
    for step, rate in enumerate([0.01, 0.005, 0.0, 0.0]):
        _, gradients = loss_and_gradients(trainer.compiled, corpus, step, 1)
        w = everything(trainer.compiled.weights) - rate * everything(gradients)
        trainer.advance(1, 0.5)
        trainer.elapsed += 0.5
        np.testing.assert_allclose(everything(trainer.compiled.weights), w, rtol=1e-9)
        together.append(w)
    again = make(steps=None, seconds=10.0, optimizer="sgd", momentum=0.0, learning_rate=0.1)
    again.elapsed = 9.0
    again.advance(4, 0.5)
    np.testing.assert_allclose(everything(again.compiled.weights), together[-1], rtol=1e-9)


def shuffled_tokens(trainer):
    """The documents in the order that training takes them in, delimited and cut to the block."""
    documents = list(DOCUMENTS)
    random.Random(CONFIG.seed).shuffle(documents)
    bos = trainer.tokenizer.bos
    return [
        [bos, *trainer.tokenizer.encode(text).tolist(), bos][: MODEL.block_size + 1]
        for text in documents
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_batches_go_round_the_shuffled_corpus(batch_size):
    trainer = make(batch_size=batch_size)
    documents = shuffled_tokens(trainer)
    for step in range(4):
        expected = np.mean(
            [
                references.gpt_loss(trainer.compiled.weights, 1, 2, documents[n % len(documents)])
                for n in range(step * batch_size, (step + 1) * batch_size)
            ]
        )
        assert trainer.advance(1)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_lies_beyond_the_block_does_not_count(granularity):
    short, long = (
        make(documents=[text, "fgh"], granularity=granularity) for text in ("abcdef", "abcdehgfab")
    )
    assert short.advance(3).tobytes() == long.advance(3).tobytes()
    assert state(short) == state(long)


@pytest.mark.parametrize(("granularity", "dtype"), [("scalar", "float64"), ("vector", "float32")])
@given(chunks=st.lists(st.integers(0, 7), max_size=6))
@settings(max_examples=20)
def test_chunks_of_steps_make_no_difference(granularity, dtype, chunks):
    kind = {"granularity": granularity, "dtype": dtype, "batch_size": 3}
    whole, parts = make(**kind), make(**kind)
    losses = whole.advance(sum(chunks))
    in_parts = np.concatenate([np.zeros(0), *(parts.advance(count) for count in chunks)])
    assert losses.tobytes() == in_parts.tobytes()
    assert state(whole) == state(parts)
    assert whole.step == parts.step == sum(chunks)


@pytest.mark.parametrize("granularity", ["dot", "vector"])
@pytest.mark.parametrize(("at_once", "batch_size"), [(3, 8), (4, 8), (1, 2), (8, 9)])
def test_gradients_of_a_large_batch_add_up(monkeypatch, granularity, at_once, batch_size):
    whole = make(batch_size=batch_size)
    monkeypatch.setattr(sweep_size, "ROWS_PER_SWEEP", at_once * MODEL.block_size)
    parts = make(batch_size=batch_size, granularity=granularity)
    assert parts.compiled.documents_per_sweep == (at_once if granularity == "vector" else 1)
    for _ in range(5):
        np.testing.assert_allclose(whole.advance(1), parts.advance(1), rtol=1e-9)
    for name, weights in whole.compiled.weights.items():
        np.testing.assert_allclose(parts.compiled.weights[name], weights, rtol=1e-7, atol=1e-10)


def test_no_steps_change_nothing():
    trainer = make()
    before = state(trainer)
    assert trainer.advance(0).shape == (0,)
    assert (trainer.step, state(trainer)) == (0, before)


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_weight_that_is_not_finite_stops_training(granularity, dtype, value):
    trainer = make(granularity=granularity, dtype=dtype, learning_rate=0.125)
    trainer.advance(3)
    trainer.compiled.weights["layer0.mlp_fc2"][1, 2] = value
    before = state(trainer)
    with pytest.raises(DivergedError, match=r"at step 4: the loss .*rate 0\.125\)"):
        trainer.advance(10)
    assert trainer.step == 3
    assert state(trainer) == before


def test_a_weight_that_no_document_uses_is_noticed_too():
    trainer = make()
    unused = ord("c") - ord("a")
    trainer.compiled.weights["wte"][unused, 0] = math.nan
    corpus = TokenizedCorpus(np.array([5, 0, 5], np.int32), np.array([0, 3]))
    trainer.data.numbered = lambda first, count: corpus
    with pytest.raises(DivergedError, match="at step 1: a weight is not finite"):
        trainer.advance(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_those_before_the_step_that_diverged(dtype):
    """A rate this large makes weights whose products overflow in the next forward sweep."""
    kind = {"dtype": dtype, "learning_rate": 1e25 if dtype == "float32" else 1e200}
    wild, tame = make(**kind), make(**kind)
    with pytest.raises(DivergedError, match=r"at step 2: the loss is not finite"):
        wild.advance(7)
    tame.advance(1)
    assert (wild.step, state(wild)) == (1, state(tame))


def test_weights_beyond_the_largest_number_stop_training():
    trainer = make(dtype="float32", learning_rate=1e300)
    with pytest.raises(DivergedError, match="at step 1: a weight is not finite"):
        trainer.advance(1)


def naive_flops(trainer, first, count):
    """Multiplications and additions, counted one by one; a backward pass is two forward ones."""
    model, total = trainer.model, 0
    vocab, head_dim = trainer.tokenizer.vocab_size, model.n_embd // model.n_head
    lengths = np.diff(trainer.data.numbered(0, 1).offsets) - 1
    for d in range(first, first + count):
        for position in range(min(model.block_size, lengths[d % len(lengths)])):
            forward = 2 * vocab * model.n_embd
            for _ in range(model.n_layer):
                forward += 2 * 4 * model.n_embd**2 + 2 * 2 * model.n_embd * 4 * model.n_embd
                for _ in range(model.n_head):
                    forward += 2 * 2 * head_dim * (position + 1)
            total += 3 * model.ensemble * forward
    return total


@pytest.mark.parametrize("ensemble", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_flops(batch_size, ensemble):
    trainer = make(replace(MODEL, n_layer=2, ensemble=ensemble), batch_size=batch_size)
    for count in (1, 5):
        expected = naive_flops(trainer, trainer.step * batch_size, count * batch_size)
        assert trainer.flops(count) == expected
        trainer.advance(count)
    assert trainer.flops(0) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, granularity, dtype, optimizer):
    kind = {"granularity": granularity, "dtype": dtype, "optimizer": optimizer}
    if optimizer == "muon" and granularity != "vector":
        pytest.skip("muon wants whole matrices")
    kind |= {"batch_size": 2, "seed": 3, "val_fraction": 0.3, "averaging": 0.2}
    through, stopped = make(**kind), make(**kind)
    losses = through.advance(9)
    first = stopped.advance(4)
    for _ in range(2):
        stopped.evaluate()  # changes no bit of what comes after it
    stopped.elapsed = 2.5
    assert through.rng.random() == stopped.rng.random()  # samples drawn on the way
    save(stopped.snapshot(), tmp_path)
    resumed = Trainer.resumed(load(tmp_path), DOCUMENTS)
    assert (resumed.step, resumed.elapsed) == (4, 0.0)  # seconds are kept where they are the budget
    assert (resumed.best_loss, resumed.stale) == (stopped.best_loss, 1)
    assert np.concatenate([first, resumed.advance(5)]).tobytes() == losses.tobytes()
    assert state(resumed) == state(through)
    assert resumed.rng.getstate() == through.rng.getstate()
    assert resumed.tokenizer == through.tokenizer


def test_a_snapshot_tells_where_training_is():
    trainer = make()
    start = trainer.rng.getstate()
    trainer.advance(2)
    trainer.rng.random()
    run = trainer.snapshot()
    assert (run.model, run.training, run.step, run.documents) == (MODEL, CONFIG, 2, 7)
    assert run.characters == "abceg"
    assert run.random_state == trainer.rng.getstate() != start
    assert run.corpus_digest == hashlib.sha256("\n".join(DOCUMENTS).encode()).hexdigest()
    assert set(run.tensors) == set(run.optimizer["adam.m"]) == set(run.optimizer["adam.v"])
    assert all(array.any() for array in run.optimizer["adam.v"].values())


@pytest.mark.parametrize(
    "others", [DOCUMENTS[1:], [*DOCUMENTS, "a"], DOCUMENTS[::-1], ["ab", "zebra"]]
)
def test_other_documents_are_refused(others):
    run = make().snapshot()
    with pytest.raises(RunError, match="another corpus of 7 documents"):
        Trainer.resumed(run, others)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_embd": 2**30},
        {"n_layer": 1024, "n_embd": 2**16},
        {"block_size": 2**31 - 1},
        {"n_embd": 2**12, "n_layer": 512, "block_size": 2**16},
    ],
)
def test_sizes_that_memory_cannot_hold_are_refused(granularity, sizes):
    with pytest.raises(UsageError, match=r"needs about .* GB.*--n-embd.*--block-size"):
        make(ModelConfig(**sizes), granularity=granularity)


def test_sizes_that_only_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(sweep_size, "bytes_available", lambda: math.inf)
    with pytest.raises(UsageError, match=r"needs about .* nodes, a tape holds 2\.1e\+09.*--n-embd"):
        make(ModelConfig(n_embd=2**16))


def test_memory_is_wanted_for_the_documents_of_a_sweep(monkeypatch):
    vocab_size = make().tokenizer.vocab_size
    monkeypatch.setattr(sweep_size, "ROWS_PER_SWEEP", 4 * MODEL.block_size)
    for documents, fits, too_many in ((1, 1, 2), (3, 3, 4), (4, 100, None)):
        needed = bytes_needed(MODEL, vocab_size, "vector", "float64", documents, 2)
        monkeypatch.setattr(sweep_size, "bytes_available", lambda needed=needed: needed)
        nodes = nodes_needed(MODEL, vocab_size, "vector", documents)
        monkeypatch.setattr(sweep_size, "LARGEST_TAPE", nodes)
        make(batch_size=fits)
        if too_many is not None:
            with pytest.raises(UsageError, match="GB"):
                make(batch_size=too_many)
            monkeypatch.setattr(sweep_size, "bytes_available", lambda: math.inf)
            with pytest.raises(UsageError, match="nodes"):
                make(batch_size=too_many)


def test_memory_is_wanted_for_an_evaluation_and_for_the_optimizer(monkeypatch):
    vocab_size = make().tokenizer.vocab_size
    monkeypatch.setattr(sweep_size, "ROWS_PER_SWEEP", 4 * MODEL.block_size)
    for documents, arrays, fits, too_large in (
        (1, 2, {}, {"val_fraction": 0.3}),
        (4, 2, {"val_fraction": 0.3}, None),
        (1, 1, {"optimizer": "sgd"}, {"optimizer": "adamw"}),
    ):
        needed = bytes_needed(MODEL, vocab_size, "vector", "float64", documents, arrays)
        monkeypatch.setattr(sweep_size, "bytes_available", lambda needed=needed: needed)
        make(**fits)
        if too_large is not None:
            with pytest.raises(UsageError, match="GB"):
                make(**too_large)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        ModelConfig(n_layer=3, n_embd=12, n_head=3, look_back=2, block_size=5),
        ModelConfig(n_layer=2, ensemble=4, look_back=1),
        ModelConfig(model="rnn", n_embd=5, n_state=7),
        ModelConfig(model="rnn-att", n_embd=5, n_state=7, n_att=2, block_size=3),
    ],
    ids=str,
)
def test_totals_count_what_shapes_name(model):
    shapes = parameter_shapes(model, 11)
    numbers = sum(map(math.prod, shapes.values()))
    assert parameter_totals(model, 11) == (len(shapes), numbers)


@pytest.mark.parametrize("sizes", [(1024, 1024, 0, 16), (1, 1024, 1024, 2**31 - 1)], ids=str)
def test_memory_is_estimated_before_weights_are_named(monkeypatch, sizes):
    """Those of one network are; there may be as many networks."""
    monkeypatch.setattr("tapegpt.models.registry.prefixes", None)
    layers, networks, back, block = sizes
    model = ModelConfig(n_layer=layers, ensemble=networks, look_back=back, block_size=block)
    with pytest.raises(UsageError, match="the model needs about"):
        sweep_size.check_memory(model, TrainConfig(), 2000)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([8, 16]),
    block=st.integers(1, 24),
    vocab_size=st.integers(2, 200),
    documents=st.integers(1, 20),
    more=st.sampled_from([{}, {"look_back": 1}, {"ensemble": 3}, {"dropout": 0.5}]),
)
@settings(max_examples=10)
def test_the_memory_estimate_is_about_right(
    granularity, layers, heads, head_dim, block, vocab_size, documents, more
):
    """Never much too low, or models would be tried that exhaust memory; padding is left out, and
    what matrix products pack."""
    model = ModelConfig(
        n_layer=layers, n_head=heads, n_embd=heads * head_dim, block_size=1 + block,
        **(more if granularity == "vector" else more | {"dropout": 0.0}),
    )  # fmt: skip
    check_memory_estimate(model, vocab_size, granularity, documents)


def check_memory_estimate(model, vocab_size, granularity, documents):
    compiled = compiled_model(model, vocab_size, granularity, "float32", documents)
    nodes = int(compiled.program.tops[-1])
    most = 4 * model.n_embd, documents * model.block_size
    padding = 2000 * model.ensemble * model.n_layer
    padding += matmul_room(*[max(most)] * 3, VECTOR_BYTES // 4, transposed=True)
    padding += amx_room(max(most), max(most))
    assert nodes_needed(model, vocab_size, granularity, documents) >= 0.7 * nodes - padding
    tape_arrays = compiled.program.tape_arrays
    taken = tape_arrays.records.nbytes + tape_arrays.operands.nbytes + 8 * (nodes - padding)
    assert bytes_needed(model, vocab_size, granularity, "float32", documents) >= taken


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("model", ["rnn", "rnn-att"])
@given(
    n_embd=st.sampled_from([8, 24]),
    n_state=st.sampled_from([16, 64]),
    n_att=st.integers(1, 16),
    block=st.integers(1, 24),
    vocab_size=st.integers(2, 200),
    documents=st.integers(1, 20),
)
@settings(max_examples=10)
def test_the_memory_estimate_of_recurrent_nets(
    model, granularity, n_embd, n_state, n_att, block, vocab_size, documents
):
    sizes = ModelConfig(model=model, n_embd=n_embd, n_state=n_state, n_att=n_att, block_size=block)
    check_memory_estimate(sizes, vocab_size, granularity, documents)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("model", ["gpt", "rnn"])
def test_the_memory_estimate_of_a_large_vocabulary(model, granularity):
    sizes = ModelConfig(model=model, n_embd=8, n_head=2, n_state=8, block_size=2)
    check_memory_estimate(sizes, 10_001, granularity, 3)
    # Most of it is the vocabulary's, but not ten times what is needed.
    nodes = int(compiled_model(sizes, 10_001, granularity, "float32", 3).program.tops[-1])
    assert nodes_needed(sizes, 10_001, granularity, 3) < 2 * nodes


def test_the_seed_decides_everything():
    assert state(make(seed=1)) == state(make(seed=1))
    assert state(make(seed=1)) != state(make(seed=2))


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_loss_falls(granularity, dtype):
    trainer = make(granularity=granularity, dtype=dtype, batch_size=len(DOCUMENTS))
    losses = trainer.advance(CONFIG.steps)
    assert losses[-1] < 0.8 * losses[0]


@given(st.lists(st.integers(0, 50), max_size=5), st.integers())
def test_normal_numbers_drawn_together_are_those_of_the_generator(counts, seed):
    together, single = random.Random(seed), random.Random(seed)
    for count in counts:
        assert normals(together, count).tolist() == [single.gauss(0, 1) for _ in range(count)]
        assert together.getstate() == single.getstate()
