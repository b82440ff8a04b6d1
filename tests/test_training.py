"""Training in memory: the optimizer, the schedule, batches, divergence, and exact resumption."""

import hashlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt import training
from tapegpt.checkpoint import RunError, load, save
from tapegpt.config import DTYPES, GRANULARITIES, ModelConfig, TrainConfig
from tapegpt.errors import DivergedError, UsageError
from tapegpt.footprint import bytes_needed, nodes_needed
from tapegpt.kernels.matmul import PANEL_DEPTH
from tapegpt.kernels.optimizers import adam
from tapegpt.kernels.simd import VECTOR_BYTES, WIDE_TILE
from tapegpt.kernels.steps import linear_decay
from tapegpt.program import record
from tapegpt.tape.memory import aligned_zeros
from tapegpt.training import Trainer

MODEL = ModelConfig(n_embd=6, n_head=2, block_size=5)
DOCUMENTS = ["ab", "b", "abcab", "cabbage", "a", "bca", "gab"]  # one is longer than the block
CONFIG = TrainConfig(steps=40, dtype="float64")
KINDS = [(granularity, dtype) for granularity in GRANULARITIES for dtype in DTYPES]


def make(model=MODEL, documents=DOCUMENTS, **settings):
    return Trainer(model, replace(CONFIG, **settings), documents)


def state(trainer):
    """All that a step changes, as bytes."""
    return [
        array.tobytes()
        for arrays in (trainer.recording.weights, *trainer.snapshot().optimizer.values())
        for array in arrays.values()
    ]


def copied(weights):
    return {name: array.copy() for name, array in weights.items()}


