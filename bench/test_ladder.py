"""The same training at every granularity: from a node for each number to whole arrays."""

import time
from dataclasses import replace

import pytest
from workloads import step_workloads

from tapegpt.commands.bench import LADDER
from tapegpt.train.trainer import Trainer

SECONDS = 0.1  # of training for one round


@pytest.mark.parametrize(("granularity", "batch_size"), LADDER)
@pytest.mark.parametrize("workload", step_workloads()[:3:2], ids=lambda workload: workload.name)
def test_granularity(measure, workload, granularity, batch_size):
    training = replace(workload.training, granularity=granularity, batch_size=batch_size)
    trainer = Trainer(workload.model, training, workload.documents)
    trainer.advance(1)
    begin = time.perf_counter()
    trainer.advance(2)
    steps = max(1, round(2 * SECONDS / (time.perf_counter() - begin)))
    measure(
        lambda: trainer.advance(steps),
        table="ladder, µs a document",
        row=f"{granularity}, batch {batch_size}",
        column=workload.name,
        unit="",
        scale=1e6 / steps / batch_size,
        flops=trainer.flops(steps),
    )
