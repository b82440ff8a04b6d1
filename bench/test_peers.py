"""That the peers train the same model on the same documents: not timed, `pytest bench` runs it."""

import numpy as np
import pytest
from contenders import PEERS, peer_of, trainer_of
from workloads import long_workloads, step_workloads


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "workload", [*step_workloads(), *long_workloads()], ids=lambda workload: workload.name
)
def test_a_peer_has_our_losses(workload, name):
    trainer = trainer_of(workload)
    peer = peer_of(name, workload, trainer)
    steps = min(8, 4 * workload.steps)  # of large models four
    ours = trainer.advance(steps)
    assert ours[-1] < ours[0] - 0.05
    theirs = np.asarray(peer.advance(0, steps))
    # Later losses differ more: where rounding moves an input of a ReLU across 0, its gradient
    # appears or goes, and Adam turns small differences of small gradients into large ones.
    np.testing.assert_allclose(theirs[0], ours[0], rtol=2e-6)
    np.testing.assert_allclose(theirs, ours, rtol=5e-4)
