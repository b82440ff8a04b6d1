"""tapegpt as a library beside micrograd, PyTorch and JAX, where they are installed: one table.

    python bench/library.py             # a few minutes
    python bench/library.py --check     # small sizes, not timed: that all have the same results
    python bench/library.py --only LSTM

The first two results of all columns must agree. Then all are timed in turn. A figure is the least
of many times, in seconds of the process, all its threads: the machine may be shared.
"""

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import conftest  # noqa: F401 - one thread, one core: before NumPy
import numpy as np
from library_rows import OURS, Ways
from library_rows.arrays import logistic, lstm, own_operation, swiglu
from library_rows.functions import options, rosenbrock
from library_rows.scalars import moons, scalars

from tapegpt.system.host import cpu_name, vector_name

COLUMNS = (OURS, "micrograd", "NumPy", "PyTorch", "PyTorch compiled", "JAX", "built in")
SECONDS = 8.0  # for all rounds of a row
ROUND = 0.005  # seconds that the calls behind a time take, at least


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    scale: float  # from the seconds of a call
    ways: Callable[..., Ways]
    sizes: dict[str, Any]
    small: dict[str, Any]  # sizes to check the results with
    tolerance: float = 1e-9


ROWS = [
    Row("a scalar operation, recorded and swept back", "µs", 1e3, scalars,
        dict(count=1000, read=False), dict(count=10)),
    Row("the same, every value read at once", "µs", 1e3, scalars,
        dict(count=1000, read=True), dict(count=10)),
    Row("two moons, a step, define-by-run", "ms", 1e3, moons,
        dict(count=100, replay=False), dict(count=4)),
    Row("two moons, a step, replayed", "ms", 1e3, moons,
        dict(count=100, replay=True), dict(count=4)),
    Row("Black-Scholes with five Greeks, 1e5 options", "ns an option", 1e9 / 1e5, options,
        dict(count=100_000), dict(count=9), 1e-8),
    Row("Black-Scholes with five Greeks, 1e6 options", "ns an option", 1e9 / 1e6, options,
        dict(count=1_000_000), dict(count=10), 1e-8),
    Row("Rosenbrock in 1e6 dimensions, gradient", "ms", 1e3, rosenbrock,
        dict(count=1_000_000), dict(count=2000), 1e-8),
    Row("logistic regression, 1e5 x 32, a step", "ms", 1e3, logistic,
        dict(rows=100_000), dict(rows=50), 1e-4),
    Row("LSTM, 20 steps, 64 wide, 32 rows; cells written out", "ms", 1e3, lstm,
        dict(steps=20, width=64, batch=32, module=False), dict(steps=3, width=5, batch=2), 1e-4),
    Row("LSTM, 20 steps, 64 wide, 32 rows; `torch.nn.LSTM`", "ms", 1e3, lstm,
        dict(steps=20, width=64, batch=32, module=True), dict(steps=3, width=5, batch=2), 1e-4),
    Row("SwiGLU block, 64 wide, 32 rows", "ms", 1e3, swiglu,
        dict(rows=32, width=64), dict(rows=2, width=8), 1e-4),
    Row("SwiGLU block, 256 wide, 1024 rows", "ms", 1e3, swiglu,
        dict(rows=1024, width=256), dict(rows=3, width=8), 1e-4),
    Row("an operation of one's own, 256 x 256", "ms", 1e3, own_operation,
        dict(rows=256, width=256), dict(rows=3, width=5), 1e-5),
]  # fmt: skip


def checked(row: Row, small: bool) -> dict[str, Callable[[], Any]]:
    """The ways of a row, after two calls of each, whose results agree."""
    ways = dict(row.ways(**{**row.sizes, **(row.small if small else {})}))
    for _ in range(2):
        expected = [np.array(np.asarray(x)) for x in parts(ways[OURS]())]
        for name, way in list(ways.items())[1:]:
            found = [np.array(np.asarray(x)) for x in parts(way())]
            assert len(found) == len(expected), (row.name, name)
            for a, b in zip(found, expected, strict=True):
                allowed = row.tolerance * np.abs(b).max()
                np.testing.assert_allclose(
                    a, b, rtol=0, atol=allowed, err_msg=f"{row.name}: {name}"
                )
    return ways


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of a call, the least of many rounds in turn."""
    gc.collect()
    gc.freeze()  # or every collection would go through all that the libraries have loaded
    calls = {name: max(1, math.ceil(ROUND / seconds(way, 1))) for name, way in ways.items()}
    least = dict.fromkeys(ways, math.inf)
    end, rounds = time.perf_counter() + SECONDS, 0
    while rounds < 2 or time.perf_counter() < end:
        for name, way in ways.items():
            # The first brings back to the caches, and from the system, what others took.
            times = [seconds(way, calls[name]) for _ in range(4)]
            least[name] = min(least[name], *times)
        rounds += 1
    return least


def seconds(way: Callable[[], Any], calls: int) -> float:
    begin = time.process_time()
    for _ in range(calls):
        way()
    return (time.process_time() - begin) / calls


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare results, time nothing")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    given = parser.parse_args()
    sys.setrecursionlimit(20_000)  # micrograd's backward goes down the graph
    rows = [row for row in ROWS if given.only in row.name]
    if given.check:
        for row in rows:
            print(f"{row.name}: {', '.join(checked(row, small=True))} agree")
        return
    print(f"{cpu_name()}, {vector_name()}; {time.strftime('%Y-%m-%d')}\n")
    print(line("", *COLUMNS, "quickest / ours"))
    print(line(*["---"] * (len(COLUMNS) + 2)))
    for row in rows:
        figures = {name: s * row.scale for name, s in timed(checked(row, small=False)).items()}
        others = [figure for name, figure in figures.items() if name != OURS]
        ratio = f"{min(others) / figures[OURS]:.2f}" if others else "–"
        cells = [shown(figures.get(name)) for name in COLUMNS]
        print(line(f"{row.name}, {row.unit}", *cells, ratio), flush=True)


if __name__ == "__main__":
    main()
