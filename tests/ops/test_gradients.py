"""The gradients of every operation and of every model against differences.

One check: the derivative along a random direction of a random projection of the result. The long
form counts its cases and checks and prints them:

    pytest -m long -s tests/ops/test_gradients.py
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gradients import loss_and_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.catalogue import ARRAY_OPERATIONS, CATALOGUE, Recorded, by_name
from ops.catalogue import Draw as DrawCase
from tapegpt.corpus import TokenizedCorpus
from tapegpt.counting import CountTable
from tapegpt.graph.compile import compiled_model
from tapegpt.setting import ACTIVATIONS, GRANULARITIES, POSITIONS
from tapegpt.settings import ModelConfig

Floats = NDArray[np.float64]
Draw = Callable[..., Any]

DIRECTIONS = 2  # for each case
SHORT, LONG = 4, 200  # cases of a model, or of an operation
STEPS = (1e-5, 1e-6, 1e-7)  # the first ones may cross the kink of a ReLU


def check_slope(
    moved: Callable[[float], float], gradients: list[Floats], direction: list[Floats]
) -> None:
    """The derivative along a direction is the difference's, for one of the steps at least."""
    terms = np.concatenate([(g * d).ravel() for g, d in zip(gradients, direction, strict=True)])
    found = []
    for step in STEPS:
        forward, backward = moved(step), moved(-step)
        found.append((forward - backward) / (2 * step))
        rounding = 1e-15 * max(1, abs(forward)) * len(terms) ** 0.5 / step
        if abs(found[-1] - terms.sum()) <= 1e-6 * np.linalg.norm(terms) + rounding:
            return
    raise AssertionError(f"the slope is {found}, the gradient says {terms.sum()}")


@pytest.mark.parametrize("name", by_name(ARRAY_OPERATIONS))
def test_a_seed_is_the_gradient_of_a_weighted_sum(name: str) -> None:
    """An array as the root, with the weights of the projection as its seed."""
    draw = DrawCase(1, most=5)
    recorded = Recorded(ARRAY_OPERATIONS[name](draw), draw)
    expected = [gradient.copy() for gradient in recorded.gradients()]
    weights = np.random.default_rng(recorded.result.size).normal(size=recorded.result.shape)
    seed = weights if recorded.result.ndim > 1 else weights.reshape(())
    recorded.tape.backward(int(recorded.result.flat[0]), seed=seed)
    for found, wanted in zip(recorded.gradients(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def check_operation(name: str, seed: int, counts: Counter[str]) -> None:
    draw = DrawCase(seed)
    case = CATALOGUE[name](draw)
    recorded = Recorded(case, draw)
    gradients = recorded.gradients()
    for _ in range(DIRECTIONS):
        direction = [draw.rng.normal(size=array.shape) for array in recorded.arrays]
        if case.differentiable:
            check_slope(lambda h, d=direction: recorded.moved(d, h), gradients, direction)
        else:
            assert not any(gradient.any() for gradient in gradients)
        counts["checks"] += 1
    counts["cases"] += 1


@pytest.fixture(scope="module")
def totals() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    print(f"\n{counts['cases']} cases, {counts['checks']} directional checks in all")


few_examples = settings(max_examples=SHORT)
many_examples = settings(max_examples=LONG, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", by_name(CATALOGUE))
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=min(12, settings().max_examples))
def test_gradient_is_the_slope(name: str, seed: int) -> None:
    check_operation(name, seed, Counter())


@pytest.mark.long
@pytest.mark.parametrize("name", CATALOGUE)
def test_gradient_is_the_slope_in_many_cases(name: str, totals: Counter[str]) -> None:
    counts: Counter[str] = Counter()
    for seed in range(LONG):
        check_operation(name, seed, counts)
    totals.update(counts)
    print(f"{name}: {counts['cases']} cases, {counts['checks']} checks")


def draw_model(draw: Draw, kind: str, granularity: str) -> ModelConfig:
    block = draw(st.integers(1, 5))
    if kind == "gpt":
        n_head, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 5))
        positions = "learned" if head_dim % 2 else draw(st.sampled_from(POSITIONS))
        n_layer = draw(st.integers(1, 2))
        return ModelConfig(
            n_layer=n_layer,
            n_embd=n_head * head_dim,
            n_head=n_head,
            block_size=block,
            look_back=draw(st.integers(0, min(2, block - 1))),
            ensemble=draw(st.integers(1, 2)),
            dropout=draw(st.sampled_from([0.0, 0.25])) if granularity == "vector" else 0.0,
            positions=positions,
            activation=draw(st.sampled_from(ACTIVATIONS)),
            qk_norm=draw(st.booleans()),
            final_norm=draw(st.booleans()),
            softcap=draw(st.sampled_from([None, 3.0])),
            counting=draw(st.integers(0, 2)) if granularity == "vector" else 0,
        )
    n_state = draw(st.integers(1, 17))
    n_att = draw(st.integers(1, n_state))
    n_embd = draw(st.integers(1, 9))
    return ModelConfig(model=kind, n_embd=n_embd, n_state=n_state, n_att=n_att, block_size=block)


