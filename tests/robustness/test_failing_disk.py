"""Every write that a command makes, failing once: old files stay whole, and one line says why."""

import errno
import json
import logging
import os
import shutil
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from command_line import SKY, Cli, metrics, posix, saved, untimed
from faults import CODES, Faults
from numba.core import config

from tapegpt import cli, run_folder
from tapegpt.checkpoint import RunError, load
from tapegpt.commands import bench, train
from tapegpt.kernels.compile import kernel_cache
from tapegpt.kernels.compile.jit import jit
from tapegpt.system.atomic_files import write_one
from tapegpt.train import loop
from tapegpt.train.trainer import Trainer

few_codes = pytest.mark.parametrize(
    "code", [CODES[0], *(pytest.param(code, marks=pytest.mark.long) for code in CODES[1:])]
)


@pytest.fixture
def attempts(tmp_path, monkeypatch, capsys):
    """Runs a command again and again, with the first call to the disk failing, the second, …

    Yields whether one did, the exit code and stderr; the last time, none does.
    """
    monkeypatch.chdir(tmp_path)

    def attempts(code, *arguments):
        for failing in count():
            capsys.readouterr()
            with pytest.MonkeyPatch.context() as patched:
                faults = Faults(patched, tmp_path, code, failing)
                exit_code = cli.main([str(argument) for argument in arguments])
            err = capsys.readouterr().err
            failed = faults.calls > failing
            if exit_code:
                assert (failed, exit_code) == (True, 1)
                assert err.count("tapegpt: error: ") == 1 and "Traceback" not in err
                assert err.splitlines()[-1].startswith("tapegpt: error: ")
                assert os.strerror(code) in err.splitlines()[-1]
            yield failed, exit_code, err
            if not failed:
                return

    return attempts


def restore(folder, copy):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@few_codes
def test_training_over_an_old_run(attempts, call, tmp_path, code):
    flags = ["train", "--data", SKY, "--val-fraction", "0.2", "--eval-every", "2", "--quiet"]
    flags += ["--out", tmp_path / "out"]
    call(*flags, "--steps", "6")
    shutil.copytree(tmp_path / "out", tmp_path / "old")
    old = [saved(tmp_path / name) for name in ("old", "old/best")]
    again = [*flags, "--steps", "2", "--seed", "1", "--overwrite"]
    failures = 0
    for failed, exit_code, err in attempts(code, *again, "--metrics", tmp_path / "m.jsonl"):
        assert not list(tmp_path.rglob("*.new"))
        last = load(tmp_path / "out")
        if last.training.seed == 42:
            assert old[0].items() <= saved(tmp_path / "out").items()
        else:
            assert last.step in (1, 2)
        if (tmp_path / "out" / "best").exists():
            best = load(tmp_path / "out" / "best")
            untouched = old[1].items() <= saved(tmp_path / "out" / "best").items()
            assert untouched or best.step == 2
            assert last.training.seed == 42 or best.best_loss <= last.best_loss
        else:
            assert last.best_loss is None
        if exit_code == 0:  # at most, something was not tidied up
            assert (last.step, last.training.seed) == (2, 1)
        if (tmp_path / "m.jsonl").exists():
            lines = metrics(tmp_path / "m.jsonl")
            assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
            (tmp_path / "m.jsonl").unlink()
        assert exit_code or not err or "training goes on, and it is tried again" in err
        failures += failed and (exit_code == 1 or bool(err))
        restore(tmp_path / "out", tmp_path / "old")
    assert failures > 30


@few_codes
def test_resuming(attempts, call, tmp_path, code):
    flags = ["train", "--data", SKY, "--quiet", "--out", tmp_path / "out"]
    flags += ["--metrics", tmp_path / "m.jsonl"]
    call(*flags, "--steps", "3")
    old = everything(tmp_path)
    shutil.copytree(tmp_path / "out", tmp_path / "old")
    failures = 0
    for _, exit_code, _ in attempts(code, *flags, "--resume", "--steps", "5"):
        run, lines = load(tmp_path / "out"), metrics(tmp_path / "m.jsonl")
        assert run.step in (3, 4, 5)
        assert [line["step"] for line in lines[:3]] == [1, 2, 3]
        if exit_code:
            failures += 1
        else:
            assert (run.step, len(lines)) == (5, 5)
        restore(tmp_path / "out", tmp_path / "old")
        (tmp_path / "m.jsonl").write_bytes(old[tmp_path / "m.jsonl"])
    assert failures > 12


