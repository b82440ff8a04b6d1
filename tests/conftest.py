"""What tests share. Hypothesis has no deadline: the first call of a kernel compiles it."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tapegpt import cli
from tapegpt.models.registry import MODELS

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


@pytest.fixture(scope="module", autouse=True)
def known_models() -> Iterator[None]:
    """Forget the networks that the tests of one file import: messages list all that are known."""
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls main() in this process, in an empty folder: for the many cases that need no other."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments, code=0):
        capsys.readouterr()
        try:
            returned = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            returned = error.code
        out, err = capsys.readouterr()
        assert returned == code, err
        return out, err

    return call


@pytest.fixture
def refused(call, tmp_path):
    """Calls that end in one line on stderr, and leave nothing behind."""

    def refused(*arguments, code=2, names=()):
        before = sorted(tmp_path.rglob("*"))
        out, err = call(*arguments, code=code)
        assert out == ""
        assert err.startswith("tapegpt: error: ")
        assert err.count("\n") == 1
        assert len(err) < 400
        for name in [names] if isinstance(names, str) else names:
            assert name in err
        assert sorted(tmp_path.rglob("*")) == before

    return refused
