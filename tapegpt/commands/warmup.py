"""tapegpt warmup: compile and cache what the other commands use."""

import itertools
from dataclasses import replace

from tapegpt.host import peak_gflops
from tapegpt.kernels.ops.product.amx import UNIT_LEAST
from tapegpt.models.registry import MODELS
from tapegpt.sampling import sample_in_turn
from tapegpt.settings import DTYPES, GRANULARITIES, ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

HEAD_WIDTHS = (
    1,
    2,
    4,
    8,
    16,
)  # attention has kernels for each, see lane_batching.py


def run() -> int:
    """Train, evaluate and sample tiny models of every kind. Returns the exit code."""
    for granularity, dtype in itertools.product(GRANULARITIES, DTYPES):
        training = TrainConfig(val_fraction=0.5, granularity=granularity, dtype=dtype)
        widths = HEAD_WIDTHS if granularity == "vector" else HEAD_WIDTHS[:1]
        models = [ModelConfig(n_embd=2 * width, n_head=2, block_size=2) for width in widths]
        if granularity == "vector":
            models.append(ModelConfig(n_embd=UNIT_LEAST, block_size=UNIT_LEAST))
        tiny = ModelConfig(n_embd=2, n_head=2, n_state=2, n_att=1, block_size=2)
        models += [replace(tiny, model=name) for name in MODELS]
        for model in models:
            trainer = Trainer(model, training, ["ab", "ba"])
            trainer.advance(1)
            trainer.evaluate()
            list(sample_in_turn(trainer.recording, trainer.tokenizer, SampleConfig(), trainer.rng))
    peak_gflops()
    return 0
