"""The second process of a first run: what it takes over, and that nothing depends on it."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from command_line import SKY, Cli, saved
from numba.core import config
from opcodes import named

from tapegpt import first_run
from tapegpt.kernels.loops.sample import generate
from tapegpt.kernels.loops.train import train_steps
from tapegpt.sampling import draw
from tapegpt.setting import DTYPES, GRANULARITIES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer

TAKE_PATH, _ = first_run.SCRIPT.split("from tapegpt")
FLAGS = ["train", "--data", SKY, "--steps", 100]

# Runs a command; writes to a file what it compiled itself and how many processes it started, which
# are killed after so many seconds.
OBSERVED = """
import json, subprocess, sys, threading
from numba.core.event import Listener, register
from tapegpt import cli, first_run
first_run.LONGEST_WAIT = 1000  # however much else the machine does

class Names(Listener):
    def on_start(self, event):
        compiled.append(event.data["dispatcher"].__name__)
    def on_end(self, event):
        pass

class Process(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        started.append(self.pid)
        timer = threading.Timer({seconds}, self.kill)
        timer.daemon = True
        timer.start()

compiled, started = [], []
register("numba:compile", Names())
subprocess.Popen = Process
code = cli.main()
with open("observed.json", "w") as file:
    json.dump([compiled, len(started)], file)
sys.exit(code)
"""


def observed(folder, cache, seconds=1000):
    """Train: what was compiled, how many processes were started, the samples, and the run."""
    script = OBSERVED.format(seconds=seconds)
    result = Cli(folder, cache)(*FLAGS, python=("-c", script))
    compiled, started = json.loads((folder / "observed.json").read_text())
    assert result.stderr.count("compiling kernels") == bool(compiled), result.stderr
    run = saved(folder / "out")
    shutil.rmtree(folder / "out")
    return compiled, started, result.stdout, run


def names_in(cache):
    return {kernel_name(path) for path in cache.glob("tapegpt/*/*.nbc")}


def kernel_name(path):
    return path.name.split("-")[0]


def lacking(warm_cache, *beginnings):
    """The cache without the kernels whose names begin so: a first run compiles those."""
    cache, folder = warm_cache
    for path in folder.iterdir():
        if kernel_name(path).startswith(beginnings):
            path.unlink()
    return cache


TAKEN_OVER = {"train_steps", "update", "reverse_sweep", "forward_sweep", "generate", "next_token"}
two_processors = pytest.mark.skipif(first_run.processors() < 2, reason="needs two processors")


@two_processors
def test_a_first_run_leaves_training_and_sampling_to_a_second_process(tmp_path, warm_cache):
    """And ends as a run does that finds all in the cache, and starts no process."""
    # With loss_and_gradient, which a first `warmup` leaves there, nobody would compile the sweeps.
    cache = lacking(warm_cache, *TAKEN_OVER, "loss_and_gradient", "linear", "scalars")
    compiled, started, *first = observed(tmp_path, cache)
    assert started == 1
    assert "linear_forward" in compiled
    assert not TAKEN_OVER & set(compiled)
    assert names_in(cache) >= TAKEN_OVER | {"linear_forward", "linear_backward"}
    assert "scalars_forward" not in names_in(cache)
    assert observed(tmp_path, cache) == ([], 0, *first)


def test_the_second_process_goes_on_with_backward_kernels(tmp_path, warm_cache):
    cache = lacking(warm_cache, "generate", "embed", "rmsnorm")
    script = first_run.SCRIPT.format(sys.path, "float32", [named("embed"), named("rmsnorm")])
    with Cli(tmp_path, cache).start(python=("-c", script), stdin=subprocess.PIPE) as process:
        assert process.wait() == 0
    assert names_in(cache) >= {"generate", "embed_backward", "rmsnorm_backward"}
    assert not names_in(cache) & {"embed_forward", "rmsnorm_forward"}


@pytest.mark.long
@two_processors
def test_a_first_run_whose_second_process_is_killed(tmp_path, rounds=10):
    *_, text, run = observed(tmp_path, None)
    generator = random.Random(1)
    for i in range(rounds):
        cache = tmp_path / str(i)
        compiled, *rest = observed(tmp_path, cache, seconds=generator.uniform(0, 4))
        assert rest == [1, text, run]
        assert "generate" in compiled
        assert observed(tmp_path, cache) == ([], 0, text, run)
        shutil.rmtree(cache)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_training_uses_what_it_compiles(dtype):
    first_run.compile_rest(dtype, [])
    signatures = [*train_steps.signatures, *generate.signatures]
    for granularity in GRANULARITIES:
        for threads, optimizer in (1, "adam"), (2, "sgd"):
            training = TrainConfig(
                batch_size=threads,
                threads=threads,
                optimizer=optimizer,
                granularity=granularity,
                dtype=dtype,
            )
            trainer = Trainer(ModelConfig(n_embd=2, n_head=2, block_size=2), training, ["ab"])
            trainer.advance(0)
            nothing = np.zeros(0, np.int64)
            draw(trainer.compiled, nothing, SampleConfig(), np.zeros((0, 2)), in_turn=True)
    assert [*train_steps.signatures, *generate.signatures] == signatures


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The processes that are started, with two processors and an empty cache."""
    processes = []

    class Process(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(first_run, "SCRIPT", "import time; time.sleep(0.5)")
    return processes


def test_it_is_started_once_and_waited_for(started):
    with first_run.helped("float32", []):
        (process,) = started
        assert process.poll() is None
    assert [process.returncode for process in started] == [0]


def test_what_it_goes_on_with_is_not_waited_for(started, tmp_path, monkeypatch):
    monkeypatch.setattr(first_run, "SCRIPT", FAILURES["hang"])
    monkeypatch.setattr(first_run, "LONGEST_WAIT", 1000)
    with first_run.helped("float32", []):
        (folder,) = (tmp_path / "kernels" / "tapegpt").iterdir()
        (folder / "generate-float32-0123456789abcdef.nbc").touch()
    assert [process.returncode < 0 for process in started] == [True]


def test_it_looks_for_modules_where_the_first_process_does(started, tmp_path, monkeypatch):
    (tmp_path / "somewhere.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(first_run, "SCRIPT", TAKE_PATH + "import somewhere")
    with first_run.helped("float32", []):
        pass
    assert [process.returncode for process in started] == [0]


FAILURES = {
    "exit": "raise SystemExit(1)",
    "exception": "1 / 0",
    "crash": "import os; print('crash', flush=True); os.abort()",
    "hang": "import time; time.sleep(20)",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_process_that_fails_is_not_noticed(started, monkeypatch, capfd, failure):
    monkeypatch.setattr(first_run, "SCRIPT", FAILURES[failure])
    monkeypatch.setattr(first_run, "LONGEST_WAIT", 0.5 if failure == "hang" else 1000)
    with first_run.helped("float32", []):
        pass
    (process,) = started
    assert process.returncode not in (0, None)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_cannot_be_started(started, monkeypatch):
    monkeypatch.setattr(sys, "executable", "missing")
    with first_run.helped("float32", []):
        pass
    assert started == []


def test_an_exception_does_not_wait_for_it(started, monkeypatch):
    monkeypatch.setattr(first_run, "SCRIPT", FAILURES["hang"])
    monkeypatch.setattr(first_run, "LONGEST_WAIT", 1000)
    with pytest.raises(ZeroDivisionError), first_run.helped("float32", []):
        raise ZeroDivisionError
    (process,) = started
    assert process.returncode not in (0, None)


def test_one_processor_starts_none(started, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1}, raising=False)
    with first_run.helped("float32", []):
        pass
    assert started == []


def test_a_cache_that_holds_training_starts_none(started, tmp_path):
    first_run.is_missing(train_steps, "float32")  # creates the folder
    (folder,) = (tmp_path / "kernels" / "tapegpt").iterdir()
    (folder / "train_steps-float32-0123456789abcdef.nbc").touch()
    with first_run.helped("float32", []):
        pass
    assert started == []
    with first_run.helped("float64", []):
        pass
    assert len(started) == 1


def test_a_cache_that_cannot_be_written_starts_none(started, tmp_path):
    (tmp_path / "kernels").touch()
    with first_run.helped("float32", []):
        pass
    assert started == []


def test_it_ends_with_the_first_process(tmp_path):
    """However that ends. What it would go on compiling is, here, a sleep."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        second = f"""
import os, socket, sys, time
sys.path[:] = {{}}
from tapegpt import first_run
def compile_rest(dtype, kernels):
    with socket.create_connection({server.getsockname()}) as connection:
        time.sleep(30)
first_run.compile_rest = compile_rest
first_run.main({{!r}}, {{}})
"""
        first = f"""
import time
from tapegpt import first_run
first_run.SCRIPT, first_run.processors = {second!r}, lambda: 2
with first_run.helped("float32", []):
    time.sleep(1000)
"""
        process = Cli(tmp_path, tmp_path / "kernels").start(python=("-c", first))
        server.settimeout(20)
        connection, _ = server.accept()
    with connection:
        connection.settimeout(20)
        process.kill()
        assert connection.recv(1) == b""
    process.communicate()
