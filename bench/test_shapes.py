"""Training at sizes that do not fit the vectors, beside those that do, in time for each flop."""

import random
from dataclasses import replace

import pytest
from workloads import Workload, step_workloads, stream

from tapegpt.settings import ModelConfig
from tapegpt.train.trainer import Trainer

ROUND = [ModelConfig(n_embd=width) for width in (16, 32, 64, 128)]
# Heads 3, 5, 6, 12, 24 and 25 columns wide.
ODD = [
    ModelConfig(n_embd=15, n_head=5),
    *(ModelConfig(n_embd=width) for width in (20, 24, 48, 96, 100)),
]
VOCABULARIES = [(16, 65), (16, 200), (64, 65), (64, 200)]


def measured(measure, workload: Workload, row: str) -> None:
    trainer = Trainer(workload.model, workload.training, workload.documents)
    flops = trainer.flops(workload.steps)
    measure(
        lambda: trainer.advance(workload.steps),
        table="shapes, picoseconds for each flop",
        row=row,
        column="a step",
        unit="",
        scale=1e12 / flops,
        flops=flops,
    )


@pytest.mark.parametrize("model", [*ROUND, *ODD], ids=lambda m: f"{m.n_embd}-{m.n_head}")
def test_widths(measure, model):
    workload = replace(step_workloads()[0], model=model)
    measured(measure, workload, f"{model.n_embd} wide, {model.n_head} heads")


@pytest.mark.parametrize(("width", "vocab_size"), VOCABULARIES)
def test_vocabularies(measure, width, vocab_size):
    rng = random.Random(1)
    letters = [chr(0x4E00 + i) for i in range(vocab_size - 1)]
    workload = replace(step_workloads()[0], model=ModelConfig(n_embd=width))
    documents = tuple("".join(rng.choices(letters, k=len(d))) for d in workload.documents)
    workload = replace(workload, documents=documents)
    measured(measure, workload, f"{width} wide, vocabulary {vocab_size}")


@pytest.mark.parametrize("n_head", [1, 4, 16])
def test_heads(measure, n_head):
    workload = stream("heads", 2, n_head, 128, 256, 8, steps=1)
    heads = "1 head" if n_head == 1 else f"{n_head} heads"
    measured(measure, workload, f"128 wide, {heads}, block 256")


@pytest.mark.parametrize(("block_size", "batch_size"), [(64, 64), (256, 16), (1024, 4)])
def test_blocks(measure, block_size, batch_size):
    """As many tokens a step, of which each sees up to a block before it."""
    workload = stream("blocks", 2, 4, 128, block_size, batch_size, steps=1)
    trainer = Trainer(workload.model, workload.training, workload.documents)
    measure(
        lambda: trainer.advance(workload.steps),
        table="blocks, µs a token",
        row=f"128 wide, block {block_size}",
        column="a step of 4096 tokens",
        unit="",
        scale=1e6 / (block_size * batch_size),
        flops=trainer.flops(workload.steps),
    )
