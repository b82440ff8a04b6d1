"""Sampling against a sampler in NumPy that runs the whole network again for every token."""

import bisect
import functools
import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st

from tapegpt import sampling
from tapegpt.corpus import Tokenizer
from tapegpt.errors import TapegptError, UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.loops.sample import (
    choose,
    generate,
    next_token,
    weigh,
)
from tapegpt.runs.network import network_of
from tapegpt.sampling import (
    SAMPLES_PER_CALL,
    SAMPLES_PER_SWEEP,
    decode,
    draw,
    encode_prompt,
    kernel_limits,
    sample,
    sample_in_turn,
)
from tapegpt.setting import DTYPES, GRANULARITIES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

CHARACTERS = "abcdefg"
BOS, VOCABULARY = len(CHARACTERS), len(CHARACTERS) + 1
MODEL = ModelConfig(n_layer=2, n_embd=6, n_head=2, block_size=7)
NO_PROMPT = np.zeros(0, np.int64)


def random_weights(seed, scale=0.35):
    """Weights large enough that every prefix has its own, uneven distribution."""
    compiled = compiled_model(MODEL, VOCABULARY, "vector", "float64", 1)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=w.shape) * scale for name, w in compiled.weights.items()}


recorded = functools.cache(compiled_model)


def loaded(weights, granularity="vector", dtype="float64", documents=8):
    compiled = recorded(MODEL, VOCABULARY, granularity, dtype, documents)
    compiled.load()
    for name, view in compiled.weights.items():
        view[:] = weights[name]
    return compiled


def trained(dtype="float64", characters=CHARACTERS, seed=0):
    """A saved run with random weights, as `sample` wants it."""
    trainer = Trainer(MODEL, TrainConfig(dtype=dtype, seed=seed), [characters])
    weights = {name: w.astype(dtype) for name, w in random_weights(seed).items()}
    return replace(trainer.snapshot(), tensors=weights)


def likelihoods(logits, temperature, top_k, top_p):
    """The share of every token, those that are out of the running 0; not normalised."""
    powers = [math.exp((x - max(logits)) / temperature) for x in logits]
    by_rank = sorted(range(len(logits)), key=lambda i: (-powers[i], i))
    shares = list(itertools.accumulate(powers[i] for i in by_rank))
    needed = bisect.bisect_left(shares, top_p * shares[-1]) + 1
    kept = set(by_rank[: min(top_k, needed)])
    return [power if i in kept else 0.0 for i, power in enumerate(powers)]


