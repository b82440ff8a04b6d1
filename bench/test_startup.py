"""Commands from nothing to their end, each in a process of its own."""

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest

IMPORTS = ["-c", "import numba, numpy"]
TRAIN = ["-m", "tapegpt", "train", "--quiet"]
SAMPLE = ["-m", "tapegpt", "sample"]
COMMANDS = {
    "import numba, numpy": IMPORTS,
    "tapegpt --help": ["-m", "tapegpt", "--help"],
    "tapegpt train, 1000 steps": TRAIN,
    "tapegpt sample, 20 texts": SAMPLE,
}


def run(arguments, folder, **environment):
    # Python keeps its bytecode, as it does unless told otherwise: what is installed has it.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, **environment},
        check=True,
        capture_output=True,
    )


@contextmanager
def all_processors():
    """For the processes that are started meanwhile: a first run compiles in two of them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    one = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, one)


@pytest.mark.parametrize("name", COMMANDS)
def test_command(measure, tmp_path, name):
    if COMMANDS[name] == SAMPLE:
        run(TRAIN, tmp_path)
    measure(
        lambda: run(COMMANDS[name], tmp_path),
        table="start-up, ms",
        row=name,
        column="kernels compiled before",
        unit="",
        scale=1e3,
    )


@pytest.mark.parametrize(
    ("column", "processors"), [("first run", all_processors), ("first run, one core", nullcontext)]
)
def test_first_run(measure, tmp_path, column, processors):
    """With an empty cache: it compiles all that training and sampling need."""
    with processors():
        measure(
            lambda: run(TRAIN, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")),
            table="start-up, ms",
            row="tapegpt train, 1000 steps",
            column=column,
            unit="",
            scale=1e3,
            rounds=1,
            warmup=0,
        )
