"""Threads that share the batches of one training."""

import itertools
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import references
from gradients import group
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.errors import TapegptError, UsageError
from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import (
    ADAM,
    SGD,
    Optimizer,
    update,
)
from tapegpt.kernels.loops.thread_group import (
    FAULTS,
    SQUARES,
    all_reduce_sum,
    partition,
)
from tapegpt.kernels.simd import VECTOR_BYTES
from tapegpt.recorders.memory_estimate import bytes_needed
from tapegpt.setting import DTYPES, GRANULARITIES, MODELS
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.tape.alignment import aligned_zeros
from tapegpt.train import workers
from tapegpt.train.trainer import Trainer
from tapegpt.train.workers import Threads

SMALL = ModelConfig(n_embd=8, n_head=2, block_size=5, n_state=6, n_att=3)
DOCUMENTS = ["ab", "b", "cabba", "ba", "a", "zab", "ba", "abcabc", "ccc", "bz", "za"]
CONFIG = TrainConfig(steps=20, batch_size=5, dtype="float64", learning_rate=0.01)


def make(model=SMALL, **changes):
    return Trainer(model, replace(CONFIG, **changes), DOCUMENTS)


def weights_of(trainer):
    return np.concatenate([array.ravel() for array in trainer.compiled.weights.values()])


@given(count=st.integers(0, 10**6), threads=st.integers(1, 200))
def test_parts_cover_everything_once(count, threads):
    parts = [partition(count, thread, threads) for thread in range(threads)]
    assert (parts[0][0], parts[-1][1]) == (0, count)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    sizes = {end - begin for begin, end in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("model", "granularity"),
    [*itertools.product(MODELS, GRANULARITIES), ("ensemble", "vector"), ("clipped", "vector")],
)
def test_as_one_thread(model, granularity):
    """But for roundings: batches, gradients, clipping, averages, and the loss on held-out text."""
    network, changes = replace(SMALL, model=model if model in MODELS else "gpt"), {}
    if model == "ensemble":
        network = replace(network, ensemble=2, look_back=2)
        changes = {"optimizer": "adamw", "averaging": 0.2, "weighting": "token"}
    if model == "clipped":
        changes = {"optimizer": "sgd", "clip_norm": 0.3}
    changes |= {"granularity": granularity, "val_fraction": 0.3}
    alone = make(network, **changes)
    expected = alone.advance(20)
    held_out = alone.evaluate()
    for count in (2, 3, 5):
        several = make(network, **changes, threads=count)
        losses = np.concatenate([several.advance(7), several.advance(13)])
        np.testing.assert_allclose(losses, expected, rtol=1e-11)
        np.testing.assert_allclose(weights_of(several), weights_of(alone), rtol=1e-8, atol=1e-11)
        assert several.evaluate() == pytest.approx(held_out, rel=1e-11)


def test_dropout_is_on_in_every_thread():
    model = replace(SMALL, dropout=0.5)
    results = [make(model, threads=count).advance(20) for count in (1, 2, 2)]
    assert (results[1] == results[2]).all()
    assert np.abs(results[0] - results[1]).max() > 1e-3  # which numbers go depends on the threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [ADAM, SGD])
