"""SIGINT and SIGTERM at random moments: from the first import to the last sample, compiling too.

Before training there is nothing to save, and the process ends at once. From then on it finishes the
step, saves once, and says so. Whatever the moment, the folder holds no half of anything.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from command_line import SKY, Cli, metrics, posix, saved

import tapegpt
from tapegpt.checkpoint import load, save
from tapegpt.corpus import read_documents
from tapegpt.train.trainer import Trainer

pytestmark = posix
resource = pytest.importorskip("resource")

STEPS = 10000
FLAGS = ["train", "--data", SKY, "--steps", STEPS, "--batch-size", 16, "--n-embd", 8, "--seed", 5]


@pytest.fixture(scope="module", autouse=True)
def hangups_are_heard():
    """By processes that tests start: under nohup nobody hears them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
    """How long an undisturbed run takes, once its kernels are compiled."""
    command = Cli(tmp_path_factory.mktemp("undisturbed"))
    for _ in range(2):
        begin = time.perf_counter()
        command(*FLAGS)
    return time.perf_counter() - begin


def is_that_of_an_undisturbed_run(out, again):
    """Whether the run in the folder is, to the byte, what so many steps end in."""
    run = load(out)
    trainer = Trainer(run.model, run.training, read_documents(SKY))
    trainer.advance(run.step)
    shutil.rmtree(again, ignore_errors=True)
    save(trainer.snapshot(), again)
    return saved(again) == saved(out)


def is_pythons_own(err):
    """Whether Python was interrupted while it started, before the command line could say so."""
    package = re.escape(str(Path(tapegpt.__file__).parent) + os.sep)
    return "Traceback" in err and not re.search(package + "(?!__init__|__main__)", err)


def signalled(folder, delays, number, cold=False):
    """Start training and send the signal after each delay; the exit status and stderr."""
    command = Cli(folder, folder / "kernels" if cold else None)
    process = command.start(*FLAGS, "--out", "out", "--metrics", "m.jsonl")
    for delay in delays:
        try:
            out, err = process.communicate(timeout=delay)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    else:
        out, err = process.communicate()
    return process.returncode, out, err


def check(folder, number, code, out, err):
    """Assert that the process ended well; how it ended."""
    if is_pythons_own(err):
        assert number == signal.SIGINT and not (folder / "out").exists()
        return "starting Python"
    assert "Traceback" not in err, err
    assert not list(folder.rglob("*.new"))
    stopped = re.search(r"^tapegpt: stopped after step (\d+) of 10000; saved in out", err, re.M)
    if stopped:
        assert (code, out) == (128 + number, "")
        step = int(stopped[1])
        assert load(folder / "out").step == len(metrics(folder / "m.jsonl")) == step
        assert is_that_of_an_undisturbed_run(folder / "out", folder / "again")
        return "stopped at step 0" if step == 0 else "stopped while training"
    if "saved in out" in err:
        assert code in (0, 130, -number) if number == signal.SIGINT else (0, -number)
        assert load(folder / "out").step == STEPS
        return "finished"
    assert (out, err) == ("", "")
    assert code in (130, -number) if number == signal.SIGINT else code == -number
    assert not (folder / "out").exists()
    return "importing"


def rounds_of(root, rounds):
    for i in range(rounds):
        folder = root / str(i)
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)


MANY = pytest.param(200, marks=pytest.mark.long)
both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@both
@pytest.mark.parametrize("rounds", [2, MANY])
def test_at_a_random_moment(tmp_path, seconds, number, rounds):
    generator = random.Random(number)
    ends = Counter()
    for i, folder in enumerate(rounds_of(tmp_path, rounds)):
        delay = 0.03 + (i + generator.random()) / rounds * 1.1 * seconds
        ends[check(folder, number, *signalled(folder, [delay], number))] += 1
    print(dict(ends))
    if rounds > 100:
        assert min(ends[end] for end in ("stopped while training", "importing", "finished")) >= 5


