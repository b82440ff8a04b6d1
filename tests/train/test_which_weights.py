"""Which weights speak for a run: averaged ones rather than the last, the best rather than the last.

Every expectation is computed from the saved arrays by the references.
"""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import references
from command_line import SKY, metrics

from tapegpt.checkpoint import load
from tapegpt.corpus import Tokenizer, read_documents

N_LAYER, N_HEAD, BLOCK = 1, 2, 8
FLAGS = ["train", "--data", SKY, "--n-embd", "8", "--n-head", N_HEAD, "--block-size", BLOCK]
FLAGS += ["--dtype", "float64", "--out", "out"]
AVERAGED = [*FLAGS, "--averaging", "0.5", "--steps", "60", "--learning-rate", "0.03"]


def text_of(weights, tokenizer, choose, prompt=""):
    """A text whose tokens `choose` takes by their logits."""
    tokens = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
    while len(tokens) <= BLOCK:
        token = choose(references.gpt_logits(weights, N_LAYER, N_HEAD, tokens)[-1])
        if token == tokenizer.bos:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[1:])


def at_random(rng, temperature):
    """Draws tokens as microgpt does."""

    def choose(logits):
        (token,) = rng.choices(range(len(logits)), references.softmax(logits / temperature))
        return token

    return choose


def test_sample_draws_from_the_averaged_weights(call):
    call(*AVERAGED)
    run = load(Path("out"))
    tokenizer = Tokenizer(run.characters)
    averaged, last = (
        [text_of(weights, tokenizer, np.argmax, prompt) for prompt in run.characters]
        for weights in (run.optimizer["average"], run.tensors)
    )
    assert averaged != last
    greedy = ["sample", "--run", "out", "--temperature", "0", "--num-samples", "1"]
    drawn = [call(*greedy, "--prompt", prompt)[0] for prompt in run.characters]
    assert drawn == [text + "\n" for text in averaged]


def test_train_prints_samples_of_the_averaged_weights(call):
    out, _ = call(*AVERAGED)
    run = load(Path("out"))
    tokenizer = Tokenizer(run.characters)

    def drawn(weights):
        rng = random.Random()
        rng.setstate(run.random_state)
        return [text_of(weights, tokenizer, at_random(rng, 0.5)) for _ in range(20)]

    assert out.splitlines() == drawn(run.optimizer["average"]) != drawn(run.tensors)


def mean_over_tokens(weights, tokenizer, documents):
    losses = []
    for text in documents:
        tokens = [tokenizer.bos, *tokenizer.encode(text).tolist(), tokenizer.bos][: BLOCK + 1]
        logits = references.gpt_logits(weights, N_LAYER, N_HEAD, tokens[:-1])
        losses += [
            references.cross_entropy(row[None], [target])
            for row, target in zip(logits, tokens[1:], strict=True)
        ]
    return np.mean(losses)


@pytest.mark.parametrize("averaging", [0, 0.5])
def test_the_test_loss_is_that_of_the_best_state(call, averaging):
    """At a rate so high that a later state is worse."""
    flags = ["--steps", "60", "--eval-every", "5", "--learning-rate", "0.1", "--schedule"]
    flags += ["constant", "--val-fraction", "0.1", "--test-fraction", "0.2"]
    call(*FLAGS, *flags, "--averaging", averaging, "--metrics", "m.jsonl")
    last, best = load(Path("out")), load(Path("out/best"))
    assert best.step < last.step == 60
    documents = read_documents(SKY)
    random.Random(last.training.seed).shuffle(documents)
    held_out = documents[-round(0.2 * len(documents)) :]
    tokenizer = Tokenizer(last.characters)
    expected, of_the_last, *others = (
        mean_over_tokens(weights, tokenizer, held_out)
        for run in (best, last)
        for weights in ([run.optimizer["average"], run.tensors] if averaging else [run.tensors])
    )
    figures = [expected, of_the_last, *others]
    assert all(abs(a - b) > 1e-3 for a, b in itertools.combinations(figures, 2))
    assert metrics(Path("m.jsonl"))[-1]["test_loss"] == pytest.approx(expected, rel=1e-9)
