"""The README and docs/: every command and every Python block runs, every link leads somewhere.

Trainings are made short: of the steps between two looks at the clock three are done, and the clock
runs ahead. Everything else is as it stands.
"""

import re
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tapegpt
from tapegpt.commands import bench, registry
from tapegpt.commands.flags import given
from tapegpt.presets import configure
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train import loop
from tapegpt.train.stopping import Clock
from tapegpt.train.trainer import Trainer

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALLING = ("pip install .", "pip install -e '.[test]' && pytest")  # which .ci/run does
STEPS_AHEAD, SECONDS_AHEAD = 3, 2.0


def parts(path):
    """("sh" or "python" or another kind, text): blocks, and single lines of commands, in order."""
    block = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if fence := re.match(r"```(\w*)$", line):
            if block is None:
                block = (fence[1], [])
            else:
                yield block[0], "\n".join(block[1])
                block = None
        elif block is not None:
            block[1].append(line)
        elif line.startswith("    "):
            yield "sh", line.strip()
        elif line.startswith("|"):
            for command in re.findall(r"`(tapegpt [a-z][^`]*)`", line):
                yield "sh", command
    assert block is None


def commands(path):
    for kind, text in parts(path):
        if kind == "sh":
            yield from text.splitlines()


class ClockAhead(Clock):
    """Which training for some seconds soon comes to the end of."""

    def read(self):
        self._start -= SECONDS_AHEAD
        return super().read()


@pytest.fixture
def short(monkeypatch):
    """Trainings and measurements that take no time."""
    real = Trainer.advance

    def advance(trainer, count, pace=0.0):
        losses = real(trainer, min(count, STEPS_AHEAD), pace)
        left_out = count - len(losses)
        trainer.step += left_out
        return np.append(losses, np.full(left_out, losses[-1] if count else 0.0))

    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(loop, "Clock", ClockAhead)
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    monkeypatch.setattr(bench, "REPEATS", 1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_run(call, short, monkeypatch, path):
    """One after the other, in a folder where a checkout's data/ and docs/ lie."""
    for name in ("data", "docs"):
        shutil.copytree(ROOT / name, name)
    for line in commands(path):
        if line in INSTALLING:
            continue
        name, *arguments = shlex.split(line)
        assert name == "tapegpt", line
        if arguments[0] == "completion":
            pytest.importorskip("shtab")
        if arguments == ["warmup"]:  # test_warmup.py, minutes where nothing is compiled
            continue
        out, err = call(*arguments)
        assert out or arguments[0] == "completion", line
        assert "Traceback" not in err


def written(path):
    """The folders and files that the commands of a page write, but for out: that is moved aside."""
    for line in commands(path):
        command, *arguments = shlex.split(line)[1:]
        flags = {"train": ("--out", "--metrics", "--rescue"), "bench": ("--json",)}.get(command, ())
        for flag, value in pairwise(arguments):
            if flag in flags:
                yield value


def test_all_pages_can_be_followed_in_one_clone():
    """No two write the same folder or file."""
    pages = {path.name: set(written(path)) for path in DOCUMENTS}
    assert len(set().union(*pages.values())) == sum(map(len, pages.values())), pages
    assert "runs/places" in pages["README.md"] and "loss.jsonl" in pages["training.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_runs(path, capsys):
    namespace = {}
    for kind, text in parts(path):
        assert kind in ("sh", "python", "text", "toml"), kind
        if kind == "python":
            exec(compile(text, path.name, "exec"), namespace)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_sentences_are_understood(path):
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"`(?:python -m )?tapegpt ([a-z][^`\n]*)`", text):
        command, *arguments = shlex.split(line)
        if "--help" in arguments:
            continue
        options = registry.parser_of(command).parse(arguments)
        if command == "train":
            configure(options.preset, given(options, ModelConfig, TrainConfig))
        elif command == "sample":
            SampleConfig(**given(options, SampleConfig))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|kernels|tapegpt|bench)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_every_command_is_in_the_table():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `tapegpt (\w+)", text, re.M) == list(registry.COMMANDS)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_one_tagline():
    tagline = "A real autograd tape, in Python, that trains a GPT at the speed of the machine"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[2] == f"{tagline}."
    assert project["description"] == tagline
    assert tapegpt.__doc__ == f"{tagline}."


def test_a_flag_of_every_new_user_is_in_the_table():
    """Twelve tasks, each by one command."""
    rows = re.findall(r"^\| ([^|`]+) \| `tapegpt", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert len(rows) == 12
