"""The commands' own fixtures: a filled kernel cache, and a run."""

import shutil

import pytest
from command_line import Cli


@pytest.fixture(scope="session")
def warm(kernel_cache, tmp_path_factory):
    """The kernel cache, filled by `warmup`; what that said."""
    result = Cli(tmp_path_factory.mktemp("warmup"), kernel_cache)("warmup")
    return result.stdout, result.stderr


@pytest.fixture
def tapegpt(tmp_path, warm, kernel_cache):
    return Cli(tmp_path, kernel_cache)


@pytest.fixture(scope="session")
def trained(warm, kernel_cache, tmp_path_factory):
    """A folder in which `train` has run without arguments, and what that said."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, Cli(folder, kernel_cache)("train")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained[0] / "out", tmp_path / "run")
