"""Print what a benchmark run measured as Markdown tables: python bench/table.py FILE [FILE]

FILE is written by `pytest bench --benchmark-only --benchmark-json FILE`. With a second one, of
another machine, every cell holds both figures and the second divided by the first.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # of one benchmark, as in the JSON file
OURS = "tapegpt"


def tables(runs: Sequence[Sequence[Record]]) -> Iterator[str]:
    """The lines of all tables, for the records of one run or of two."""
    infos = [[record["extra_info"] for record in run] for run in runs]
    infos = [[info for info in run if "figure" in info] for run in infos]
    for run in infos:
        if run:
            yield _machine(run[0])
    for name in _distinct(infos, "table"):
        rows, columns = (
            _distinct([[info for info in run if info["table"] == name] for run in infos], key)
            for key in ("row", "column")
        )
        cells = [
            {(info["row"], info["column"]): info for info in run if info["table"] == name}
            for run in infos
        ]
        compared = [OURS, *(column for column in columns if column != OURS)]
        peers = OURS in columns
        heads = ["best peer / ours", "share of peak"] if peers else []
        yield ""
        yield f"| {name} | {' | '.join([*(compared if peers else columns), *heads])} |"
        yield "|---" * (1 + len(columns) + len(heads)) + "|"
        for row in rows:
            line = [
                _cell([run.get((row, column)) for run in cells])
                for column in (compared if peers else columns)
            ]
            if peers:
                line += _standing(row, cells[0])
            yield f"| {row} | {' | '.join(line)} |"


def _machine(info: Record) -> str:
    return (
        f"{info['cpu']}, vectors of {info['vectors']} ({' '.join(info['features'])});"
        f" one thread; peak {info['peak_gflops']:.0f} GFLOP/s in float32;"
        f" numba {info['numba']}, LLVM {info['llvm']}."
    )


def _distinct(infos: Sequence[Sequence[Record]], key: str) -> list[str]:
    return list(dict.fromkeys(info[key] for run in infos for info in run))


def _cell(found: Sequence[Record | None]) -> str:
    if len(found) == 1:
        return "–" if found[0] is None else _figure(found[0])
    first, second = found
    if first is None or second is None:
        return "–"
    ratio = second["figure"] / first["figure"]
    return f"{_plain(first['figure'])}, {_plain(second['figure'])}: {ratio:.2f}"


def _figure(info: Record) -> str:
    text = f"{_plain(info['figure'])} {info['unit']}".strip()
    if info["column"] in ("forward", "backward") and "gflops" in info:
        text += f", {info['gflops']:.0f} GFLOP/s, {info['share_of_peak']:.0%}"
    return text


def _plain(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.3g}"


def _standing(row: str, cells: dict[tuple[str, str], Record]) -> list[str]:
    """How many times longer the best peer takes, and our share of the peak."""
    ours = cells.get((row, OURS))
    if ours is None:
        return ["–", "–"]
    peers = [info["figure"] for (at, column), info in cells.items() if at == row and column != OURS]
    ratio = f"{min(peers) / ours['figure']:.2f}" if peers else "–"
    return [ratio, f"{ours['share_of_peak']:.0%}" if "share_of_peak" in ours else "–"]


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    for text in tables([json.loads(Path(name).read_text())["benchmarks"] for name in sys.argv[1:]]):
        print(text)
