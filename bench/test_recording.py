"""Recording: a whole model, and scalar nodes one at a time from Python."""

import pytest

from tapegpt.graph.compile import compiled_model
from tapegpt.settings import ModelConfig
from tapegpt.tape import Tape

NODES = 10_000


@pytest.mark.parametrize("granularity", ["scalar", "dot", "vector"])
@pytest.mark.parametrize("n_embd", [16, 64])
def test_model(measure, n_embd, granularity):
    measure(
        lambda: compiled_model(ModelConfig(n_embd=n_embd), 27, granularity, "float32", 16),
        table="recording a model, ms",
        row=granularity,
        column=f"d{n_embd}",
        unit="",
        scale=1e3,
    )


def with_methods() -> None:
    tape = Tape()
    a, b = tape.var(1.0), tape.var(0.5)
    for _ in range(NODES // 2):
        a = tape.add(tape.mul(a, b), b)
    tape.backward(a)


def with_operators() -> None:
    tape = Tape()
    a, b = tape.node(tape.var(1.0)), tape.node(tape.var(0.5))
    for _ in range(NODES // 2):
        a = a * b + b
    a.backward()


WAYS = {"methods": with_methods, "operators": with_operators}


@pytest.mark.parametrize("way", WAYS)
def test_scalars(measure, way):
    measure(
        WAYS[way],
        table="recording scalars, ns a node",
        row=f"{NODES} nodes, computed and differentiated once",
        column=way,
        unit="",
        scale=1e9 / NODES,
    )
