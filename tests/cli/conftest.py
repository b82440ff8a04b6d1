"""The commands' own fixtures: a filled kernel cache, and a run."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Cli

# Runs a command; prints which files of the kernel cache it read or wrote.
USED = """
import json
from tapegpt import cli
from tapegpt.kernels.compile.kernel_cache import KernelCache

def noted(*arguments):
    path, key = find(*arguments)
    used.add(str(path))
    return path, key

used, find = set(), KernelCache._path_and_key
KernelCache._path_and_key = noted
assert cli.main() == 0
print(json.dumps(sorted(used)))
"""


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The files of the kernel cache that `warmup` uses; those that are missing it compiles."""
    result = Cli(tmp_path_factory.mktemp("warmup"))("warmup", python=("-c", USED))
    return [Path(path) for path in json.loads(result.stdout)]


@pytest.fixture
def warm_cache(tmp_path, warm):
    """A cache that holds what `warmup` uses and nothing else, and the folder of its files."""
    cache = tmp_path / "kernels"
    folder = cache.joinpath(*warm[0].parts[-3:-1])
    folder.mkdir(parents=True, mode=0o700)
    for file in warm:
        shutil.copy2(file, folder)
    return cache, folder


@pytest.fixture
def tapegpt(tmp_path, warm):
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def trained(warm, tmp_path_factory):
    """A folder in which `train` has run without arguments, and what that said."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, Cli(folder)("train")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained[0] / "out", tmp_path / "run")
