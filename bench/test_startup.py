"""Commands from nothing to their end, each in a process of its own."""

import os
import subprocess
import sys

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
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )


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


def test_first_run(measure, tmp_path):
    """With an empty cache: it compiles all that training and sampling need."""
    measure(
        lambda: run(TRAIN, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")),
        table="start-up, ms",
        row="tapegpt train, 1000 steps",
        column="first run",
        unit="",
        scale=1e3,
        rounds=1,
        warmup=0,
    )