class Fixed(random.Random):
    """Always the same number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def random(self):
        return self.number


def numpy_token(logits, config, uniform):
    if config.temperature == 0:
        return int(np.argmax(logits))
    top_k, top_p = config.top_k or len(logits), config.top_p or 1.0
    weights = likelihoods(list(map(float, logits)), config.temperature, top_k, top_p)
    return Fixed(uniform).choices(range(len(logits)), weights)[0]


def numpy_text(weights, config, uniforms, prompt=()):
    """Token ids of one text, the network computed anew from the first token for every one."""
    tokens = [BOS]
    for p in range(MODEL.block_size):
        if p < len(prompt):
            token = prompt[p]
        else:
            logits = references.gpt_logits(weights, MODEL.n_layer, MODEL.n_head, tokens)[-1]
            token = numpy_token(logits, config, uniforms[p - len(prompt)])
        if token == BOS:
            break
        tokens.append(int(token))
    return tokens[1:]


def texts_by_id(samples):
    """Token ids of every row, without the delimiter and what comes after it."""
    return [
        list(itertools.takewhile(lambda token: 0 <= token < BOS, row)) for row in samples.tolist()
    ]


def drawn(compiled, config, uniforms, prompt=NO_PROMPT, **options):
    samples, _ = draw(compiled, prompt, config, uniforms, **options)
    return texts_by_id(samples)


CONFIGS = [
    SampleConfig(temperature=0),
    SampleConfig(temperature=1),
    SampleConfig(temperature=0.3),
    SampleConfig(temperature=3, top_k=3),
    SampleConfig(temperature=1, top_p=0.6),
    SampleConfig(temperature=2, top_k=5, top_p=0.8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("prompt", [(), (3,), (0, 2, 4, 6, 1, 5)])
def test_texts_are_those_of_the_plain_network(config, granularity, prompt):
    for seed in range(3):
        weights = random_weights(seed)
        compiled = loaded(weights, granularity)
        uniforms = np.random.default_rng(seed).random((9, MODEL.block_size))
        expected = [numpy_text(weights, config, row, prompt) for row in uniforms]
        assert drawn(compiled, config, uniforms, np.array(prompt, np.int64)) == expected


def test_float32_draws_the_same_texts():
    weights = random_weights(0)
    uniforms = np.random.default_rng(0).random((8, MODEL.block_size))
    expected = [numpy_text(weights, SampleConfig(), row) for row in uniforms]
    assert drawn(loaded(weights, dtype="float32"), SampleConfig(), uniforms) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prompt", [(), (3, 3)])
def test_texts_do_not_depend_on_how_many_are_drawn_together(dtype, prompt):
    """Texts end one after the other, and those that go on take their places."""
    weights = random_weights(1)
    uniforms = np.random.default_rng(1).random((40, MODEL.block_size))

    def by(together):
        compiled = loaded(weights, dtype=dtype, documents=together)
        config, ids = SampleConfig(temperature=1), np.array(prompt, np.int64)
        return drawn(compiled, config, uniforms, ids)

    one_by_one = by(1)
    assert len(set(map(len, one_by_one))) > 3
    assert one_by_one == by(5) == by(8) == by(40)


@pytest.mark.parametrize("n_head", [1, 3, 4])
@pytest.mark.parametrize("head_dim", [1, 2, 4, 7, 16, 24])
def test_keys_and_values_of_every_width_move(head_dim, n_head):
    model = replace(MODEL, n_head=n_head, n_embd=n_head * head_dim)
    uniforms = np.random.default_rng(1).random((40, MODEL.block_size))

    def by(together):
        compiled = compiled_model(model, VOCABULARY, "vector", "float64", together)
        rng = np.random.default_rng(2)
        for weights in compiled.weights.values():
            weights[:] = rng.normal(size=weights.shape) / math.sqrt(model.n_embd)
        return drawn(compiled, SampleConfig(temperature=3), uniforms)

    one_by_one = by(1)
    assert len(set(map(len, one_by_one))) > 3
    assert by(40) == one_by_one


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_drawn_follows_from_the_weights_as_they_are(granularity, in_turn):
    uniforms = np.random.default_rng(2).random((40, MODEL.block_size))
    config, nothing = SampleConfig(temperature=1), NO_PROMPT
    first, second, expected = (
        draw(
            loaded(random_weights(seed), granularity, documents=n),
            nothing,
            config,
            uniforms,
            in_turn,
        )
        for seed, n in ((1, 2), (7, 2), (7, 3))
    )
    assert second[0].tolist() == expected[0].tolist() != first[0].tolist()


def test_sampling_leaves_training_as_it_is():
    """Documents of a row or two are trained on with the weights, not with what sampling packed."""

    def losses(samples):
        trainer = Trainer(MODEL, TrainConfig(steps=30), ["a", "b", "ab", "c"])
        found = []
        for _ in range(10):
            if samples:
                list(
                    sample_in_turn(
                        trainer.compiled, trainer.tokenizer, SampleConfig(), random.Random(1)
                    )
                )
            found += trainer.advance(3).tolist()
        return found

    assert losses(samples=True) == losses(samples=False)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_texts_in_turn_use_what_is_left_of_the_numbers(granularity):
    compiled, config = loaded(random_weights(1), granularity), SampleConfig(temperature=1)
    uniforms = np.random.default_rng(2).random((40, MODEL.block_size))
    prompt = np.array([3, 3])
    samples, count = draw(compiled, prompt, config, uniforms, in_turn=True)
    begin = 0
    for row in samples:
        alone = np.resize(uniforms.ravel()[begin:], (1, MODEL.block_size))
        expected, used = draw(compiled, prompt, config, alone)
        assert row.tolist() == expected[0].tolist()
        begin += used
    assert begin == count < uniforms.size


def test_what_comes_after_the_delimiter_is_left_alone():
    compiled = loaded(random_weights(2))
    samples = np.full((20, MODEL.block_size), 99)
    uniforms = np.random.default_rng(2).random(samples.size)
    limits = kernel_limits(SampleConfig(temperature=9), VOCABULARY, np.dtype(np.float64))
    count = generate(compiled.program, NO_PROMPT, *limits, uniforms, False, samples)
    ends = [row.index(BOS) if BOS in row else MODEL.block_size for row in samples.tolist()]
    assert min(ends) < MODEL.block_size
    assert count == sum(min(end + 1, MODEL.block_size) for end in ends)
    for row, end in zip(samples.tolist(), ends, strict=True):
        assert all(0 <= token < BOS for token in row[:end])
        assert all(token == 99 for token in row[end + 1 :])


def next_of(logits, uniform=0.5, **options):
    """What follows these logits, by the kernels alone; they lie between others, twice."""
    config, count = SampleConfig(**{"temperature": 1, **options}), len(logits)
    values = np.array([9.0, *logits, *[9.0] * 5, *logits, *[9.0] * 64])
    inverse, *limits = kernel_limits(config, count, values.dtype)
    weights = room_for(count, rows=2)
    weigh(values, 1, count + 5, 2, count, inverse, weights)
    totals = 2 * whole(count)
    first, second = (
        next_token(weights, at, count, *limits, uniform, totals) for at in (0, whole(count))
    )
    assert first == second
    return first


def whole(count, dtype="float64"):
    """Elements of whole vectors that hold so many."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    return -(-count // lanes) * lanes


