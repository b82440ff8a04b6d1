"""How good a model is on documents that are held out, and which ones those are."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt.errors import UsageError
from tapegpt.setting import DTYPES, GRANULARITIES
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train import sweep_size
from tapegpt.train import trainer as trainer_module
from tapegpt.train.trainer import Trainer

MODEL = ModelConfig(n_embd=6, n_head=2, block_size=5)
# The longest are longer than the block, and one letter is in a single document.
DOCUMENTS = ["ab", "b", "abcab", "cabbage", "a", "bca", "gab", "cab", "ea", "aaaaaaaaa", "z", "be"]
KINDS = [(granularity, dtype) for granularity in GRANULARITIES for dtype in DTYPES]


def make(documents=DOCUMENTS, **settings):
    return Trainer(MODEL, replace(TrainConfig(dtype="float64"), **settings), documents)


def split(documents, count, seed=42):
    """Those to train on, in their order, and those that are held out."""
    ordered = list(documents)
    random.Random(seed).shuffle(ordered)
    return ordered[: len(ordered) - count], ordered[len(ordered) - count :]


def tokens_of(trainer, text):
    bos = trainer.tokenizer.bos
    return [bos, *trainer.tokenizer.encode(text).tolist(), bos][: MODEL.block_size + 1]


def mean_over_tokens(trainer, texts):
    losses = []
    for text in texts:
        tokens = tokens_of(trainer, text)
        logits = references.gpt_logits(trainer.compiled.weights, 1, 2, tokens[:-1])
        for row, target in zip(logits, tokens[1:], strict=True):
            losses.append(references.cross_entropy(row[None], [target]))
    return np.mean(losses)


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_loss_of_all_held_out_tokens(granularity, dtype, fraction):
    trainer = make(granularity=granularity, dtype=dtype, val_fraction=fraction)
    trainer.advance(3)
    _, held_out = split(DOCUMENTS, round(12 * fraction))
    expected = mean_over_tokens(trainer, held_out)
    assert trainer.evaluate() == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("granularity", ["dot", "vector"])
@given(texts=st.lists(st.text("abc", min_size=1, max_size=9), min_size=2, max_size=40))
@settings(max_examples=25)
def test_documents_of_any_lengths(granularity, texts):
    """In sweeps of at most four, the last of which may have fewer."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sweep_size, "ROWS_PER_SWEEP", 4 * MODEL.block_size)
        trainer = make(texts, granularity=granularity, val_fraction=0.5)
    count = max(1, round(len(texts) / 2))
    expected = mean_over_tokens(trainer, split(texts, count)[1])
    assert trainer.evaluate() == pytest.approx(expected, rel=1e-12)


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=40),
    val=st.floats(0, 0.6),
    test=st.floats(0, 0.39),
    seed=st.integers(0, 9),
)
@settings(max_examples=50)
def test_the_last_of_the_shuffled_documents_are_held_out(texts, val, test, seed):
    """First those to evaluate on, then, to the end, those to test on."""
    counts = [0 if part == 0 else max(1, round(part * len(texts))) for part in (val, test)]
    fractions = {"val_fraction": val, "test_fraction": test}
    if sum(counts) >= len(texts):
        with pytest.raises(UsageError, match=f"leaves none of {len(texts)} documents to train on"):
            make(texts, **fractions, seed=seed)
        return
    trainer = make(texts, **fractions, seed=seed)
    parts = [trainer.data.numbered(0, 1)]
    for pieces in (trainer.data.held_out(), trainer.data.test()):
        ((part, context),) = pieces
        assert context == 0
        parts.append(part)
    found = [
        [
            trainer.tokenizer.decode(tokens[begin + 1 : end - 1])
            for begin, end in itertools.pairwise(offsets)
        ]
        for tokens, offsets, _ in parts
    ]
    rest, test_part = split(texts, counts[1], seed)
    expected = [rest[: len(rest) - counts[0]], rest[len(rest) - counts[0] :], test_part]
    assert found == expected
    assert trainer.snapshot().documents == len(texts)


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_the_loss_of_all_test_tokens(granularity, dtype):
    trainer = make(granularity=granularity, dtype=dtype, val_fraction=0.2, test_fraction=0.3)
    trainer.advance(3)
    expected = mean_over_tokens(trainer, split(DOCUMENTS, 4)[1])
    assert trainer.test() == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)
    assert (trainer.best_loss, trainer.stale) == (None, 0)


def test_evaluations_are_made_with_the_averaged_weights():
    trainer = make(averaging=0.5, val_fraction=0.3, test_fraction=0.3, batch_size=2)
    latest = trainer.compiled.weights["lm_head"]
    first = trainer.evaluate()
    assert first == pytest.approx(mean_over_tokens(trainer, split(DOCUMENTS, 8)[1][:4]), rel=1e-12)
    seen = []
    for _ in range(3):
        trainer.advance(8)
        seen.append(latest.copy())
    before = latest.copy()
    with trainer.predicting():
        after_two = seen[0] + (seen[1] - seen[0]) / 1.5
        np.testing.assert_allclose(latest, after_two + (seen[2] - after_two) / 2, rtol=1e-12)
        expected = [mean_over_tokens(trainer, part) for part in parts_of(8)]
    np.testing.assert_array_equal(latest, before)
    assert [trainer.evaluate(), trainer.test()] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(latest, before)
    assert trainer.snapshot().weights["lm_head"][0, 0] != before[0, 0]