@pytest.mark.parametrize("threads", [1, 2])
def test_the_second_signal_stops_in_the_middle_of_a_step(tmp_path, threads):
    """Which here would take a minute, and be saved."""
    step = ["train", "--data", SKY, "--steps", 1, "--batch-size", 10**8, "--threads", threads]
    step += ["--block-size", 19]  # no document is cut, so nothing is said of that
    Cli(tmp_path)(*step[:4], 1, "--batch-size", 16)  # compiles
    process = Cli(tmp_path).start(*step, "--out", "long")
    while "parameters" not in process.stderr.readline():
        pass
    for _ in range(2):
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)
    assert err == "" or err.startswith("tapegpt: --threads 2 is more than there are processors")
    assert list((tmp_path / "long").iterdir()) == []


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("tapegpt", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["tapegpt.cli", "numpy", "numba", "tapegpt.kernels.interpreter"])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    code = INTERRUPTED_IMPORT.replace("sys.argv[1]", repr(module))
    result = Cli(tmp_path)(*FLAGS, python=("-c", code), code=130)
    assert (result.stdout, result.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@both
def test_while_compiling(tmp_path, number, rounds=20):
    """Into an empty cache: the process compiles to the end, saves, and leaves a whole cache."""
    generator = random.Random(number)
    for folder in rounds_of(tmp_path, rounds):
        code, out, err = signalled(folder, [generator.uniform(1, 4)], number, cold=True)
        assert "compiling kernels" in err
        assert check(folder, number, code, out, err) in (
            "stopped at step 0",
            "stopped while training",
        )
        rest = Cli(folder, folder / "kernels")(*FLAGS, "--resume", "--metrics", "m.jsonl")
        assert "cannot use the kernel cache" not in rest.stderr
        assert is_that_of_an_undisturbed_run(folder / "out", folder / "again")


@pytest.mark.parametrize("rounds", [1, MANY])
def test_a_second_ctrl_c_stops_at_once(tmp_path, seconds, rounds):
    """Without harm: what was saved before is whole, and training goes on from it or anew."""
    generator = random.Random(rounds)
    ends = Counter()
    for folder in rounds_of(tmp_path, rounds):
        cold = rounds > 100 and generator.random() < 0.1
        first = generator.uniform(0.4 * seconds, 1.0 * seconds)
        then = generator.choice([0.001, 0.01, 0.1])
        code, _, err = signalled(folder, [first, then], signal.SIGINT, cold)
        if is_pythons_own(err):
            continue
        assert code in (0, 130, -signal.SIGINT)
        assert "Traceback" not in err, err
        ends[code] += 1
        resume = []
        if (folder / "out" / "run.json").exists():
            if load(folder / "out").step == STEPS:
                continue
            assert is_that_of_an_undisturbed_run(folder / "out", folder / "again")
            resume = ["--resume"]
        rest = Cli(folder, folder / "kernels" if cold else None)(*FLAGS, *resume)
        assert "cannot use the kernel cache" not in rest.stderr
        assert is_that_of_an_undisturbed_run(folder / "out", folder / "again")
        assert len(saved(folder / "out")) == 2
    print(dict(ends))
    assert rounds < 100 or ends[-signal.SIGINT] > 20


# A kill, a closed terminal, a full disk or a folder that nobody can write in, without evaluations

EVERY = 0.3  # seconds from one save to the next
ENDLESS = ["train", "--data", SKY, "--steps", 2**40, "--learning-rate", "1e-6", "--quiet"]
ENDLESS += ["--save-every", EVERY, "--rescue", "elsewhere"]


def is_saved_until(folder, out):
    """Whether metrics tell of no step after the last save, but for those before the next one.

    Every call of the kernel ends with its seconds in the metrics, and then comes the save if it is
    due: only the last call may have been waiting for it.
    """
    step = load(folder / out).step
    times = {
        line["step"]: line["seconds"]
        for line in metrics(folder / "m.jsonl")[step - 1 :]
        if "seconds" in line
    }
    assert step in times
    return all(time < times[step] + EVERY for time in list(times.values())[:-1])


@pytest.mark.parametrize("how", ["kill", "hang up", "no folder", "full", "full for a while"])
@pytest.mark.parametrize("rounds", [1, pytest.param(40, marks=pytest.mark.long)])
def test_no_more_is_lost_than_from_one_save_to_the_next(tmp_path, how, rounds):
    """Whatever happens: what is saved is whole, and training goes on as long as it is let."""
    if how.startswith("full") and not hasattr(resource, "prlimit"):
        pytest.skip("no limits for other processes")
    generator = random.Random(f"{how} {rounds}")
    for folder in rounds_of(tmp_path, rounds):
        out = folder / "out"
        measured = [] if how.startswith("full") else ["--metrics", "m.jsonl"]
        process = Cli(folder).start(*ENDLESS, *measured)
        while not (out / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 3 * EVERY))
        if how == "no folder":  # and nobody can make one, not even root
            out.rename(folder / "gone")
            out.write_text("in the way")
        elif how.startswith("full"):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            time.sleep(0.1)
            before = load(out).step
        if how not in ("kill", "hang up"):
            while "training goes on" not in process.stderr.readline():
                assert process.poll() is None
        if how == "full for a while":
            no_limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, no_limits)
        if how == "hang up":
            for _ in range(2):  # the shell sends one too
                process.send_signal(signal.SIGHUP)
        elif how == "kill":
            process.kill()
        else:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        assert "Traceback" not in err, err
        match how:
            case "kill":
                assert is_saved_until(folder, "out")
            case "hang up":
                assert process.returncode == 128 + signal.SIGHUP
                assert load(out).step == len(metrics(folder / "m.jsonl"))
            case "no folder":
                assert process.returncode == 1 and "saved in 'elsewhere' instead" in err
                assert load(folder / "elsewhere").step == len(metrics(folder / "m.jsonl"))
                assert load(folder / "gone").step > 0
            case "full":
                assert process.returncode == 1 and "File too large" in err
                assert load(out).step == before
            case "full for a while":
                assert process.returncode == 143
                assert load(out).step > before