def room_for(count, dtype="float64", rows=1):
    """The weights of so many rows, and running totals of one."""
    return np.zeros((rows + 1) * whole(count, dtype), dtype)


# Whole numbers, so that some are equal.
some_logits = st.lists(st.integers(-3, 3), min_size=VOCABULARY, max_size=VOCABULARY)


@given(some_logits)
def test_greedy_takes_the_first_of_the_largest(logits):
    assert next_of(logits, temperature=0) == logits.index(max(logits))


@given(some_logits, st.integers(1, VOCABULARY), st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]))
def test_top_k_keeps_the_first_of_equals(logits, top_k, uniform):
    by_rank = sorted(range(VOCABULARY), key=lambda i: (-logits[i], i))
    assert next_of(logits, top_k=top_k, uniform=uniform) in by_rank[:top_k]
    assert next_of(logits, top_k=1, uniform=uniform) == by_rank[0]


def reached(logits, **options):
    """The tokens that some uniform number leads to."""
    return {next_of(logits, uniform=u, **options) for u in np.linspace(0, 1 - 2**-53, 400)}


def test_top_p_keeps_just_enough():
    logits = np.log([0.05, 0.3, 0.1, 0.3, 0.05, 0.1, 0.05, 0.05])
    assert reached(logits) == set(range(8))
    assert reached(logits, top_p=1e-9) == {1}
    assert reached(logits, top_p=0.29) == {1}
    assert reached(logits, top_p=0.31) == {1, 3}
    assert reached(logits, top_p=0.59) == {1, 3}
    assert reached(logits, top_p=0.61) == {1, 2, 3}
    assert reached(logits, top_p=0.79) == {1, 2, 3, 5}
    assert reached(logits, top_p=0.81) == {0, 1, 2, 3, 5}
    assert reached(logits, top_p=0.81, top_k=3) == {1, 2, 3}
    assert reached(logits, top_p=0.31, top_k=3) == {1, 3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("equals", [1, 2, 5, 40])
def test_top_p_at_an_exact_tie(dtype, equals):
    """A share that is reached exactly is enough; of equals the first ones stay."""
    weights = [0.25, *[1.0] * equals, 0.5, *[1.0] * equals, 0.25]
    total = sum(weights)
    for needed in range(1, 2 * equals + 1):
        left = kept(weights, len(weights), needed / total, dtype)
        assert left == [i for i, weight in enumerate(weights) if weight == 1.0][:needed]
    everything_large = [i for i, weight in enumerate(weights) if weight > 0.25]
    assert kept(weights, len(weights), (total - 0.5) / total, dtype) == everything_large
    assert kept(weights, len(weights), (total - 0.25) / total, dtype) == [0, *everything_large]


def kept(weights, top_k, top_p, dtype="float64"):
    """The tokens that a draw leaves in the running."""
    room = room_for(len(weights), dtype)
    room[: len(weights)] = weights
    next_token(room, 0, len(weights), top_k, top_p, 0.5, whole(len(weights), dtype))
    left = room[: len(weights)]
    assert set(left) <= {0, *np.array(weights, dtype)}
    return np.flatnonzero(left).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.lists(st.sampled_from([0.0, 2**-9, 0.125, 0.25, 0.375, 1.0]), min_size=2, max_size=300),
    st.data(),
)
def test_the_likeliest_are_those_of_a_sorted_list(dtype, weights, data):
    """Sums of these are exact, so that ties are, too."""
    weights[data.draw(st.integers(0, len(weights) - 1))] = 1.0
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    shares = list(itertools.accumulate(weights[i] for i in order))
    # Shares of a power of two are exact; half of the draws stop at a sum itself.
    total = 2.0 ** math.ceil(math.log2(shares[-1]))
    weights.append(total - shares[-1])
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    shares = list(itertools.accumulate(weights[i] for i in order))
    top_p = data.draw(st.sampled_from(shares) | st.floats(2**-9, total)) / total
    top_k = data.draw(st.integers(1, len(weights) - 1))
    needed = bisect.bisect_left(shares, top_p * total) + 1
    expected = [i for i in order[: min(top_k, needed)] if weights[i] > 0]
    assert kept(weights, top_k, top_p, dtype) == sorted(expected)


