"""Sampling from a trained model, one text and many together; recording the program is included."""

import pytest
from contenders import trainer_of
from workloads import step_workloads

from tapegpt.config import SampleConfig
from tapegpt.sampling import sample


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("workload", step_workloads()[:3:2], ids=lambda workload: workload.name)
def test_sample(measure, workload, count):
    trainer = trainer_of(workload)
    trainer.advance(2 * workload.steps)
    run, config = trainer.snapshot(), SampleConfig(num_samples=count)
    assert len(list(sample(run, config))) == count
    measure(
        lambda: list(sample(run, config)),
        table="sampling, µs a text",
        row=workload.name,
        column=f"{count} together",
        unit="",
        scale=1e6 / count,
    )
