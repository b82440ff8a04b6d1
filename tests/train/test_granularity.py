"""One network, three granularities: the same losses, gradients, steps and samples."""

from functools import cache

import numpy as np
import pytest
from gradients import Arrays, loss_and_gradients
from numpy.typing import NDArray

from tapegpt.corpus import TokenizedCorpus
from tapegpt.graph.compile import CompiledModel, compiled_model
from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import ADAM, Optimizer
from tapegpt.kernels.loops.sample import generate
from tapegpt.kernels.loops.schedules import LINEAR, Schedule
from tapegpt.kernels.loops.train import Training, train_steps
from tapegpt.settings import ModelConfig
from tapegpt.train.workers import Threads

GRANULARITIES = ["scalar", "dot", "vector"]

# Layers, embedding, heads, block; vocabulary: heads of one lane, of odd widths and wider than a
# vector, one position, two tokens, and the sizes of microgpt.
SIZES = {
    "1 lane heads": (1, 3, 3, 4, 5),
    "2 lane heads": (1, 10, 5, 5, 2),
    "3 lane heads": (3, 6, 2, 5, 40),
    "4 lane heads": (2, 12, 3, 5, 7),
    "one head": (1, 9, 1, 6, 11),
    "wide head": (1, 18, 1, 3, 17),
    "one position": (1, 4, 2, 1, 3),
    "smallest": (1, 1, 1, 1, 2),
    "two layers": (2, 24, 4, 8, 27),
    "microgpt": (1, 16, 4, 16, 27),
}

# Of the recurrent nets: model, embedding, state, how much of it fires, block; vocabulary.
RECURRENT = {
    "recurrent": ("rnn", 16, 32, 1, 16, 27),
    "recurrent, odd": ("rnn", 3, 11, 1, 5, 4),
    "recurrent, one position": ("rnn", 2, 3, 1, 1, 3),
    "sparse": ("rnn-att", 16, 32, 16, 16, 27),
    "sparse, one fires": ("rnn-att", 5, 9, 1, 6, 7),
    "sparse, all fire": ("rnn-att", 4, 19, 19, 5, 11),
}

# Of what microgpt has not: the model; vocabulary.
MORE = {
    "looks back": (ModelConfig(n_embd=6, n_head=2, block_size=7, look_back=3), 5),
    "ensemble": (ModelConfig(n_embd=4, n_head=2, block_size=5, look_back=1, ensemble=3), 6),
    "modern": (
        ModelConfig(
            n_layer=2,
            n_embd=12,
            n_head=2,
            block_size=7,
            positions="rotary",
            activation="relu2",
            qk_norm=True,
            final_norm=True,
            softcap=2.0,
        ),
        5,
    ),
    "gelu": (ModelConfig(n_embd=6, n_head=3, block_size=4, activation="gelu", qk_norm=True), 7),
    "swiglu": (
        ModelConfig(
            n_embd=8, n_head=2, block_size=4, activation="swiglu", positions="rotary", ensemble=2
        ),
        4,
    ),
}

EVERYTHING = [*SIZES, *RECURRENT, *MORE]


def make_model(sizes: str) -> tuple[ModelConfig, int]:
    if sizes in MORE:
        return MORE[sizes]
    if sizes in RECURRENT:
        model, n_embd, n_state, n_att, block_size, vocab_size = RECURRENT[sizes]
        config = ModelConfig(
            model=model, n_embd=n_embd, n_state=n_state, n_att=n_att, block_size=block_size
        )
        return config, vocab_size
    n_layer, n_embd, n_head, block_size, vocab_size = SIZES[sizes]
    config = ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=block_size)
    return config, vocab_size


