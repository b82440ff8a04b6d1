"""What all benchmarks share: one core, the machine's description, a figure for every record."""

import os
import sys
import time

import pytest

# Read by OpenBLAS, OpenMP, MKL and XLA when they are loaded, so before any of them is imported.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# Some machines set these, for another processor than theirs: products then take twice the time.
SLOWER = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "NPY_DISABLE_CPU_FEATURES",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
)
missing = [f"{name}={value!r}" for name, value in ONE_THREAD.items() if name not in os.environ]
slowing = [f"-u {name}" for name in SLOWER if name in os.environ]
if "numpy" in sys.modules and (missing or slowing):
    raise pytest.UsageError(
        "a plugin imported NumPy before the benchmarks could set its environment: start them with"
        f" env {' '.join(slowing + missing)}"
    )
os.environ.update(ONE_THREAD)
for name in SLOWER:
    os.environ.pop(name, None)
# XLA runs operations side by side in spite of all settings; on one core they take turns.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

# Imported now, since they import NumPy.
import numba  # noqa: E402
from table import tables  # noqa: E402

from tapegpt.system.host import (  # noqa: E402
    cpu_name,
    lanes,
    llvm_version,
    peak_gflops,
    vector_features,
    vector_name,
)

SECONDS = 0.5  # that the calls behind a figure take, at least


@pytest.fixture(scope="session")
def machine():
    """What the figures depend on, for every record of a JSON file."""
    return {
        "cpu": cpu_name(),
        "vectors": vector_name(),
        "features": vector_features(),
        "lanes": lanes(),
        "numba": numba.__version__,
        "llvm": llvm_version(),
        "threads": 1,
        "peak_gflops": peak_gflops(),
    }


@pytest.fixture
def measure(benchmark, machine):
    """measure(function, ...) times it and keeps the figure that counts in the record."""

    def run(function, *, table, row, column, unit, scale, flops=0, rounds=7, warmup=1):
        """The figure is the median of the times in seconds, multiplied with scale.

        They are `rounds` or, after a warm-up, as many more as take SECONDS: what disturbs a
        machine for a moment would be all that a short call sees. `warmup` more calls go first and
        are not timed. flops: of one call.
        """
        benchmark.group = table
        benchmark.extra_info.update(machine, table=table, row=row, column=column, unit=unit)
        if warmup and benchmark.enabled:
            for _ in range(warmup):
                function()
            begin = time.perf_counter()
            function()
            rounds = max(rounds, round(SECONDS / (time.perf_counter() - begin)))
        benchmark.pedantic(function, rounds=rounds)
        if benchmark.stats is None:  # --benchmark-disable
            return
        median = benchmark.stats.stats.median
        benchmark.extra_info["figure"] = median * scale
        if flops:
            gflops = flops / median / 1e9
            benchmark.extra_info["gflops"] = gflops
            benchmark.extra_info["share_of_peak"] = gflops / machine["peak_gflops"]

    return run


def pytest_terminal_summary(terminalreporter, config):
    records = [
        vars(benchmark) for benchmark in config._benchmarksession.benchmarks if benchmark.extra_info
    ]
    if records:
        terminalreporter.section("tables")
        for line in tables([records]):
            terminalreporter.write_line(line)
