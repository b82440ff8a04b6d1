"""Before a training begins all is loaded, or compiled, that it will need."""

import json

import pytest
from command_line import SKY, Cli

# Runs a command; prints which kernels it looked for in the cache before training, and which later.
LOOKED_FOR = """
import json, sys
from tapegpt import cli
from tapegpt.commands import train
from tapegpt.kernels.compile.kernel_cache import KernelCache
from tapegpt.train import loop

def noted(cache, *arguments):
    looked_for[-1].add(cache._function.__name__)
    return find(cache, *arguments)

def begin(*arguments):
    looked_for.append(set())
    real(*arguments)

looked_for, find, real = [set()], KernelCache._path_and_key, loop.train
KernelCache._path_and_key, loop.train = noted, begin
train.WORTH_MEASURING = 0.01 if "--seconds" in sys.argv else 1000
assert cli.main() == 0
print(json.dumps([sorted(names) for names in looked_for]), file=sys.stderr)
"""
TEXT = ["--text", "--seconds", "0.05", "--n-layer", "1"]


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        (["--steps", "3"], ["train_steps", "generate"]),
        (["--steps", "3", "--num-samples", "0"], ["train_steps"]),
        (["--steps", "3", "--val-fraction", "0.2"], ["train_steps", "held_out_loss", "generate"]),
        (
            ["--steps", "3", "--test-fraction", "0.2", "--dtype", "float64"],
            ["train_steps", "held_out_loss", "generate"],
        ),
        (
            ["--steps", "3", "--optimizer", "muon", "--counting", "2", "--averaging", "0.5"],
            ["train_steps", "generate"],
        ),
        (TEXT, ["train_steps", "held_out_loss", "continue_texts", "multiply_add"]),
        (
            ["--steps", "3", "--batch-size", "2", "--threads", "2", "--val-fraction", "0.2"],
            ["train_steps", "held_out_loss", "generate"],
        ),
    ],
    ids=str,
)
def test_nothing_is_compiled_on_the_way(tmp_path, warm, flags, used):
    result = Cli(tmp_path)("train", "--data", SKY, *flags, python=("-c", LOOKED_FOR))
    before, later = json.loads(result.stderr.splitlines()[-1])
    assert later == []
    known = {"train_steps", "held_out_loss", "generate", "continue_texts", "multiply_add"}
    assert known & set(before) == set(used)
