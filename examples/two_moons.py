"""Two moons told apart by a small net of scalars, as in micrograd's demo (Karpathy 2020).

The net is micrograd's: 2 inputs, two layers of 16 ReLUs, one output, 337 parameters. It is recorded
once; a step replays it and moves the parameters.

    python examples/two_moons.py [steps]
"""

import math
import random
import sys
from itertools import pairwise

from tapegpt import Tape


def moons(count, rng):
    """Points of two half circles that reach into each other, and on which each lies: 1 or -1."""
    points, signs = [], []
    for i in range(count):
        angle, upper = math.pi * rng.random(), i % 2 == 0
        x, y = math.cos(angle), math.sin(angle)
        point = (x, y) if upper else (1 - x, 0.5 - y)
        points.append([value + rng.gauss(0, 0.1) for value in point])
        signs.append(-1 if upper else 1)
    return points, signs


def main(steps=100, count=100):
    rng = random.Random(1337)
    points, signs = moons(count, rng)
    tape = Tape()
    parameters = []

    def neuron(inputs, activates):
        weights = [tape.var(rng.uniform(-1, 1)) for _ in inputs]
        bias = tape.var(0.0)
        parameters.extend([*weights, bias])
        return weights, bias, activates

    sizes = [2, 16, 16, 1]
    layers = [
        [neuron(range(before), activates=after > 1) for _ in range(after)]
        for before, after in pairwise(sizes)
    ]

    def score(x):
        for layer in layers:
            outputs = [tape.dot(weights, x) + bias for weights, bias, _ in layer]
            x = [out.relu() if layer[0][2] else out for out in outputs]
        return x[0]

    scores = [score([tape.var(value) for value in point]) for point in points]
    margins = [(1 - out * sign).relu() for out, sign in zip(scores, signs, strict=True)]
    squares = tape.dot(parameters, parameters)
    loss = tape.sum(margins) * (1 / count) + squares * 1e-4

    opt, losses = tape.sgd(parameters), []
    for step in range(steps):
        opt.lr = 1.0 - 0.9 * step / steps
        losses.append(opt.step(loss))
    right = sum(tape.value(out) * sign > 0 for out, sign in zip(scores, signs, strict=True))
    print(f"{len(parameters)} parameters, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    print(f"accuracy {right / count:.0%}")
    return losses, right / count


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
