"""A save that fails, is killed or meets a reader leaves a whole run."""

import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from faults import CODES, Faults
from saved_run import make_run, plain, python, tensors_file

from tapegpt import checkpoint
from tapegpt.checkpoint import RunError, load, save
from tapegpt.errors import TapegptError
from tapegpt.system import atomic_files


def test_a_reader_meets_a_writer(folder, monkeypatch):
    """The run is replaced after its run.json was read and before its tensors were."""
    later = make_run(seed=1, step=8)

    def slow_read(path, limit):
        data = atomic_files.read(path, limit)
        monkeypatch.setattr(checkpoint, "read", atomic_files.read)
        save(later, folder)
        return data

    monkeypatch.setattr(checkpoint, "read", slow_read)
    assert plain(load(folder)) == plain(later)


@pytest.mark.parametrize("code", CODES)
def test_a_failing_save_leaves_the_old_run(folder, code):
    before = plain(load(folder))
    later = make_run(seed=1, step=8)
    failures = 0
    for call in count():
        error = None
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, folder, code, failing=call)
            try:
                save(later, folder)
            except RunError as caught:
                error = caught
        assert not list(folder.glob("*.new"))
        run = load(folder)
        if error is not None:
            failures += 1
            line = str(error)
            assert os.strerror(code) in line and str(folder) in line and "\n" not in line
        if run.step == 8:  # only tidying up has failed, or the last sync, when the new run is whole
            assert plain(run) == plain(later)
            assert error is None or call >= faults.calls - 4
            save(make_run(), folder)
        assert plain(load(folder)) == before
        if call >= faults.calls:
            break
    assert failures >= 12
    save(later, folder)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for open files")
def test_everything_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.replace

    def log_fsync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def log_rename(old, new):
        calls.append((os.path.basename(old), os.path.basename(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_rename)
    save(make_run(), tmp_path / "out")
    tensors = tensors_file(tmp_path / "out").name
    assert calls == [
        f"{tensors}.new",
        "run.json.new",
        (f"{tensors}.new", tensors),
        "out",
        ("run.json.new", "run.json"),
        "out",
    ]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from saved_run import make_run
from tapegpt.checkpoint import RunError, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save(make_run(seed=1), Path(sys.argv[1]))
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 1000, 5000])
def test_a_short_write_leaves_the_old_run(folder, room):
    """The system itself refuses to write past some byte."""
    names = sorted(folder.iterdir())
    assert "File too large" in python(LIMITED, folder, room)
    assert sorted(folder.iterdir()) == names
    assert plain(load(folder)) == plain(make_run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            save(make_run(seed=1), folder)
    finally:
        folder.chmod(0o755)
    assert plain(load(folder)) == plain(make_run())


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(RunError, match="cannot save the run in"):
            save(make_run(), folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_errors_are_runtime_errors_of_the_program():
    assert issubclass(RunError, TapegptError) and RunError.exit_code == 1


def saver(folder, first_step, progress, fatal_call):
    """Save run after run, and a byte to `progress` after each; die at a call into C, if given."""

    def profile(frame, event, argument):
        nonlocal fatal_call
        if event == "c_call":
            fatal_call -= 1
            if fatal_call < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    runs = [make_run(seed=step % 3, step=step) for step in range(first_step, first_step + 50)]
    if fatal_call is not None:
        sys.setprofile(profile)
    for run in runs:
        save(run, folder)
        os.write(progress, b".")


def kill_campaign(folder, kills, seed):
    """Kill a saving process again and again: half the time inside a save at a random call, half the
    time from outside at a random moment. Whatever the moment, the last completed save, or the one
    under way, must load."""
    generator = random.Random(seed)
    save(make_run(seed=0, step=0), folder)
    done = 0
    for kill in range(kills):
        inside = kill % 2 == 1
        fatal_call = generator.randrange(800) if inside else None
        outlet, inlet = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(outlet)
            saver(folder, done + 1, inlet, fatal_call)
            os._exit(0)
        os.close(inlet)
        if not inside:
            os.read(outlet, 1)
            time.sleep(generator.uniform(0, 0.004))
            os.kill(child, signal.SIGKILL)
            done += 1
        while dots := os.read(outlet, 1000):
            done += len(dots)
        os.close(outlet)
        os.waitpid(child, 0)
        run = load(folder)
        assert run.step in (done, done + 1), (run.step, done)
        assert plain(run) == plain(make_run(seed=run.step % 3, step=run.step))
        done = run.step
    save(make_run(step=done), folder)
    assert len(list(folder.iterdir())) == 2
    print(kills, "kills,", done, "saves")


@pytest.mark.parametrize("kills", [20, pytest.param(10_000, marks=pytest.mark.long)])
def test_kill_at_any_moment(tmp_path, kills):
    command = "import sys, pathlib, test_saving as t\n"
    command += "t.kill_campaign(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 4)"
    assert python(command, tmp_path / "out", kills).startswith(f"{kills} kills")
