"""Commands as their users start them, and what they leave behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tapegpt.runs.history import HISTORY

TESTS = Path(__file__).parent.parent
GOLDEN, SAVED_RUNS = TESTS / "golden", TESTS / "saved_runs"
SKY = GOLDEN / "sky_names.txt"
posix = pytest.mark.skipif(os.name != "posix", reason="signals, pseudo-terminals and /dev/full")


class Cli:
    """Runs `python -m tapegpt` in a folder, with this process's kernel cache or another."""

    def __init__(self, folder, cache=None):
        self.folder = folder
        self.environment = dict(os.environ)
        if cache is not None:
            self.environment["NUMBA_CACHE_DIR"] = str(cache)

    def start(self, *arguments, python=("-m", "tapegpt"), environment=(), **options):
        return subprocess.Popen(
            [sys.executable, *python, *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **dict(environment)},
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "encoding": "utf-8",
                **options,
            },
        )

    def __call__(self, *arguments, code=0, **options):
        process = self.start(*arguments, **options)
        out, err = process.communicate()
        assert process.returncode == code, err
        assert err is None or "Traceback" not in err
        return subprocess.CompletedProcess(arguments, code, out, err)


def metrics(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(line):
    return {name: value for name, value in line.items() if name != "seconds"}


def saved(folder):
    """What a run's folder holds: names, which begin the tensors' digest, and all bytes.

    But for its history: that tells commands and dates.
    """
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != HISTORY]
    return {path.name: path.read_bytes() for path in paths}


def interrupted(tapegpt, number, *arguments):
    """Start training, send a signal once it is on its way; what it said in the end."""
    process = tapegpt.start("train", *arguments)
    told = ""
    while not re.search(r"^step \d", told, re.M):
        line = process.stderr.readline()
        assert line, told
        told += line
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number, told + err
    assert "Traceback" not in err
    assert out == ""
    return err


def evaluated(path=Path("m.jsonl")):
    """{step: val_loss}"""
    return {line["step"]: line["val_loss"] for line in metrics(path) if "val_loss" in line}
