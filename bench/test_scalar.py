"""The tape of scalars as an engine of its own: replay of a graph, recording, a training step."""

import numpy as np
import pytest
from workloads import step_workloads

from tapegpt.settings import TrainConfig
from tapegpt.tape import Tape
from tapegpt.train.trainer import Trainer

DTYPES = ["float32", "float64"]
OPERATIONS = 10_000
TERMS = 4


def record_workload(dtype: str) -> tuple[Tape, list[int]]:
    """The graph of 'Fastest Autograd in the West' (A. Rogozhnikov, 2023), and its nodes.

    100 inputs, then 10,000 operations: softplus, a sum of four, a product and a softmax of four in
    turn. A softmax counts as one operation and makes four nodes.
    """
    tape = Tape(dtype)
    nodes = tape.variables(np.arange(100.0)).tolist()
    for _ in range(OPERATIONS // 4):
        nodes.append(tape.softplus(nodes[-10]))
        nodes.append(tape.sum(nodes[-30:-10:5]))
        nodes.append(tape.mul(nodes[-20], nodes[-10]))
        nodes.extend(tape.softmax(nodes[-4:]))
    return tape, nodes


# The gradient of the last node vanishes after some hundred operations, as in the original. That of
# all nodes' sum, one more operation of 17,600 terms, does not.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("root", ["the last node", "the sum of all nodes"])
def test_workload(measure, root, dtype):
    tape, nodes = record_workload(dtype)
    node = nodes[-1] if root == "the last node" else tape.sum(nodes)

    def replay():
        tape.forward()
        tape.backward(node)

    measure(
        replay,
        table="Fastest Autograd's graph, ns an operation",
        row=f"forward, and backward from {root}",
        column=dtype,
        unit="",
        scale=1e9 / OPERATIONS,
    )


BULK = {
    "record": lambda tape, ids: tape.elementwise("mul", ids[:, 0], ids[:, 1], separate=True),
    "lookup": lambda tape, ids: tape.take(ids[:, 0], tape.input([1], below=2), 0, stride=1),
    "sums of four": lambda tape, ids: tape.sums(ids[:, :TERMS]),
    "dots of four": lambda tape, ids: tape.dots(ids[:, :TERMS], ids[:, TERMS:]),
    "softmaxes of four": lambda tape, ids: tape.softmax(ids[:, :TERMS]),
}


@pytest.mark.parametrize("way", BULK)
def test_bulk(measure, way):
    numbers = np.ones(4096)
    ids = np.random.default_rng(0).integers(0, len(numbers) - 1, (OPERATIONS, 2 * TERMS))

    def run():
        tape = Tape("float32", capacity=2**17)
        tape.variables(numbers)
        BULK[way](tape, ids)
        tape._replay_arrays()

    measure(
        run,
        table="recording in bulk and freezing, ns an operation",
        row=way,
        column="float32",
        unit="",
        scale=1e9 / OPERATIONS,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["scalar", "dot"])
def test_step(measure, granularity, dtype):
    workload = step_workloads()[0]
    training = TrainConfig(granularity=granularity, dtype=dtype, learning_rate=1e-5, steps=2**40)
    trainer = Trainer(workload.model, training, workload.documents)
    steps = 200
    measure(
        lambda: trainer.advance(steps),
        table="microgpt's step of scalars (16 wide, batch 1), µs",
        row=granularity,
        column=dtype,
        unit="",
        scale=1e6 / steps,
    )
