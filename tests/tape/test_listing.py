"""What a tape shows of itself."""

import numpy as np

from tapegpt.tape import Tape


def test_records_listing_and_graph() -> None:
    tape = Tape()
    a, b = tape.var(3.0), tape.var(2.0)
    c = a * b + a
    c.backward()
    assert repr(tape) == "Tape('float64', 4 nodes, 2 records)"
    assert [(r.name, r.out, r.nodes) for r in tape.records()] == [
        ("mul", 2, (0, 1)),
        ("add", 3, (2, 0)),
    ]
    assert tape.listing().split() == ["2", "=", "mul(0,", "1)", "6", "3", "=", "add(2,", "0)", "9"]
    dot = tape.to_dot()
    assert "mul | 6 | grad 1" in dot and "leaf | 3 | grad 3" in dot
    assert dot.count("->") == 4


def test_arrays_are_shown_with_their_shapes() -> None:
    tape = Tape()
    x = tape.array(np.ones((2, 3)))
    tape.relu(x @ x.T)
    assert [r.name for r in tape.records()] == ["array_transpose", "matmul", "array_relu"]
    assert "2 x 2" in tape.listing() and "3 x 2" in tape.to_dot()


def test_a_large_graph_is_folded() -> None:
    tape = Tape()
    x = tape.var(1.0)
    for _ in range(10_000):
        x = x + 1.0
    assert len(tape.listing().splitlines()) == 61
    assert "add x 10000" in tape.to_dot()
