"""That the benchmarks can be collected, and leave all that a table needs."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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


def test_a_kernel_can_be_measured():
    printed = run(
        *("-m", "pytest", "bench/test_kernels.py", "--benchmark-only", "-p", "no:cacheprovider"),
        *("-k", "linear and 16 and 112 and not backward", "--benchmark-max-time", "0.01", "-q"),
    )
    assert re.search(r"\b[1-9]\d* passed", printed)


def test_peers_run_as_fast_as_the_processor_lets_them():
    """Whatever the machine tells their libraries to take it for."""
    code = "import os; os.environ.update(OPENBLAS_CORETYPE='Prescott', OPENBLAS_L2_SIZE='1')\n"
    code += (
        "import conftest, numpy; print(sorted(name for name in os.environ if 'OPENBLAS' in name))"
    )
    assert run("-c", f"import sys; sys.path.insert(0, 'bench')\n{code}") == (
        "['OPENBLAS_NUM_THREADS']\n"
    )
    late = code.replace("import conftest, numpy", "import numpy, conftest")
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'bench')\n{late}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "start them with env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE" in result.stderr


def test_a_recipe_with_two_seeds(tmp_path):
    flags = ["--preset", "1s", "--steps", "9", "--data", str(ROOT / "tests/golden/sky_names.txt")]
    title, *rows = run("bench/learning.py", "--seeds", "2", *flags).splitlines()
    assert title == " ".join(flags)
    figures = dict(row.strip().split(": ") for row in rows)
    assert figures["step"] == "9 +- 0 (9, 9)"
    mean, first, second = (
        float(x) for x in re.fullmatch(r"(.*) \+- .* \((.*), (.*)\)", figures["test_loss"]).groups()
    )
    assert abs(mean - (first + second) / 2) <= 1e-4

    out = tmp_path / "out"
    run("-m", "tapegpt", "train", *flags, "--seed", "2", "--out", out, "--metrics", tmp_path / "m")
    last = json.loads((tmp_path / "m").read_text().splitlines()[-1])
    assert f"{last['test_loss']:.4f}" == f"{second:.4f}"


def test_the_library_beside_others_has_their_results():
    """Those of the libraries that are installed: of NumPy, always."""
    rows = dict(line.split(": ") for line in run("bench/library.py", "--check").splitlines())
    for name, others in {
        "Rosenbrock in 1e6 dimensions, gradient": "tapegpt, NumPy",
        "logistic regression, 1e5 x 32, a step": "tapegpt, NumPy",
        "an operation of one's own, 256 x 256": "tapegpt, built in",
    }.items():
        assert rows[name].startswith(others) and rows[name].endswith(" agree")
    assert len(rows) == 13
