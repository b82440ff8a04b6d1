"""tapegpt warmup: compile and cache what the other commands use."""

import itertools

from tapegpt.config import DTYPES, GRANULARITIES, ModelConfig, SampleConfig, TrainConfig
from tapegpt.machine import peak_gflops
from tapegpt.sampling import sample_in_turn
from tapegpt.training import Trainer


def run() -> int:
    """Train and sample tiny models of every kind. Returns the exit code."""
    # Three columns to a head: the kernels for heads of odd widths are compiled, too.
    model = ModelConfig(n_embd=6, n_head=2, block_size=2)
    for granularity, dtype in itertools.product(GRANULARITIES, DTYPES):
        training = TrainConfig(steps=1, granularity=granularity, dtype=dtype)
        trainer = Trainer(model, training, ["ab"])
        trainer.advance(1)
        list(sample_in_turn(trainer.recording, trainer.tokenizer, SampleConfig(), trainer.rng))
    peak_gflops()
    return 0
