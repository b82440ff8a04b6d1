"""`warmup`, with kernel caches that hold what it uses and nothing else."""

import json
import re

import pytest
from command_line import Cli

from tapegpt.setting import DTYPES, GRANULARITIES

COMPILING = "compiling kernels"

# Runs several commands, which share what they load.
COMMANDS = """
import json, sys
from tapegpt import cli

for command in json.loads(sys.argv[1]):
    assert cli.main(command) == 0
"""

# Loads every kernel that `warmup` counts, each as a process that needs this one alone.
KERNELS = """
import numpy as np
from tapegpt.commands.warmup import _recorded
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.registry import COMMON_SCALARS, SCALARS, load_kernels, new_table
from tapegpt.setting import DTYPES

for dtype in DTYPES:
    kernels = _recorded(dtype)
    assert kernels >= {SCALARS, COMMON_SCALARS}
    for kernel in kernels:
        for direction in (FORWARD, BACKWARD):
            load_kernels(new_table(), np.dtype(dtype), [kernel], direction)
"""


@pytest.fixture
def own(tmp_path, warm_cache):
    cache, folder = warm_cache
    return Cli(tmp_path, cache), folder


def test_warmup_compiles_what_is_missing_and_says_so(own):
    tapegpt, folder = own
    names = {path.name for path in folder.iterdir()}
    missing = {name for name in names if name.startswith("rmsnorm_")}
    assert len(missing) == 4  # forward and backward, of both types
    for name in missing:
        (folder / name).unlink()
    result = tapegpt("warmup")
    first, *others = result.stderr.splitlines()
    assert (result.stdout, first) == (
        "",
        f"tapegpt: {COMPILING} that the cache does not have yet",
    )
    counts = [re.fullmatch(r"compiling: (\d+) of (\d+) kernels", line) for line in others]
    assert all(count and 0 < int(count[1]) <= int(count[2]) for count in counts)
    assert {path.name for path in folder.iterdir()} >= names
    assert tapegpt("warmup").stderr == ""


def test_warmup_compiles_all_kernels_that_it_counts(own):
    tapegpt, folder = own
    names = {path.name for path in folder.iterdir()}
    tapegpt(python=("-c", KERNELS))
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_warmup_compiles_what_training_and_sampling_use(own, granularity, dtype):
    tapegpt, _ = own
    kind = ["--granularity", granularity, "--dtype", dtype, "--batch-size", "5"]
    train = ["train", "--steps", "3", *kind]
    sizes = ["--n-embd", "24", "--n-head", "3", "--n-layer", "2", "--block-size", "9"]
    commands = [[*train, "--val-fraction", "0.1", *sizes]]
    if granularity == "vector":
        commands.append(["sample", "--num-samples", "3"])
        added = ["--ensemble", "2", "--look-back", "2", "--dropout", "0.25", "--weighting", "token"]
        commands.append([*train, *sizes, *added])
        threads = ["--threads", "2", "--clip-norm", "1", "--averaging", "0.1", "--optimizer", "sgd"]
        commands.append([*train, *sizes, *threads])
    commands.append([*train, "--model", "rnn-att", "--n-state", "20", "--n-att", "3"])
    result = tapegpt(json.dumps(commands), python=("-c", COMMANDS))
    assert COMPILING not in result.stderr
