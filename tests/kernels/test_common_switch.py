"""Small programs of scalars have a switch of common operations, until they record another."""

import numpy as np

from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.ops.scalar.switch import COMMON, COMMON_NAMES
from tapegpt.kernels.registry import COMMON_SCALARS, SCALARS, kernels_of, load_kernels
from tapegpt.tape import Tape


def graph(tape, a, b):
    """A root of common operations."""
    c = a * b + a - b / a
    d = tape.exp(-c) + tape.log(a) * 3.0 + tape.relu(b) ** 2 + tape.tanh(c)
    return d * b


def gradients(extra):
    tape = Tape()
    a, b = tape.var(0.7), tape.var(1.3)
    root = graph(tape, a, b)
    if extra:
        tape.sum([a, b, root])
    tape.backward(root)
    return tape, (root.value, a.grad, b.grad)


def test_all_names_are_operations():
    assert len(COMMON) == len(COMMON_NAMES)


def test_both_switches_give_the_same_bits():
    small, expected = gradients(extra=False)
    large, given = gradients(extra=True)
    assert given == expected
    for tape, row in ((small, COMMON_SCALARS), (large, SCALARS)):
        assert kernels_of(tape._record_rows()) == [row]
    assert small.kernels[SCALARS].tolist() == small.kernels[COMMON_SCALARS].tolist()
    assert (small.kernels[SCALARS] != large.kernels[SCALARS]).all()


def test_another_operation_takes_the_switch_of_all():
    tape, expected = gradients(extra=False)
    _, *slopes = expected
    common = tape.kernels[SCALARS].copy()
    a, b = tape.node(0), tape.node(1)
    root = tape.sum([a.sin(), b, graph(tape, a, b)])
    tape.backward(root)
    assert (tape.kernels[SCALARS] != common).all()
    assert [a.grad, b.grad] == [slopes[0] + np.cos(0.7), slopes[1] + 1]
    switch = tape.kernels[SCALARS].copy()
    for direction in (FORWARD, BACKWARD):
        load_kernels(tape.kernels, tape.dtype, [SCALARS, COMMON_SCALARS], direction)
    assert (tape.kernels[SCALARS] == switch).all()
