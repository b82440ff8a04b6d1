"""Drawing texts from a trained model: nanoseconds a token, the delimiter of every text included."""

import random

import numpy as np
import pytest
from workloads import step_workloads

from tapegpt.graph.compile import compiled_model
from tapegpt.sampling import SAMPLES_PER_SWEEP, draw, sample, sample_in_turn
from tapegpt.settings import SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

SMALL, LARGE = step_workloads()[:3:2]
NO_PROMPT = np.zeros(0, np.int64)


def trained(workload):
    trainer = Trainer(workload.model, TrainConfig(), workload.documents)
    trainer.advance(trainer.training.steps)
    return trainer


def count_tokens(texts):
    """A text that fills the block has no delimiter."""
    return sum(min(len(text) + 1, SMALL.model.block_size) for text in texts)


@pytest.fixture
def measure_tokens(measure):
    def run(function, tokens, workload, column):
        table, scale = "sampling, ns a token", 1e9 / tokens
        measure(function, table=table, row=workload.name, column=column, unit="", scale=scale)

    return run


@pytest.mark.parametrize("together", [1, SAMPLES_PER_SWEEP])
@pytest.mark.parametrize("workload", [SMALL, LARGE], ids=lambda workload: workload.name)
def test_kernel(measure_tokens, workload, together):
    """The random numbers are there before, the texts stay token ids."""
    trainer, model = trained(workload), workload.model
    vocab_size = trainer.tokenizer.vocab_size
    compiled = compiled_model(model, vocab_size, "vector", "float32", together)
    for name, weights in compiled.weights.items():
        weights[:] = trainer.compiled.weights[name]
    uniforms = np.random.default_rng(0).random((4096, model.block_size))

    def run():
        return draw(compiled, NO_PROMPT, SampleConfig(), uniforms)

    _, tokens = run()
    measure_tokens(run, tokens, workload, f"kernel, {together} together")


def test_sample(measure_tokens):
    """From a saved run to strings."""
    run, config = trained(SMALL).snapshot(), SampleConfig(num_samples=100_000)
    tokens = count_tokens(sample(run, config))
    measure_tokens(lambda: list(sample(run, config)), tokens, SMALL, "sample")


def test_sample_in_turn(measure_tokens):
    """One by one, with Python's random numbers."""
    trainer, config = trained(SMALL), SampleConfig(num_samples=10_000)

    def run():
        given = trainer.compiled, trainer.tokenizer, config, random.Random(0)
        return list(sample_in_turn(*given))

    measure_tokens(run, count_tokens(run()), SMALL, "sample_in_turn")