@given(
    vectors=st.integers(1, 9),
    threads=st.integers(1, 5),
    clip_norm=st.sampled_from([0.3, 1e9, np.inf]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_an_update_by_several_threads(dtype, kind, vectors, threads, clip_norm, seed):
    rng, count = np.random.default_rng(seed), vectors * VECTOR_BYTES // np.dtype(dtype).itemsize
    values = aligned_zeros(count + 3, np.dtype(dtype))
    values[:] = rng.normal(size=count + 3)
    start = values.copy()
    grads = [rng.normal(size=count + 3).astype(dtype) for _ in range(threads)]
    shared = group(values, *(array.copy() for array in grads))
    state = aligned_zeros((2 - kind) * count, np.dtype(dtype)).reshape(-1, count)
    optimizer = Optimizer(
        kind, state, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.1, momentum=0.7,
        clip_norm=clip_norm, averaging=0.0, muon=no_matrices(dtype),
    )  # fmt: skip

    with ThreadPoolExecutor(threads) as pool:
        finite = pool.map(lambda i: update(shared, i, count, optimizer, 1, 0.02), range(threads))
        assert all(finite)

    total = np.sum([g[:count] for g in grads], axis=0, dtype=np.float64)
    total = references.clip(total, clip_norm)
    w, zero = start[:count].astype(np.float64), np.zeros(count)
    if kind == SGD:
        expected = references.sgd(w, total, zero, 0.02, 0.7)[0]
    else:
        expected = references.adam(w, total, zero, zero, 1, 0.02, 0.8, 0.9, 1e-6, 0.1)[0]
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(values[:count], expected, rtol=tolerance, atol=tolerance)
    assert (values[count:] == start[count:]).all()
    assert not shared.grads[:count].any() and not shared.other_grads[:, :count].any()
    assert (shared.grads[count:] == grads[0][count:]).all()


def test_nobody_leaves_a_meeting_early():
    shared = group(np.zeros(8), *np.zeros((3, 8)))
    left = []

    def come(thread):
        all_reduce_sum(shared, thread, FAULTS, 0.0)
        left.append(thread)

    with ThreadPoolExecutor(3) as pool:
        early = [pool.submit(come, thread) for thread in (2, 0)]
        time.sleep(0.2)
        assert not left
        late = pool.submit(come, 1)
        for future in (*early, late):
            future.result(timeout=60)
    assert shared.arrivals[0] == len(left) == 3


def test_sums_go_by_the_numbers_of_the_threads():
    """However the threads come in."""
    numbers = [1e16, 1.0, -1e16, 3.0]
    for order in itertools.permutations(range(4)):
        shared = group(np.zeros(8), *np.zeros((4, 8)))
        with ThreadPoolExecutor(4) as pool:
            sums = [pool.submit(all_reduce_sum, shared, i, SQUARES, numbers[i]) for i in order]
            assert [future.result() for future in sums] == [sum(numbers)] * 4


def test_a_kernel_that_fails_keeps_nobody_waiting():
    three = Threads(make(threads=3).compiled, 3)

    def fails_in_the_second(program, shared, thread):
        if thread == 1:
            raise IndexError("a kernel reaches beyond the bounds of an array")
        all_reduce_sum(shared, thread, FAULTS, 0.0)
        return thread

    for _ in range(2):
        with pytest.raises(IndexError, match="beyond the bounds"):
            three.call(fails_in_the_second)


def test_threads_that_cannot_be_started(monkeypatch):
    trainer = make(threads=4)
    before, running = weights_of(trainer), threading.active_count()
    started = []

    def start(thread):
        started.append(thread)
        if len(started) > 2:
            raise RuntimeError("can't start new thread")
        return real(thread)

    real = threading.Thread.start
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(
            TapegptError, match=r"cannot start --threads 4 threads: .*: choose fewer"
        ):
            trainer.advance(3)
    assert threading.active_count() <= running + 2
    assert (weights_of(trainer) == before).all()
    assert np.isfinite(trainer.advance(3)).all()


@pytest.mark.parametrize("at", ["submit", "wait"])
def test_an_interruption_leaves_no_thread_behind(monkeypatch, at):
    """As by Ctrl-C in a program that calls `advance`: what was begun is done to the end first."""
    trainer = make(threads=2)
    trainer.advance(1)
    running = threading.active_count()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        place = (ThreadPoolExecutor, "submit") if at == "submit" else (workers, "wait")
        patched.setattr(*place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.advance(5)
    assert threading.active_count() == running
    assert np.isfinite(trainer.advance(5)).all()


def test_more_threads_than_documents():
    with pytest.raises(UsageError, match="--threads 6 is more than --batch-size 5"):
        make(threads=6)


def test_more_threads_than_memory():
    with pytest.raises(UsageError, match="--threads 1000000 or --batch-size 1000000 smaller"):
        make(batch_size=10**6, threads=10**6)


def test_every_thread_takes_memory():
    model = ModelConfig(n_embd=64, n_layer=2)
    trainer = make(model, batch_size=16, threads=4)
    four, one = (
        bytes_needed(model, 5, "vector", "float64", 16, 2, threads=count) for count in (4, 1)
    )
    tracemalloc.start()
    copies = Threads(trainer.compiled, 4)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(copies) == 4
    assert taken <= four - one <= 4 * taken