def test_all_of_the_probability_is_every_token():
    """Even one that vanishes in the sum."""
    assert next_of([-40.0, 0.0], uniform=0.0) == 0


def test_what_is_left_keeps_its_proportions():
    logits = np.log([0.05, 0.3, 0.1, 0.3, 0.05, 0.1, 0.05, 0.05])
    for uniform, token in [(0.0, 1), (0.42, 1), (0.44, 2), (0.56, 2), (0.58, 3), (0.99, 3)]:
        assert next_of(logits, top_k=3, uniform=uniform) == token


def test_temperature_is_a_power():
    logits = np.log([0.5, 0.25, 0.25, *[1e-300] * 5])
    # At 1/2 the shares are squared: 4/6, 1/6, 1/6. At 2 they are the roots.
    root = math.sqrt(2) / (math.sqrt(2) + 2)
    for temperature, share in [(1.0, 0.5), (0.5, 4 / 6), (2.0, root)]:
        assert next_of(logits, share - 1e-9, temperature=temperature) == 0
        assert next_of(logits, share + 1e-9, temperature=temperature) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
def test_very_cold_is_greedy(temperature):
    assert next_of([0, 1, 5, 2, 4, 4.9, 0, 0], 0.999, temperature=temperature) == 2


@pytest.mark.parametrize("temperature", [1e6, 1.7e308])
def test_very_hot_is_fair(temperature):
    for token in range(VOCABULARY):
        middle = (token + 0.5) / VOCABULARY
        assert next_of([0, 1, 5, 2, 4, 4, -50, 80], middle, temperature=temperature) == token


@given(
    st.lists(st.floats(-80, 80), min_size=VOCABULARY, max_size=VOCABULARY),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.1, 1.0, 4.0]),
)
def test_choices_are_those_of_random_choices(logits, uniform, temperature):
    """Just beside an edge, too: edges lie where shares add up, to rounding."""
    weights = likelihoods(logits, temperature, VOCABULARY, 1.0)
    edges = np.cumsum(weights) / sum(weights)
    if np.abs(edges - uniform).min() > 1e-12:
        expected = Fixed(uniform).choices(range(VOCABULARY), weights)[0]
        assert next_of(logits, uniform, temperature=temperature) == expected


def choice(weights, uniform, dtype="float64"):
    room = room_for(len(weights), dtype)
    room[: len(weights)] = weights
    return choose(room, 0, len(weights), uniform, whole(len(weights), dtype))


# Halves and quarters add up without rounding.
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.25, 1.0, 3.0]), min_size=1, max_size=40).filter(any),
    st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1 - 2**-53]),
)
def test_choose_is_random_choices_at_the_edges(dtype, weights, uniform):
    expected = Fixed(uniform).choices(range(len(weights)), weights)[0]
    assert choice(weights, uniform, dtype) == expected
    assert weights[expected] > 0


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.7]), min_size=1, max_size=40).filter(any),
    st.data(),
)
def test_choose_never_takes_what_is_left_out(dtype, weights, data):
    """Not even where a total is rounded up, or the last number below 1 to 1."""
    shares = np.cumsum(weights, dtype=dtype) / np.sum(weights, dtype=dtype)
    edges = [*shares[shares < 1].tolist(), 0.0, 1 - 2**-53]
    uniform = data.draw(st.sampled_from(edges))
    assert weights[choice(weights, uniform, dtype)] > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", range(1, 35))
