"""Hypothesis profiles. No deadline: the first call of a kernel compiles it."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tapegpt", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# For test_vector_widths.py, which runs other files again as another machine.
settings.register_profile("other-machine", settings.get_profile("ci"), max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") else "tapegpt")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Have processes that tests start hear SIGINT, which a shell in the background ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes that tests start keep compiled kernels: empty at first."""
    return tmp_path_factory.mktemp("kernels")