def parts_of(count):
    """The halves of the held-out documents."""
    held_out = split(DOCUMENTS, count)[1]
    return held_out[: count // 2], held_out[count // 2 :]


def test_an_ensemble_predicts_with_the_mean_of_its_logits():
    trainer = Trainer(
        replace(MODEL, ensemble=3), TrainConfig(dtype="float64", val_fraction=0.3), DOCUMENTS
    )
    weights = trainer.compiled.weights
    losses = []
    for text in split(DOCUMENTS, 4)[1]:
        tokens = tokens_of(trainer, text)
        logits = [
            references.gpt_logits(
                {name[5:]: w for name, w in weights.items() if name.startswith(f"net{i}.")},
                1, 2, tokens[:-1],
            )
            for i in range(3)
        ]  # fmt: skip
        for row, target in zip(np.mean(logits, axis=0), tokens[1:], strict=True):
            losses.append(references.cross_entropy(row[None], [target]))
    assert trainer.evaluate() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_only_the_others_are_trained_on(batch_size):
    """Holding documents out changes no bit of the steps before the first of them would come."""
    whole = make(batch_size=batch_size)
    part = make(batch_size=batch_size, val_fraction=0.25)
    assert whole.advance(9 // batch_size).tobytes() == part.advance(9 // batch_size).tobytes()
    expected = np.mean(
        [
            references.gpt_loss(part.compiled.weights, 1, 2, tokens_of(part, text))
            for text in split(DOCUMENTS, 3)[0][:batch_size]
        ]
    )
    assert part.advance(1)[0] == pytest.approx(expected, rel=1e-12)


def test_the_alphabet_is_that_of_all_documents():
    trainer = make(["aaa", "aa", "b"], val_fraction=0.5, seed=0)
    assert trainer.tokenizer.characters == "ab"


@pytest.mark.parametrize(("granularity", "dtype"), KINDS)
def test_an_evaluation_changes_no_bit_of_the_training(granularity, dtype):
    kind = {"granularity": granularity, "dtype": dtype, "batch_size": 2, "val_fraction": 0.4}
    evaluated, other = make(**kind), make(**kind)
    for _ in range(3):
        assert evaluated.advance(2).tobytes() == other.advance(2).tobytes()
        evaluated.evaluate()


def test_the_loss_falls():
    trainer = make(DOCUMENTS * 5, val_fraction=0.3, batch_size=9, steps=60)
    before = trainer.evaluate()
    trainer.advance(60)
    assert trainer.evaluate() < 0.9 * before


@pytest.mark.parametrize(
    ("losses", "best", "stale"),
    [
        ([2.0], 2.0, [0]),
        ([2.0, 1.5, 1.5, 1.75, 1.25], 1.25, [0, 0, 1, 2, 0]),
        ([math.nan, math.inf, math.nan], None, [1, 2, 3]),
        ([math.nan, 3.0, math.nan, 2.0, math.nan, -math.inf], 2.0, [1, 0, 1, 0, 1, 2]),
    ],
)
def test_only_a_smaller_number_is_an_improvement(monkeypatch, losses, best, stale):
    trainer = make(val_fraction=0.3, patience=3)
    results = iter(losses)
    monkeypatch.setattr(trainer_module.Trainer, "_loss_per_token", lambda *arguments: next(results))
    for count in stale:
        assert not trainer.finished
        trainer.evaluate()
        assert trainer.stale == count
    assert trainer.best_loss == best
    assert trainer.finished == (stale[-1] == 3)
    run = trainer.snapshot()
    assert (run.best_loss, run.stale) == (best, stale[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_model_that_is_not_finite_has_a_loss_that_is_not(granularity, dtype):
    trainer = make(granularity=granularity, dtype=dtype, val_fraction=0.3)
    trainer.compiled.weights["layer0.mlp_fc2"][1, 2] = math.nan
    assert math.isnan(trainer.evaluate())
    assert (trainer.best_loss, trainer.stale) == (None, 1)


def test_training_is_finished_with_its_budget():
    for budget, step, seconds in (({"steps": 7}, 7, 0.0), ({"seconds": 2.5}, 9, 2.5)):
        trainer = make(**({"steps": None} | budget))
        assert not trainer.finished
        trainer.step, trainer.elapsed = step - 1, seconds / 2
        assert not trainer.finished
        trainer.step, trainer.elapsed = step, seconds
        assert trainer.finished


def test_another_state_can_be_tested():
    trainer = make(test_fraction=0.3, batch_size=2)
    before = trainer.test()
    kept = {name: weights.copy() for name, weights in trainer.compiled.weights.items()}
    trainer.advance(9)
    after = trainer.test()
    assert after != before
    assert trainer.test(kept) == before
    assert trainer.test() == after