def numpy_adam(w, g, m, v, step, learning_rate, beta1, beta2, epsilon):
    """Algorithm 1 of Kingma and Ba (2015), in float64."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    unbiased_m, unbiased_v = m / (1 - beta1**step), v / (1 - beta2**step)
    return w - learning_rate * unbiased_m / (np.sqrt(unbiased_v) + epsilon), m, v


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-13)])
@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon"), [(0.85, 0.99, 1e-8), (0.9, 0.999, 1e-3), (0.0, 0.0, 0.5)]
)
def test_adam_is_that_of_the_paper(dtype, tolerance, beta1, beta2, epsilon):
    rng = np.random.default_rng(0)
    count, more = 4 * VECTOR_BYTES // np.dtype(dtype).itemsize, 3
    values, grads, m, v = (aligned_zeros(count + more, np.dtype(dtype)) for _ in range(4))
    values[:] = rng.normal(size=count + more)
    w, mean, square = values[:count].astype(np.float64), 0.0, 0.0
    untouched = values[count:].copy()
    for step in range(1, 8):
        grads[:] = rng.normal(size=count + more) * 10.0 ** rng.integers(-6, 3, count + more)
        rate = 0.1 / step
        w, mean, square = numpy_adam(
            w, grads[:count].astype(np.float64), mean, square, step, rate, beta1, beta2, epsilon
        )
        beyond = grads[count:].copy()
        adam(values, grads, m, v, count, step, rate, beta1, beta2, epsilon)
        np.testing.assert_allclose(values[:count], w, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(m[:count], mean, rtol=1e-4, atol=tolerance)
        np.testing.assert_allclose(v[:count], square, rtol=1e-4, atol=tolerance)
        assert not grads[:count].any()
        assert (grads[count:] == beyond).all()
    assert (values[count:] == untouched).all()
    assert not m[count:].any()
    assert not v[count:].any()


def test_parameters_without_a_gradient_stay():
    values, grads, m, v = (aligned_zeros(16, np.dtype("float64")) for _ in range(4))
    values[:] = np.arange(16)
    adam(values, grads, m, v, 16, 1, 0.01, 0.85, 0.99, 1e-8)
    assert (values == np.arange(16)).all()


def test_adam_in_float32_is_a_few_roundings_off():
    rng = np.random.default_rng(0)
    eps, tiny, count = np.finfo("float32").eps, 1e-30, 4096  # TINY in kernels/simd.py
    values, grads, m, v = (aligned_zeros(count, np.dtype("float32")) for _ in range(4))
    values[:] = rng.normal(size=count)
    for step in range(1, 20):
        # Also where squares are no normal numbers any more.
        grads[:] = rng.normal(size=count) * 10.0 ** rng.integers(-25, 3, count)
        w, g, old_m, old_v = (array.astype(np.float64) for array in (values, grads, m, v))
        _, mean, square = numpy_adam(w, g, old_m, old_v, step, 0.01, 0.85, 0.99, 1e-8)
        adam(values, grads, m, v, count, step, 0.01, 0.85, 0.99, 1e-8)
        assert (np.abs(m - mean) <= 3 * eps * (np.abs(old_m) + np.abs(g)) + 1.1 * tiny).all()
        assert (np.abs(v - square) <= 4 * eps * square + 1.1 * tiny).all()
        # What is made of the moments, given those.
        root = np.sqrt(v.astype(np.float64) / (1 - 0.99**step)) + 1e-8
        update = 0.01 * m / (1 - 0.85**step) / root
        assert (np.abs(values - (w - update)) <= eps * (10 * np.abs(update) + np.abs(w))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_without_a_gradient_never_become_subnormal(dtype):
    """Arithmetic on subnormal numbers takes a hundred times as long."""
    values, grads, m, v = (aligned_zeros(48, np.dtype(dtype)) for _ in range(4))
    grads[:] = np.random.default_rng(0).normal(size=48) * 10.0 ** np.arange(-32, 16)
    smallest = np.finfo(dtype).tiny
    for step in range(1, 8000):
        adam(values, grads, m, v, 48, step, 0.01, 0.85, 0.9, 1e-8)
        assert (np.abs(m[m != 0]) >= smallest).all()
        assert (v >= smallest).all()
    assert not m.any()
    before = values.copy()
    adam(values, grads, m, v, 48, 8000, 0.01, 0.85, 0.9, 1e-8)
    assert (values == before).all()


def test_linear_schedule():
    assert linear_decay(0.5, 0, 10) == 0.5
    assert linear_decay(0.5, 5, 10) == 0.25
    assert linear_decay(0.5, 9, 10) == pytest.approx(0.05)
    assert linear_decay(0.5, 2**53 - 1, 2**53) > 0


def test_the_rate_falls_linearly_over_the_steps_of_the_run():
    """With both betas 0 and a tiny epsilon Adam moves every weight by the rate itself."""
    trainer = make(steps=8, learning_rate=0.02, beta1=0.0, beta2=0.0, epsilon=1e-300)
    for step in range(8):
        before = trainer.recording.weights["lm_head"].copy()
        trainer.advance(1)
        moves = np.abs(trainer.recording.weights["lm_head"] - before)
        np.testing.assert_allclose(moves, 0.02 * (1 - step / 8), rtol=1e-10)


def test_adam_is_bound_to_the_settings_and_counts_steps_from_one():
    """The moments after each step tell the gradients, and those what Adam makes of them."""
    trainer = make(learning_rate=0.03, beta1=0.6, beta2=0.9, epsilon=1e-2)
    snapshot = trainer.snapshot()
    m, v = snapshot.optimizer["adam.m"], snapshot.optimizer["adam.v"]
    for step in range(1, 6):
        old, old_m, old_v = copied(trainer.recording.weights), copied(m), copied(v)
        trainer.advance(1)
        for name, weights in trainer.recording.weights.items():
            gradients = (m[name] - 0.6 * old_m[name]) / (1 - 0.6)
            rate = 0.03 * (1 - (step - 1) / CONFIG.steps)
            w, _, square = numpy_adam(
                old[name], gradients, old_m[name], old_v[name], step, rate, 0.6, 0.9, 1e-2
            )
            np.testing.assert_allclose(weights, w, rtol=1e-10, atol=1e-15)
            np.testing.assert_allclose(v[name], square, rtol=1e-9, atol=1e-15)


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
                references.gpt_loss(trainer.recording.weights, 1, 2, documents[n % len(documents)])
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
    monkeypatch.setattr(training, "ROWS_PER_SWEEP", at_once * MODEL.block_size)
    parts = make(batch_size=batch_size, granularity=granularity)
    assert parts.recording.documents_per_sweep == (at_once if granularity == "vector" else 1)
    for _ in range(5):
        np.testing.assert_allclose(whole.advance(1), parts.advance(1), rtol=1e-9)
    for name, weights in whole.recording.weights.items():
        np.testing.assert_allclose(parts.recording.weights[name], weights, rtol=1e-7, atol=1e-10)


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
    trainer.recording.weights["layer0.mlp_fc2"][1, 2] = value
    before = state(trainer)
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step 4: .*below 0\.125"):
        trainer.advance(10)
    assert trainer.step == 3
    assert state(trainer) == before


def test_a_weight_that_no_document_uses_is_noticed_too():
    trainer = make()
    unused = ord("c") - ord("a")
    trainer.recording.weights["wte"][unused, 0] = math.nan
    trainer._tokens, trainer._offsets = np.array([5, 0, 5], np.int32), np.array([0, 3])
    with pytest.raises(DivergedError, match="a weight is not finite after step 2"):
        trainer.advance(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_those_before_the_step_that_diverged(dtype):
    """A rate this large makes weights whose products overflow in the next forward sweep."""
    kind = {"dtype": dtype, "learning_rate": 1e25 if dtype == "float32" else 1e200}
    wild, tame = make(**kind), make(**kind)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step 2"):
        wild.advance(7)
    tame.advance(1)
    assert (wild.step, state(wild)) == (1, state(tame))


def test_weights_beyond_the_largest_number_stop_training():
    trainer = make(dtype="float32", learning_rate=1e300)
    with pytest.raises(DivergedError, match="a weight is not finite after step 1"):
        trainer.advance(1)


def naive_flops(trainer, first, count):
    """Multiplications and additions, counted one by one; a backward pass is two forward ones."""
    model, total = trainer.model, 0
    vocab, head_dim = trainer.tokenizer.vocab_size, model.n_embd // model.n_head
    lengths = np.diff(trainer._offsets) - 1
    for d in range(first, first + count):
        for position in range(min(model.block_size, lengths[d % len(lengths)])):
            forward = 2 * vocab * model.n_embd
            for _ in range(model.n_layer):
                forward += 2 * 4 * model.n_embd**2 + 2 * 2 * model.n_embd * 4 * model.n_embd
                for _ in range(model.n_head):
                    forward += 2 * 2 * head_dim * (position + 1)
            total += 3 * forward
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_flops(batch_size):
    trainer = make(replace(MODEL, n_layer=2), batch_size=batch_size)
    for count in (1, 5):
        expected = naive_flops(trainer, trainer.step * batch_size, count * batch_size)
        assert trainer.flops(count) == expected
        trainer.advance(count)
    assert trainer.flops(0) == 0


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, granularity, dtype):
    kind = {"granularity": granularity, "dtype": dtype, "batch_size": 2, "seed": 3}
    through, stopped = make(**kind), make(**kind)
    losses = through.advance(9)
    first = stopped.advance(4)
    assert through.rng.random() == stopped.rng.random()  # samples drawn on the way
    save(stopped.snapshot(), tmp_path)
    resumed = Trainer.resumed(load(tmp_path), DOCUMENTS)
    assert resumed.step == 4
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
    monkeypatch.setattr(training, "bytes_available", lambda: math.inf)
    with pytest.raises(UsageError, match=r"needs about .* nodes, a tape holds 2\.1e\+09.*--n-embd"):
        make(ModelConfig(n_embd=2**16))


def test_memory_is_wanted_for_the_documents_of_a_sweep(monkeypatch):
    vocab_size = make().tokenizer.vocab_size
    monkeypatch.setattr(training, "ROWS_PER_SWEEP", 4 * MODEL.block_size)
    for documents, fits, too_many in ((1, 1, 2), (3, 3, 4), (4, 100, None)):
        needed = bytes_needed(MODEL, vocab_size, "vector", "float64", documents)
        monkeypatch.setattr(training, "bytes_available", lambda needed=needed: needed)
        nodes = nodes_needed(MODEL, vocab_size, "vector", documents)
        monkeypatch.setattr(training, "LARGEST_TAPE", nodes)
        make(batch_size=fits)
        if too_many is not None:
            with pytest.raises(UsageError, match="GB"):
                make(batch_size=too_many)
            monkeypatch.setattr(training, "bytes_available", lambda: math.inf)
            with pytest.raises(UsageError, match="nodes"):
                make(batch_size=too_many)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([8, 16]),
    block=st.integers(1, 24),
    vocab_size=st.integers(2, 200),
    documents=st.integers(1, 20),
)
@settings(max_examples=10)
def test_the_footprint_is_about_right(
    granularity, layers, heads, head_dim, block, vocab_size, documents
):
    """Never much too low, or models would be tried that exhaust memory; padding is left out, and
    what matrix products pack."""
    model = ModelConfig(n_layer=layers, n_head=heads, n_embd=heads * head_dim, block_size=block)
    recording = record(model, vocab_size, granularity, "float32", documents)
    nodes = int(recording.program.tops[-1])
    padding = 2000 + PANEL_DEPTH * WIDE_TILE[1] * VECTOR_BYTES // 4
    assert nodes_needed(model, vocab_size, granularity, documents) >= 0.7 * nodes - padding
    machine = recording.program.machine
    taken = machine.records.nbytes + machine.operands.nbytes + 8 * (nodes - padding)
    assert bytes_needed(model, vocab_size, granularity, "float32", documents) >= taken


def test_the_seed_decides_everything():
    assert state(make(seed=1)) == state(make(seed=1))
    assert state(make(seed=1)) != state(make(seed=2))


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_loss_falls(granularity, dtype):
    trainer = make(granularity=granularity, dtype=dtype, batch_size=len(DOCUMENTS))
    losses = trainer.advance(CONFIG.steps)
    assert losses[-1] < 0.8 * losses[0]