def make_corpus(block: int, vocab_size: int) -> TokenizedCorpus:
    """Documents of one character, of exactly the block, of less and of more, in no order."""
    rng = np.random.default_rng(block)
    lengths = [block + 3, 1, max(1, block - 1), block, max(1, block // 2), 2 * block + 1, 1]
    delimiter = vocab_size - 1
    documents = [[delimiter, *rng.integers(0, delimiter, length), delimiter] for length in lengths]
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenizedCorpus(np.concatenate(documents).astype(np.int32), offsets)


def draw_weights(compiled: CompiledModel) -> None:
    """The same numbers for every recording of a model."""
    rng = np.random.default_rng(8)
    for name, weights in compiled.weights.items():
        # A state that is multiplied with larger numbers again and again would overflow.
        deviation = 0.3 * len(weights) ** -0.5 if name == "m" else 0.3
        weights[:] = rng.normal(0, deviation, weights.shape)


def make_recording(sizes: str, granularity: str, dtype: str, documents: int = 1) -> CompiledModel:
    model, vocab_size = make_model(sizes)
    compiled = compiled_model(model, vocab_size, granularity, dtype, documents)
    compiled.load()
    draw_weights(compiled)
    return compiled


@cache
def reference(sizes: str) -> list[tuple[float, Arrays]]:
    """Loss and gradients of every single document, number by number."""
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, "scalar", "float64")
    return [loss_and_gradients(compiled, corpus, d, 1) for d in range(7)]


def mean_of_documents(sizes: str, which: list[int]) -> tuple[float, Arrays]:
    chosen = [reference(sizes)[d] for d in which]
    names = chosen[0][1]
    loss = np.mean([loss for loss, _ in chosen])
    return float(loss), {name: np.mean([g[name] for _, g in chosen], axis=0) for name in names}


def assert_agree(
    found: tuple[float, Arrays], expected: tuple[float, Arrays], tolerance: float
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        difference = np.linalg.norm(found[1][name] - gradient)
        assert difference <= tolerance * np.linalg.norm(gradient), name
        # And every number, down to the rounding of the largest.
        floor = tolerance * 1e-2 * np.abs(gradient).max()
        np.testing.assert_allclose(
            found[1][name], gradient, rtol=tolerance, atol=floor, err_msg=name
        )


@pytest.mark.parametrize("sizes", EVERYTHING)
@pytest.mark.parametrize("granularity", ["dot", "vector"])
def test_single_documents(granularity: str, sizes: str) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, granularity, "float64")
    for document, expected in enumerate(reference(sizes)):
        found = loss_and_gradients(compiled, corpus, document, 1)
        assert_agree(found, expected, 1e-10)


# RMSNorm of a single number is its sign: what gradient there is, is lost in float32.
@pytest.mark.parametrize("sizes", sorted({*EVERYTHING} - {"smallest"}))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_float32(granularity: str, sizes: str) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, granularity, "float32", 7)
    found = loss_and_gradients(compiled, corpus, 0, 7)
    expected = mean_of_documents(sizes, list(range(7)))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for name, gradient in expected[1].items():
        difference = np.linalg.norm(found[1][name] - gradient)
        assert difference <= 1e-4 * np.linalg.norm(gradient), name


@pytest.mark.parametrize("sizes", EVERYTHING)
@pytest.mark.parametrize("documents_per_sweep", [1, 3, 7, 20])
def test_batches_are_means_over_documents(documents_per_sweep: int, sizes: str) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, "vector", "float64", documents_per_sweep)
    # From the middle of the corpus, once around its end.
    found = loss_and_gradients(compiled, corpus, 4, 7)
    assert_agree(found, mean_of_documents(sizes, list(range(7))), 1e-10)
    # A smaller batch, after a larger one has left its rows behind.
    found = loss_and_gradients(compiled, corpus, 1, 2)
    assert_agree(found, mean_of_documents(sizes, [1, 2]), 1e-10)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "sizes", ["2 lane heads", "3 lane heads", "wide head", "two layers", *RECURRENT]
)
def test_gradient_along_random_directions(sizes: str, granularity: str) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, granularity, "float64", 7)
    _, gradients = loss_and_gradients(compiled, corpus, 0, 7)
    start = {name: weights.copy() for name, weights in compiled.weights.items()}
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = {name: rng.normal(size=weights.shape) for name, weights in start.items()}
        expected = sum((gradients[name] * speed).sum() for name, speed in direction.items())

        def moved(distance: float, direction: Arrays = direction) -> float:
            for name, weights in compiled.weights.items():
                weights[:] = start[name] + distance * direction[name]
            return loss_and_gradients(compiled, corpus, 0, 7)[0]

        h = 1e-7  # so small that no step crosses the kink of a ReLU (with these weights)
        assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def train(
    compiled: CompiledModel, corpus: TokenizedCorpus, batch_size: int, steps: int, threads: int = 1
) -> tuple[NDArray[np.float64], Arrays]:
    losses = np.zeros((threads, steps))
    parameters = compiled.program.tape_arrays.values[: compiled.program.num_params]
    state = np.stack([np.zeros_like(parameters)] * 2)
    optimizer = Optimizer(
        ADAM, state, beta1=0.85, beta2=0.99, epsilon=1e-8, weight_decay=0.0, momentum=0.0,
        clip_norm=np.inf, averaging=0.0, muon=no_matrices(state.dtype),
    )  # fmt: skip
    schedule = Schedule(LINEAR, 0.01, decay=1.0, warmup=0.0, origin=0.0, span=float(steps))
    together, share = compiled.documents_per_sweep, 1 / batch_size
    training = Training(*corpus, batch_size, together, share, 0.0, np.uint64(0))
    done = Threads(compiled, threads).call(train_steps, training, optimizer, schedule, 0, losses)
    assert done == steps
    assert (losses == losses[0]).all()
    return losses[0], {name: weights.copy() for name, weights in compiled.weights.items()}