def check_model(kind: str, granularity: str, draw: Draw, counts: Counter[str]) -> None:
    """Along a direction for each parameter, and for all of them together."""
    model, vocab_size = draw_model(draw, kind, granularity), draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    delimiter = vocab_size - 1
    documents = [[delimiter, *rng.integers(0, delimiter, n), delimiter] for n in lengths]
    corpus = TokenizedCorpus(
        np.concatenate(documents).astype(np.int32), np.cumsum([0, *map(len, documents)])
    )
    texts = [rng.integers(0, vocab_size, 20)]
    table = CountTable(texts, vocab_size, model.counting, delimiter) if model.counting else None
    compiled = compiled_model(model, vocab_size, granularity, "float64", len(documents), table)
    compiled.program.tape_arrays.inputs[compiled.program.slots.key] = 3
    weights = compiled.weights
    for matrix in weights.values():
        matrix[:] = rng.normal(0, matrix.shape[1] ** -0.5, matrix.shape)
    start = {name: matrix.copy() for name, matrix in weights.items()}
    _, gradients = loss_and_gradients(compiled, corpus, 0, len(documents))
    for chosen in [[name] for name in weights] + [list(weights)]:
        direction = {name: rng.normal(size=weights[name].shape) for name in chosen}

        def moved(distance: float, direction: dict[str, Floats] = direction) -> float:
            for name, speed in direction.items():
                weights[name][:] = start[name] + distance * speed
            loss, _ = loss_and_gradients(compiled, corpus, 0, len(documents))
            for name in direction:
                weights[name][:] = start[name]
            return loss

        check_slope(moved, [gradients[name] for name in chosen], list(direction.values()))
        counts["checks"] += 1
    counts["cases"] += 1


every_model = pytest.mark.parametrize(
    ("kind", "granularity"),
    [(kind, granularity) for kind in ("gpt", "rnn", "rnn-att") for granularity in GRANULARITIES],
)


@every_model
@given(data=st.data())
@few_examples
def test_gradient_of_a_model_is_the_slope(kind: str, granularity: str, data: Any) -> None:
    check_model(kind, granularity, data.draw, Counter())


@pytest.mark.long
@every_model
def test_gradient_of_a_model_is_the_slope_in_many_cases(
    kind: str, granularity: str, totals: Counter[str]
) -> None:
    counts: Counter[str] = Counter()

    @many_examples
    @given(data=st.data())
    def check(data: Any) -> None:
        check_model(kind, granularity, data.draw, counts)

    check()
    assert counts["cases"] >= LONG
    totals.update(counts)
    print(f"{kind}, {granularity}: {counts['cases']} cases, {counts['checks']} checks")


@pytest.mark.parametrize("counting", [0, 2])
def test_an_ensemble_swept_network_by_network_has_the_bits_of_one_sweep(counting):
    """Counts are looked up by the first network alone, which has more records then."""
    model = ModelConfig(
        n_embd=8, n_layer=2, block_size=5, ensemble=3, dropout=0.2, counting=counting
    )
    compiled = compiled_model(model, 5, "vector", "float32", 3)
    compiled.program.tape_arrays.inputs[compiled.program.slots.key] = 3
    rng = np.random.default_rng(1)
    for matrix in compiled.weights.values():
        matrix[:] = rng.normal(0, 0.3, matrix.shape)
    corpus = TokenizedCorpus(
        np.array([4, 0, 1, 4, 2, 4, 3, 3, 1, 4], np.int32), np.array([0, 4, 6])
    )
    loss, gradients = loss_and_gradients(compiled, corpus, 0, 2)
    none = compiled.program.networks[:0]
    whole = replace(compiled, program=compiled.program._replace(networks=none))
    assert len(compiled.program.networks) == 3
    expected_loss, expected = loss_and_gradients(whole, corpus, 0, 2)
    assert loss == expected_loss
    for name, gradient in gradients.items():
        assert gradient.any()
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)