NAMELESS = ["train", "--data", SKY, "--steps", "30", "--quiet"]


def failing_saves(monkeypatch, fails):
    """Have the saves whose folder and number are bad find the disk full; which were tried."""
    real, tried = run_folder.save, []

    def save(run, folder):
        tried.append(folder)
        if fails(folder, len(tried)):
            raise RunError(f"cannot save the run in '{folder}': No space left on device")
        real(run, folder)

    monkeypatch.setattr(run_folder, "save", save)
    return tried


def test_training_goes_on_where_a_save_fails(call, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    tried = failing_saves(monkeypatch, lambda folder, number: number <= 5)
    _, err = call(*NAMELESS, "--save-every", "1e-9")
    line = "cannot save the run in 'out': No space left on device; training goes on"
    assert err.count(line) == err.count("\n") == 5
    assert load(Path("out")).step == 30
    assert len(tried) == 30


def test_a_run_that_is_never_saved_is_said_to_be_lost_or_rescued(call, monkeypatch):
    flags = [*NAMELESS, "--val-fraction", "0.2"]
    call(*flags, "--out", "whole")
    failing_saves(monkeypatch, lambda folder, number: True)
    _, err = call(*flags, code=1)
    assert err.splitlines()[-1].startswith("tapegpt: error: cannot save the run in 'out")
    _, err = call(*flags, "--rescue", "elsewhere", code=1)
    go_on = "go on with tapegpt train --resume --out elsewhere"
    assert err.endswith(f"saved in 'elsewhere' instead: {go_on}\n")
    for folder in ("", "best"):
        assert saved(Path("elsewhere") / folder) == saved(Path("whole") / folder)


def test_a_best_state_that_cannot_be_saved_at_first(call, monkeypatch):
    """It is saved later, as it was then."""
    flags = [*NAMELESS, "--val-fraction", "0.2", "--eval-every", "5"]

    def train_to(out):
        losses = iter([3.0, 2.0, 2.5, 2.4, 2.3, 2.2])
        monkeypatch.setattr(Trainer, "_loss_per_token", lambda *arguments: next(losses))
        return call(*flags, "--out", out)

    whole, _ = train_to("whole")
    assert load(Path("whole/best")).step == 10
    failing_saves(monkeypatch, lambda folder, number: folder.name == "best" and number < 9)
    out, err = train_to("out")
    assert "cannot save the run in 'out/best'" in err and out == whole
    for folder in ("", "best"):
        assert saved(Path("out") / folder) == saved(Path("whole") / folder)


# Metrics


class FullDisk:
    """A file with room for so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written


def test_training_outlives_its_metrics(call, monkeypatch):
    flags = ["train", "--data", SKY, "--steps", "500", "--metrics", "m.jsonl"]
    call(*flags, "--out", "whole")
    whole = metrics(Path("m.jsonl"))
    real = train.open_metrics

    @contextmanager
    def on_a_full_disk(path, append):
        with real(path, append) as stream:
            yield FullDisk(stream, 700)

    with monkeypatch.context() as patched:
        patched.setattr(train, "open_metrics", on_a_full_disk)
        _, err = call(*flags, code=1)
    assert err.splitlines()[-1] == (
        "tapegpt: error: cannot write --metrics 'm.jsonl': No space left on device:"
        " choose another file"
    )
    lines = metrics(Path("m.jsonl"))
    assert [untimed(line) for line in lines] == [untimed(line) for line in whole[: len(lines)]]
    assert 0 < len(lines) < load(Path("out")).step < 500
    call(*flags, "--resume")
    assert saved(Path("out")) == saved(Path("whole"))


@posix
def test_training_outlives_standard_error(tapegpt_here, call):
    # So many that it cannot end before its standard error is closed, on one quick processor either.
    flags = ["train", "--data", SKY, "--steps", "20000"]
    with open("/dev/full", "w") as full:
        tapegpt_here(*flags, "--metrics", "m.jsonl", code=1, stderr=full)
    process = tapegpt_here.start(*flags, "--out", "unread")
    process.stderr.readline()
    process.stderr.close()
    assert process.wait() == 1
    process.stdout.close()
    for folder in ("out", "unread"):
        step = load(tapegpt_here.folder / folder).step
        assert 0 < step < 20000
        call("train", "--resume", *flags[1:], "--out", tapegpt_here.folder / folder)
    assert saved(tapegpt_here.folder / "out") == saved(tapegpt_here.folder / "unread")


@pytest.fixture
def tapegpt_here(tmp_path):
    """Processes that share the kernel cache of this one."""
    return Cli(tmp_path)


# Figures of a bench


@pytest.mark.parametrize("code", CODES)
def test_bench(attempts, monkeypatch, tmp_path, code):
    monkeypatch.setattr(bench, "LADDER", ())
    monkeypatch.setattr(bench, "peak_gflops", lambda: 1.0)
    path, aside, failures = tmp_path / "b.json", tmp_path / "b-1.json", 0
    old = json.dumps(dict.fromkeys(bench.FIGURES, "old"))
    path.write_text(old)
    for _, exit_code, err in attempts(code, "bench", "--json", path):
        if exit_code:
            failures += 1
            assert f"cannot write --json {str(path)!r}" in err
        if exit_code == 0:
            assert json.loads(path.read_text())["rows"] == []
        elif path.exists() and path.read_text() != old:  # only the last sync has failed
            assert failures >= 5
        assert old in [entry.read_text() for entry in tmp_path.iterdir()]
        assert {*tmp_path.iterdir()} <= {path, aside}
        aside.unlink(missing_ok=True)
        path.write_text(old)
    assert failures >= 5


@pytest.mark.parametrize("place", ["missing/b.json", ""])
def test_bench_says_before_it_measures_that_it_cannot_write(call, monkeypatch, tmp_path, place):
    monkeypatch.setattr(bench, "peak_gflops", lambda: pytest.fail("measures"))
    _, err = call("bench", "--json", tmp_path / place, code=1)
    assert f"cannot write --json {str(tmp_path / place)!r}" in err


@posix
def test_a_link_or_a_device_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to("file")
    for text in (b"first", b"second"):
        write_one(tmp_path / "link", text)
        assert (tmp_path / "file").read_bytes() == text
    write_one(Path("/dev/null"), b"nothing")
    with pytest.raises(OSError, match="No space"):
        write_one(Path("/dev/full"), b"nothing")
    assert [Path("/dev/null").is_char_device(), Path("/dev/full").is_char_device()] == [True, True]
    assert (tmp_path / "link").is_symlink()


# The kernel cache, which training can do without


@pytest.mark.parametrize("code", CODES)
def test_kernel_cache(tmp_path, monkeypatch, caplog, code):
    def increment(x):
        return x + 1

    def compile_again():
        kernel = jit(increment)
        kernel.dispatcher._cache = kernel_cache.KernelCache(increment)
        return kernel(1.0)

    warnings = 0
    for failing in count():
        folder = tmp_path / str(failing)
        monkeypatch.setattr(config, "CACHE_DIR", str(folder))
        monkeypatch.setattr(kernel_cache, "_said", set())
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tapegpt"), monkeypatch.context() as patched:
            faults = Faults(patched, folder, code, failing)
            assert compile_again() == 2
        if faults.calls <= failing:
            break
        assert all(path.suffix == ".nbc" for path in folder.rglob("*") if path.is_file())
        if caplog.messages:
            (line,) = caplog.messages
            assert os.strerror(code) in line and str(folder) in line and "\n" not in line
            warnings += 1
        assert compile_again() == 2
    assert warnings >= 5
