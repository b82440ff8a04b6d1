"""Muon against its definition, and what a training with it keeps: bits, threads, what diverges."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import references
from gradients import group
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.errors import UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.loops.optimizers import MUON, Optimizer, update
from tapegpt.setting import DTYPES
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.tape.alignment import aligned_zeros
from tapegpt.train.matrices import bytes_beside, hidden_matrices, muon_of
from tapegpt.train.trainer import Trainer

TOLERANCES = {"float32": 2e-4, "float64": 1e-11}
RATE, OTHER, MOMENTUM, DECAY = 0.03, 0.25, 0.9, 0.2


class Made:
    """A model with drawn weights, and what updates them."""

    def __init__(self, model, dtype, threads=1, seed=0, scale=1.0, cautious=False):
        self.compiled = compiled_model(model, 5, "vector", dtype, 1)
        count = self.compiled.program.num_params
        self.names = hidden_matrices(model, self.compiled.weights)
        self.muon = muon_of(model, self.compiled, threads, OTHER)
        # A canary after the room: what is written beyond it.
        self.rooms = aligned_zeros(len(self.muon.rooms) + 64, np.dtype(dtype))
        self.rooms[-64:] = 7
        self.muon = self.muon._replace(rooms=self.rooms)
        self.state = aligned_zeros(2 * count, np.dtype(dtype)).reshape(2, count)
        self.optimizer = Optimizer(
            MUON, self.state, 0.8, 0.95, 1e-8, DECAY, MOMENTUM, np.inf, 0.0, self.muon, cautious
        )
        self.values = self.compiled.program.tape_arrays.values
        self.rng, self.threads, self.scale = np.random.default_rng(seed), threads, scale
        for weights in self.compiled.weights.values():
            weights[:] = self.rng.normal(0, 0.1, weights.shape)

    def gradients(self):
        return {
            name: self.scale * self.rng.normal(size=weights.shape)
            for name, weights in self.compiled.weights.items()
        }

    def step(self, gradients, number):
        grads = [np.zeros_like(self.values) for _ in range(self.threads)]
        for array in grads:
            for name, view in self.compiled.by_name(array).items():
                view[:] = gradients[name] / self.threads
        shared, count = group(self.values, *grads), self.compiled.program.num_params

        def run(thread):
            return update(shared, thread, count, self.optimizer, number, RATE)

        with ThreadPoolExecutor(self.threads) as pool:
            finite = list(pool.map(run, range(self.threads)))
        assert (self.rooms[-64:] == 7).all()
        assert not shared.grads[:count].any()
        assert not shared.other_grads[:, :count].any()
        return finite[0]


# In float32 the sign of a step is at times another than the reference's.
@pytest.mark.parametrize(
    ("dtype", "cautious"), [("float32", False), ("float64", False), ("float64", True)]
)
@given(
    n_layer=st.integers(1, 2),
    width=st.sampled_from([1, 2, 5, 12, 16, 31, 33, 40, 65, 128]),
    activation=st.sampled_from(["relu", "swiglu"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_matrices_move_as_defined_and_the_rest_as_adamw(
    dtype, cautious, n_layer, width, activation, seed
):
    model = ModelConfig(
        n_layer=n_layer, n_embd=width, n_head=1, block_size=4, activation=activation
    )
    made, tolerance = Made(model, dtype, seed=seed, cautious=cautious), TOLERANCES[dtype]
    expected = {name: w.astype("float64") for name, w in made.compiled.weights.items()}
    first, second = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
    assert len(made.names) == n_layer * (7 if activation == "swiglu" else 6)
    for step in range(1, 4):
        gradients = made.gradients()
        assert made.step(gradients, step)
        for name, g in gradients.items():
            w = expected[name]
            if name in made.names:
                settings = (RATE, MOMENTUM, DECAY, cautious)
                w, first[name] = references.muon(w, g, first[name], *settings)
            else:
                settings = (step, RATE * OTHER, 0.8, 0.95, 1e-8, DECAY, cautious)
                w, first[name], second[name] = references.adam(
                    w, g, first[name], second[name], *settings
                )
            expected[name] = w
            np.testing.assert_allclose(made.compiled.weights[name], w, rtol=0, atol=tolerance)
    # What pads the rows of matrices is nobody's.
    assert np.count_nonzero(made.values[: made.compiled.program.num_params]) <= sum(
        w.size for w in expected.values()
    )


@pytest.mark.parametrize(("dtype", "width"), [("float64", 40), ("float32", 40), ("float32", 256)])
@pytest.mark.parametrize("spectrum", ["falling", "flat", "one"])
def test_a_matrix_becomes_about_orthogonal(spectrum, dtype, width):
    """Singular values that are not too small become 0.68 to 1.31, and what is 0 stays so."""
    made = Made(ModelConfig(n_embd=width, n_head=1), dtype)
    before, gradients = made.compiled.weights["layer0.mlp_fc1"].copy(), made.gradients()
    u, _, v = np.linalg.svd(gradients["layer0.mlp_fc1"], full_matrices=False)
    singular = {
        "falling": np.geomspace(1, 0.02, width),
        "flat": np.ones(width),
        "one": np.eye(width)[0],
    }[spectrum]
    gradients["layer0.mlp_fc1"] = u * singular @ v
    made.step(gradients, 1)
    moved = (1 - RATE * DECAY) * before.astype("float64") - made.compiled.weights["layer0.mlp_fc1"]
    values = np.linalg.svd(moved / RATE / 2, compute_uv=False)  # 2 is the root of 4 width / width
    left = values[: np.count_nonzero(singular)]
    assert left.min() > 0.68 and left.max() < 1.31
    assert values[len(left) :].max(initial=0) < {"float32": 1e-3, "float64": 1e-12}[dtype]


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e15])
def test_the_size_of_gradients_does_not_matter(scale):
    model = ModelConfig(n_embd=12, n_head=1)
    usual, scaled = Made(model, "float32"), Made(model, "float32", scale=scale)
    for made in (usual, scaled):
        made.step(made.gradients(), 1)
    for name in usual.names:
        np.testing.assert_allclose(
            scaled.compiled.weights[name], usual.compiled.weights[name], rtol=0, atol=2e-5
        )


def test_a_matrix_without_a_gradient_only_decays():
    made = Made(ModelConfig(n_embd=12, n_head=1), "float64", scale=0.0)
    before = {name: made.compiled.weights[name].copy() for name in made.names}
    made.step(made.gradients(), 1)
    for name, weights in before.items():
        np.testing.assert_allclose(
            made.compiled.weights[name], (1 - RATE * DECAY) * weights, rtol=1e-14
        )


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_move_matrices_as_one_does(threads):
    """Every matrix by one of them: the same bits, where gradients add up to the same."""
    model = ModelConfig(n_layer=2, n_embd=16, n_head=2)
    alone, shared = Made(model, "float64"), Made(model, "float64", threads=threads)
    for step in range(1, 4):
        gradients = {name: np.rint(8 * g) * threads for name, g in alone.gradients().items()}
        assert alone.step(gradients, step) and shared.step(gradients, step)
    owners = {int(owner) for owner in shared.muon.matrices[3::4]}
    assert owners == set(range(threads))
    for name, weights in alone.compiled.weights.items():
        np.testing.assert_array_equal(shared.compiled.weights[name], weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["layer0.attn_wk", "layer0.mlp_fc2", "wte"])
def test_what_is_not_finite_is_noticed(dtype, poison, where):
    for place in ("gradient", "weight", "momentum"):
        made = Made(ModelConfig(n_embd=12, n_head=1), dtype)
        assert made.step(made.gradients(), 1)
        gradients = made.gradients()
        if place == "gradient":
            gradients[where][-1, 3] = poison
        elif place == "weight":
            made.compiled.weights[where][-1, 3] = poison
        else:
            made.compiled.by_name(made.state[0])[where][-1, 3] = poison
        assert not made.step(gradients, 2)


def test_what_a_thread_computes_in_is_counted():
    model = ModelConfig(n_layer=2, n_embd=130, n_head=1, block_size=4, ensemble=2)
    trainer = Trainer(model, TrainConfig(optimizer="muon", batch_size=3, threads=3), ["ab"])
    trainer.advance(0)
    beside = bytes_beside(model, trainer.tokenizer.vocab_size, "float32")
    assert 0.9 < trainer._matrices().rooms.nbytes / (3 * beside) < 1.1


def test_tables_and_the_last_product_are_no_matrices():
    model = ModelConfig(look_back=2, ensemble=2)
    names = hidden_matrices(model, Trainer(model, TrainConfig(), ["ab"]).compiled.weights)
    parts = ("attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")
    assert names == [f"net{i}.layer0.{part}" for i in range(2) for part in parts]
    sparse = ModelConfig(model="rnn-att")
    weights = Trainer(sparse, TrainConfig(), ["ab"]).compiled.weights
    assert hidden_matrices(sparse, weights) == ["token_proj", "pos_proj"]


MODEL = ModelConfig(n_layer=2, n_embd=12, n_head=2, block_size=5, ensemble=2, look_back=1)
TRAINING = TrainConfig(
    steps=24,
    batch_size=4,
    optimizer="muon",
    averaging=0.5,
    clip_norm=1.0,
    schedule="wsd",
    threads=2,
)
DOCUMENTS = ["abab", "ba", "aab", "bb", "abba", "b"]


def test_a_training_learns_and_repeats_its_bits():
    first, second = (Trainer(MODEL, TRAINING, DOCUMENTS) for _ in range(2))
    losses = first.advance(24)
    assert losses[-4:].mean() < 0.8 * losses[:4].mean()
    np.testing.assert_array_equal(losses, np.concatenate([second.advance(7), second.advance(17)]))
    for name, weights in first.compiled.weights.items():
        np.testing.assert_array_equal(second.compiled.weights[name], weights)


def test_a_resumed_training_has_the_same_bits(call, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(DOCUMENTS) + "\n")
    train = ("train", "--data", tmp_path / "names.txt", "--batch-size", 4, "--optimizer", "muon")
    train = (*train, "--schedule", "constant", "--averaging", 0.5)
    call(*train, "--steps", 20, "--out", tmp_path / "whole")
    call(*train, "--steps", 9, "--out", tmp_path / "parts")
    call(*train, "--steps", 20, "--out", tmp_path / "parts", "--resume")
    whole, parts = (
        next((tmp_path / name).glob("tensors-*.safetensors")) for name in ("whole", "parts")
    )
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("granularity", ["scalar", "dot"])
def test_scalars_are_no_matrices(granularity):
    with pytest.raises(UsageError, match=f"--granularity vector, not {granularity}"):
        TrainConfig(optimizer="muon", granularity=granularity)
