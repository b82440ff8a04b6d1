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


def new_layers(tape, rng, sizes=(2, 16, 16, 1)):
    """For every neuron its weights and its bias."""
    return [
        [
            ([tape.var(rng.uniform(-1, 1)) for _ in range(before)], tape.var(0.0))
            for _ in range(after)
        ]
        for before, after in pairwise(sizes)
    ]


def numbers_of(layers):
    """All parameters, one after the other."""
    return [p for layer in layers for weights, bias in layer for p in (*weights, bias)]


def scores_of(tape, layers, points):
    """What the net says of each point: a row of two nodes."""

    def score(x):
        for layer in layers[:-1]:
            x = [(tape.dot(weights, x) + bias).relu() for weights, bias in layer]
        ((weights, bias),) = layers[-1]
        return tape.dot(weights, x) + bias

    return [score(point) for point in points]


def loss_of(tape, layers, scores, signs):
    """What the scores lack of a margin of 1, and a little of the squares of all parameters."""
    parameters = numbers_of(layers)
    margins = [(1 - score * sign).relu() for score, sign in zip(scores, signs, strict=True)]
    return tape.sum(margins) * (1 / len(signs)) + tape.dot(parameters, parameters) * 1e-4


def main(steps=100, count=100):
    rng = random.Random(1337)
    points, signs = moons(count, rng)
    tape = Tape()
    layers = new_layers(tape, rng)
    scores = scores_of(tape, layers, [[tape.var(x) for x in point] for point in points])
    loss = loss_of(tape, layers, scores, signs)

    parameters = numbers_of(layers)
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
