"""The fixtures of runs on disk."""

import pytest
from saved_run import make_run

from tapegpt.checkpoint import save


@pytest.fixture
def folder(tmp_path):
    save(make_run(), tmp_path / "out")
    return tmp_path / "out"