def test_choose_stays_inside_at_both_ends(dtype, count):
    """Whole vectors too, where what follows the weights is not 0."""
    highest, share = 1 - 2**-53, 1 / count
    assert choice([1.0] * count, 0.0, dtype) == 0
    assert choice([1.0] * count, highest, dtype) == count - 1
    assert choice([1.0] * count, 1 - share / 2, dtype) == count - 1
    assert choice([0.0] * (count - 1) + [1.0], 0.0, dtype) == count - 1
    assert choice([1.0] + [0.0] * (count - 1), highest, dtype) == 0
    if count > 1:
        assert choice([1.0] * count, 1 - 1.5 * share, dtype) == count - 2


def in_turn(granularity="vector", seed=5, dtype="float64", **options):
    """Texts with microgpt's random numbers, and the generator after them."""
    run = trained()
    rng = random.Random(seed)
    compiled = loaded(run.tensors, granularity, dtype, 1)
    tokenizer = Trainer(MODEL, TrainConfig(), [CHARACTERS]).tokenizer
    return list(sample_in_turn(compiled, tokenizer, SampleConfig(**options), rng)), rng


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("prompt", ["", "fa"])
def test_samples_in_turn_use_one_random_number_a_token(granularity, prompt):
    texts, after = in_turn(granularity, prompt=prompt, temperature=1)
    weights, rng = random_weights(0), random.Random(5)
    ids = [CHARACTERS.index(character) for character in prompt]
    assert len(texts) == 20
    for text in texts:
        tokens = [BOS, *ids]
        while len(tokens) <= MODEL.block_size:
            logits = references.gpt_logits(weights, MODEL.n_layer, MODEL.n_head, tokens)[-1]
            shares = references.softmax(logits).tolist()
            (token,) = rng.choices(range(VOCABULARY), shares)
            if token == BOS:
                break
            tokens.append(token)
        assert text == "".join(CHARACTERS[token] for token in tokens[1:])
    assert after.getstate() == rng.getstate()
    assert {len(text) for text in texts} >= {MODEL.block_size}


def test_samples_in_turn_at_several_calls(monkeypatch):
    texts, after = in_turn(temperature=1)
    monkeypatch.setattr(sampling, "SAMPLES_PER_CALL", 7)
    again, state = in_turn(temperature=1)
    assert again == texts
    assert state.getstate() == after.getstate()


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=5), min_size=1))
def test_decoding_undoes_encoding(texts):
    tokenizer = Tokenizer.from_documents([*texts, "a"])
    samples = np.full((len(texts), 5), -1)
    for row, text in zip(samples, texts, strict=True):
        row[: len(text) + 1] = [*tokenizer.encode(text), tokenizer.bos][:5]
    assert decode(samples, tokenizer.characters) == texts


def test_no_text_is_longer_than_the_block():
    run = trained()
    run.tensors["lm_head"][BOS] = 0
    run.tensors["lm_head"][:BOS] = np.abs(run.tensors["lm_head"][:BOS])
    run.tensors["layer1.mlp_fc2"][:] = 0
    run.tensors["layer1.attn_wo"][:] = 0
    texts = list(sample(run, SampleConfig(num_samples=70, temperature=9)))
    assert max(map(len, texts)) == MODEL.block_size


