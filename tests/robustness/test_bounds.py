"""With NUMBA_BOUNDSCHECK no kernel reaches beyond its arrays, whatever a program says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ops.catalogue import recordable

from tapegpt.kernels.registry import OPERATIONS
from tapegpt.setting import DTYPES

PROGRAM = Path(__file__).parent / "out_of_bounds.py"


def run(*arguments):
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_BOUNDSCHECK": "1"}
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], env=environment, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=pytest.mark.long)])
def test_every_kind_of_access_is_checked(dtype):
    """Just within the array it is none of the checks' business, just beyond and far off it is."""
    found = run("accesses", dtype)
    assert found["tried"] > 100
    assert found["wrong"] == []


def test_a_tampered_program_is_caught():
    """Kernels that are called by address, too, know how long the arrays are."""
    found = run("operations", "scale, array")
    assert min(found["noticed"]["array_scale"]) > 5


@pytest.mark.long
def test_every_tampered_operation_is_caught():
    found = run("operations")
    print(f"{found['tried']} tampered programs")
    for name in {OPERATIONS[opcode].name for opcode in recordable()} - {"carry"}:  # a mark
        forward, backward = found["noticed"][name]
        assert forward > 0, name
        passes_nothing = ("detach", "topk", "counted_features")
        assert backward > 0 or name in passes_nothing, name