@pytest.mark.parametrize(
    "sizes", ["4 lane heads", "recurrent, odd", "sparse, one fires", "looks back", "ensemble"]
)
@pytest.mark.parametrize(
    ("granularity", "documents_per_sweep", "threads"),
    [
        *(("scalar", 1, 3), ("dot", 1, 1), ("dot", 1, 5)),
        *(
            ("vector", 1, 1),
            ("vector", 2, 1),
            ("vector", 4, 1),
            ("vector", 5, 1),
            ("vector", 64, 1),
        ),
        *(("vector", 1, 2), ("vector", 2, 2), ("vector", 64, 3), ("vector", 4, 5)),
    ],
)
def test_training_steps(
    granularity: str, documents_per_sweep: int, threads: int, sizes: str
) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    # Five documents a step out of seven: every step is another batch.
    expected = train(make_recording(sizes, "scalar", "float64"), corpus, 5, 12)
    compiled = make_recording(sizes, granularity, "float64", documents_per_sweep)
    losses, weights = train(compiled, corpus, 5, 12, threads)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-9)
    for name, matrix in expected[1].items():
        np.testing.assert_allclose(weights[name], matrix, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", ["3 lane heads", "recurrent, odd", "sparse, one fires"])
def test_padding_stays_zero(sizes: str, dtype: str, granularity: str) -> None:
    model, vocab_size = make_model(sizes)
    corpus = make_corpus(model.block_size, vocab_size)
    compiled = make_recording(sizes, granularity, dtype, 3)
    train(compiled, corpus, 7, 3)
    tape_arrays = compiled.program.tape_arrays
    weights = np.zeros_like(tape_arrays.values[: compiled.program.num_params])
    for view in compiled.by_name(weights).values():
        view[:] = 1
    assert not tape_arrays.values[: len(weights)][weights == 0].any()
    assert not tape_arrays.grads[: len(weights)].any()


def samples(compiled: CompiledModel, uniforms: NDArray[np.float64]) -> list[list[int]]:
    result = np.zeros(uniforms.shape, np.int64)
    program = compiled.program
    prompt = np.zeros(0, np.int64)
    generate(program, prompt, 2.0, program.vocab_size, 1.0, uniforms.ravel(), False, result)
    return result.tolist()


@pytest.mark.parametrize("sizes", ["1 lane heads", "3 lane heads", "two layers", *RECURRENT, *MORE])
def test_samples(sizes: str) -> None:
    model, _ = make_model(sizes)
    uniforms = np.random.default_rng(3).random((9, model.block_size))
    together = samples(make_recording(sizes, "vector", "float64", 9), uniforms)
    assert len({tuple(sample) for sample in together}) > 1
    for granularity in GRANULARITIES:
        compiled = make_recording(sizes, granularity, "float64")
        one_by_one = [samples(compiled, row[None])[0] for row in uniforms]
        assert one_by_one == together
