"""Graphs of scalars that are recorded node by node."""

import random
import sys
from pathlib import Path

from library_rows import MICROGRAD, OURS, TORCH, Ways
from tapegpt import Tape

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import two_moons

if MICROGRAD:
    from micrograd.engine import Value
    from micrograd.nn import MLP
if TORCH:
    import torch


def scalars(count: int, read: bool) -> Ways:
    """y a + b, again and again: recorded, computed, and swept back."""

    def chain(y, a, b, value_of):
        for _ in range(count // 2):
            y = y * a
            if read:
                value_of(y)
            y = y + b
            if read:
                value_of(y)
        return y

    tape = Tape()
    a, b = tape.var(0.9), tape.var(0.5)
    mark = tape.mark()

    def ours():
        tape.reset(mark)
        y = chain(a, a, b, lambda y: y.value)
        y.backward()
        return y.value, a.grad, b.grad

    yield OURS, ours
    if MICROGRAD:

        def theirs():
            a, b = Value(0.9), Value(0.5)
            y = chain(a, a, b, lambda y: y.data)
            y.backward()
            return y.data, a.grad, b.grad

        yield "micrograd", theirs
    if TORCH:
        leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.9, 0.5)]

        def pytorch():
            y = chain(leaves[0], *leaves, lambda y: y.item())
            return y.detach(), *torch.autograd.grad(y, leaves)

        yield "PyTorch", pytorch


def moons(count: int, replay: bool) -> Ways:
    """A step of micrograd's demo: all points, forward and back, and plain descent."""
    points, signs = two_moons.moons(count, random.Random(1337))
    rate = 0.05
    tape = Tape()
    layers = two_moons.new_layers(tape, random.Random(1))
    inputs = [[tape.var(x) for x in point] for point in points]
    opt, mark = tape.sgd(two_moons.numbers_of(layers), lr=rate), tape.mark()

    def record():
        scores = two_moons.scores_of(tape, layers, inputs)
        return two_moons.loss_of(tape, layers, scores, signs)

    def recorded_anew():
        tape.reset(mark)
        return opt.step(record())

    if replay:
        loss = record()
        yield OURS, lambda: opt.step(loss)
    else:
        yield OURS, recorded_anew
    if MICROGRAD:
        random.seed(1)
        net = MLP(2, [16, 16, 1])

        def theirs():
            margins = [
                (1 + -sign * net(point)).relu() for point, sign in zip(points, signs, strict=True)
            ]
            squares = sum(p * p for p in net.parameters())
            loss = sum(margins) * (1 / count) + squares * 1e-4
            net.zero_grad()
            loss.backward()
            for p in net.parameters():
                p.data -= rate * p.grad
            return loss.data

        yield "micrograd", theirs