def texts_of(run, **options):
    return list(sample(run, SampleConfig(**options)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_draws_the_same_texts(dtype):
    run = trained(dtype, seed=11)
    assert texts_of(run, seed=3) == texts_of(run, seed=3)
    assert texts_of(run, seed=3) != texts_of(run, seed=4)
    assert texts_of(run) == texts_of(run, seed=11)


@pytest.mark.parametrize("count", [1, 2, SAMPLES_PER_SWEEP, SAMPLES_PER_CALL + 1, 600])
def test_more_samples_begin_with_the_same(count):
    run = trained()
    texts = texts_of(run, num_samples=600, temperature=1)
    assert len(set(texts)) > 50
    assert texts_of(run, num_samples=count, temperature=1) == texts[:count]


def test_samples_of_a_run_are_those_of_the_plain_network():
    run, config = trained(seed=4), SampleConfig(temperature=1, num_samples=9, prompt="ba", seed=8)
    uniforms = np.random.default_rng(8).random((9, MODEL.block_size))
    expected = [numpy_text(run.tensors, config, row, (1, 0)) for row in uniforms]
    assert list(sample(run, config)) == ["".join(CHARACTERS[i] for i in text) for text in expected]


def test_greedy_by_three_names():
    run = trained()
    greedy = texts_of(run, temperature=0)
    assert len(set(greedy)) == 1
    assert texts_of(run, top_k=1, temperature=1.5) == greedy
    assert texts_of(run, top_p=1e-12, temperature=1.5, seed=9) == greedy


def test_limits_that_exclude_nothing():
    run = trained()
    assert texts_of(run, top_k=VOCABULARY) == texts_of(run, top_k=2**31 - 1) == texts_of(run)
    assert texts_of(run, top_p=1) == texts_of(run)


def test_top_k_is_at_most_the_vocabulary():
    """Where rounding keeps the shares of all tokens below top_p, it alone ends the search."""
    for top_k, kept in [
        (None, VOCABULARY),
        (3, 3),
        (VOCABULARY, VOCABULARY),
        (2**31 - 1, VOCABULARY),
    ]:
        config = SampleConfig(top_k=top_k, top_p=1 - 2**-53)
        assert kernel_limits(config, VOCABULARY, np.dtype(np.float64))[1:] == (kept, 1 - 2**-53)


@pytest.mark.parametrize("prompt", ["a", "gg", "abcdef"])
def test_a_prompt_begins_every_text(prompt):
    texts = texts_of(trained(), prompt=prompt, temperature=2)
    assert all(text.startswith(prompt) for text in texts)
    assert len(set(texts)) > 1


def test_prompts_that_cannot_be():
    run = trained()
    with pytest.raises(TapegptError, match=r"character 'z' \(U\+007A\) is not in the alphabet"):
        texts_of(run, prompt="abz")
    for text in ("abcdefg", "abcdefgab"):
        with pytest.raises(
            UsageError, match=f"--prompt '{text}' has {len(text)} .* shorten it to 6"
        ):
            texts_of(run, prompt=text)
    tokenizer = Trainer(MODEL, TrainConfig(), [CHARACTERS]).tokenizer
    assert encode_prompt("abcdef", tokenizer, 7).tolist() == [0, 1, 2, 3, 4, 5]


def test_little_memory_draws_fewer_together(monkeypatch):
    run = trained()
    expected = texts_of(run, num_samples=30)
    counts = []

    def counting(run, documents, *others):
        counts.append(documents)
        return network_of(run, documents, *others)

    monkeypatch.setattr(sampling, "network_of", counting)
    one, two = (
        sampling.bytes_needed(MODEL, VOCABULARY, "vector", "float64", documents)
        for documents in (1, 2)
    )
    for available in (one + 3.5 * (two - one), one, one / 2, math.inf):
        monkeypatch.setattr(sampling, "bytes_available", lambda available=available: available)
        assert texts_of(run, num_samples=30) == expected
    assert counts == [4, 1, 1, 30]


def test_a_run_too_large_for_memory_is_refused(monkeypatch):
    run = trained()
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "bytes_available", lambda: 1000)
        with pytest.raises(TapegptError, match=r"--block-size 7.* too large for this machine"):
            next(sample(run, SampleConfig()))
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "LARGEST_TAPE", 1000)
        with pytest.raises(TapegptError, match="too large for this machine's memory"):
            next(sample(run, SampleConfig()))

    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(sampling, "network_of", exhausted)
    with pytest.raises(TapegptError, match="too large for this machine's memory"):
        next(sample(run, SampleConfig()))


def test_sampling_leaves_the_run_as_it_is():
    run = trained()
    before = {name: array.copy() for name, array in run.tensors.items()}
    texts_of(run)
    for name, array in run.tensors.items():
        np.testing.assert_array_equal(array, before[name])
