"""Logistic regression with arrays: record once, replay while the weights change.

python examples/logistic_regression.py [rows]
"""

import sys

import numpy as np

from tapegpt import Tape, elementwise


@elementwise
def log_loss(score, sign):
    """ln(1 + e^(-sign score)), for a sign of 1 or -1."""
    return (-(score * sign)).softplus()


def main(rows=20_000, columns=32, steps=60):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=columns)
    points = rng.normal(size=(columns, rows)).astype(np.float32)
    signs = np.where(truth @ points + rng.logistic(size=rows) > 0, 1.0, -1.0)

    tape = Tape("float32")
    weights = tape.parameter(np.zeros((1, columns)))
    # A point is a column: a row of many scores fills vectors, which a column of them would not.
    scores = weights @ points
    loss = tape.mean(log_loss(scores, tape.array(signs)))
    losses = tape.sgd(lr=2.0).step(loss, n=steps)
    found = weights.value[0]
    likeness = float(found @ truth / np.linalg.norm(found) / np.linalg.norm(truth))
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}; cosine with the truth {likeness:.4f}")
    return losses, likeness


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
