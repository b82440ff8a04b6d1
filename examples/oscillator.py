"""A damped oscillator, x'' = -k x - c x', fitted to measurements through every step of its motion.

The 1,000 steps of a semi-implicit Euler method are recorded as scalars; the gradient of the misfit
goes back through all of them to the stiffness k and the damping c.

    python examples/oscillator.py [steps]
"""

import math
import sys

from tapegpt import Tape

SECONDS = 10.0


def exact(t, k, c):
    """From x = 1 and x' = 0."""
    frequency = math.sqrt(k - c * c / 4)
    phase = frequency * t
    return math.exp(-c * t / 2) * (math.cos(phase) + c / (2 * frequency) * math.sin(phase))


def main(steps=1000, updates=150, truth=(4.0, 0.3)):
    dt = SECONDS / steps
    tape = Tape()
    k, c = tape.var(3.0), tape.var(0.1)
    x, velocity = tape.var(1.0), tape.var(0.0)
    misfits = []
    for step in range(1, steps + 1):
        velocity = velocity - (k * x + c * velocity) * dt
        x = x + velocity * dt
        if step % (steps // 20) == 0:
            difference = x - exact(step * dt, *truth)
            misfits.append(difference * difference)
    loss = tape.sum(misfits) * (1 / len(misfits))

    losses = tape.adam([k, c], lr=0.05, betas=(0.9, 0.99)).step(loss, n=updates)
    found = [k.value, c.value]
    print(f"stiffness {found[0]:.3f}, damping {found[1]:.3f}; the truth is {truth}")
    return losses, found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
