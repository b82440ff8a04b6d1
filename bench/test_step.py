"""Training: a whole step (forward, backward, Adam) of tapegpt and of its peers."""

import pytest
from contenders import PEERS, peer_of, trainer_of
from workloads import long_workloads, step_workloads


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["tapegpt", *PEERS])
@pytest.mark.parametrize(
    "workload", [*step_workloads(), *long_workloads()], ids=lambda workload: workload.name
)
def test_step(measure, workload, name):
    steps, trainer = workload.steps, trainer_of(workload)
    if name == "tapegpt":

        def run():
            trainer.advance(steps)

    else:
        peer, done = peer_of(name, workload, trainer), 0

        def run():
            nonlocal done
            peer.advance(done, steps)
            done += steps

    small = workload.model.n_layer == 1
    measure(
        run,
        table="step",
        row=f"{workload.name}, {'µs a document' if small else 'ms an iteration'}",
        column=name,
        unit="",
        scale=1e6 / steps / workload.batch_size if small else 1e3 / steps,
        flops=trainer.flops(steps),
        rounds=3 if steps == 1 else 7,
    )
