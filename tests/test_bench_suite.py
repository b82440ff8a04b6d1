"""That the benchmarks can be collected, and that one of them leaves all that a table needs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def test_a_benchmark_describes_itself(tmp_path):
    path = tmp_path / "run.json"
    printed = run(
        *("-m", "pytest", "bench", "--benchmark-only", "-p", "no:cacheprovider"),
        *("-k", "test_recording and methods", "--benchmark-json", path),
    )
    (record,) = json.loads(path.read_text())["benchmarks"]
    info = record["extra_info"]
    assert {"cpu", "features", "lanes", "numba", "llvm", "threads", "peak_gflops"} < info.keys()
    assert info["figure"] == record["stats"]["median"] * 1e5  # ns for each of 10,000 nodes

    row = f"| {info['row']} | {info['figure']:.0f} |"
    assert row in printed
    assert row in run("bench/table.py", path)
    both = run("bench/table.py", path, path).splitlines()
    assert len(both) == 2 + 1 + 3  # the machines, then a table
    assert both[-1].endswith(": 1.00 |")
