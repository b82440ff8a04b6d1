"""Steps of sgd over chains of elementwise operations, record by record and fused: one table.

    python bench/chains.py [--elements 100000 1000000] [--dtype float32]

Every operand is a parameter. Both ways take steps in turn; the least time of each counts.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from tapegpt import Tape
from tapegpt.optim import chains

WIDTH = 64
SECONDS = 0.05  # of steps in one turn
TURNS = 9

CHAINS: dict[str, tuple[int, Callable[..., Any]]] = {
    "silu(x * a + b)": (3, lambda x, a, b: (x * a + b).silu()),
    "f * c + i * g": (4, lambda f, c, i, g: f * c + i * g),
    "o * tanh(c)": (2, lambda o, c: o * c.tanh()),
    "(1 - x)^2 + 100 (y - x^2)^2": (2, lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2),
    "exp(-(x - m)^2 / s)": (3, lambda x, m, s: (-((x - m) ** 2) / s).exp()),
}


def steps(
    chain: str, elements: int, dtype: str, least_saved: float
) -> tuple[Callable[[int], Any], int]:
    """What does so many steps, and the records of a step."""
    count, formula = CHAINS[chain]
    tape, rng = Tape(dtype), np.random.default_rng(0)
    shape = (elements // WIDTH, WIDTH)
    loss = formula(*(tape.parameter(rng.uniform(0.5, 1.5, shape)) for _ in range(count))).mean()
    opt = tape.sgd(lr=1e-9)
    with mock.patch.object(chains, "LEAST_SAVED", least_saved):
        opt.step(loss)
    assert opt._fixed is not None
    return lambda n: opt.step(loss, n=n), len(opt._fixed[1].records)


def seconds_of(run: Callable[[int], Any], count: int) -> float:
    """Of one step, of so many."""
    begin = time.perf_counter()
    run(count)
    return (time.perf_counter() - begin) / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Chains of elementwise operations, fused or not.")
    parser.add_argument("--elements", type=int, nargs="+", default=[1000, 10_000, 100_000, 10**6])
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    print("| chain | elements | record by record, µs | fused, µs | gain |\n|---|---|---|---|---|")
    for chain in CHAINS:
        for elements in given.elements:
            apart, _ = steps(chain, elements, given.dtype, float("inf"))
            fused, records = steps(chain, elements, given.dtype, 0)
            assert records == 2, "the chain and the mean"
            count = max(1, int(SECONDS / seconds_of(apart, 3)))
            turns = [(seconds_of(apart, count), seconds_of(fused, count)) for _ in range(TURNS)]
            before, after = (1e6 * min(times) for times in zip(*turns, strict=True))
            gain = f"{before / after:.2f}"
            print(f"| {chain} | {elements} | {before:.4g} | {after:.4g} | {gain} |", flush=True)


if __name__ == "__main__":
    main()
