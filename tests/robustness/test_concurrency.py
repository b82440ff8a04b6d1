"""Processes that want the same folder, and threads that each have a tape of their own."""

import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command_line import SKY, Cli, posix, saved

from tapegpt import Tape, run_folder
from tapegpt.checkpoint import load
from tapegpt.sampling import sample
from tapegpt.setting import GRANULARITIES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.system.atomic_files import locked
from tapegpt.train.trainer import Trainer

FOR_EVER = ["train", "--data", SKY, "--steps", 2**50, "--val-fraction", 0.2, "--eval-every", 900]
BUSY = (
    "tapegpt: error: another process is training in --out '{}': wait for its end, or choose"
    " another --out\n"
)


@pytest.fixture
def busy(tmp_path):
    """A process that trains in the folder out for ever, and has saved a run there."""
    process = Cli(tmp_path).start(*FOR_EVER, "--metrics", "m.jsonl")
    while not (tmp_path / "out" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@posix
def test_the_second_run_into_a_folder_is_refused(busy, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("out")
    measured = (tmp_path / "m.jsonl").stat().st_size
    for out in ("out", "link", tmp_path / "out"):
        for flags in (["train"], ["train", "--resume"]):
            printed = call(*flags, "--data", SKY, "--out", out, "--metrics", "m.jsonl", code=1)
            assert printed == ("", BUSY.format(out))
    assert (tmp_path / "m.jsonl").stat().st_size >= measured  # the first run's, and not emptied
    assert call("sample", "--num-samples", "3")[0].count("\n") == 3  # readers need no lock
    busy.send_signal(signal.SIGTERM)
    _, err = busy.communicate()
    assert busy.returncode == 143
    assert f"stopped after step {load(tmp_path / 'out').step} of" in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"best", "run-history.json", *saved(tmp_path / "out")} and len(names) == 4


@posix
def test_a_dead_process_keeps_no_lock(busy, call, tmp_path):
    busy.kill()
    busy.wait()
    step = load(tmp_path / "out").step
    flags = ["train", "--data", SKY, "--resume", "--out", tmp_path / "out"]
    call(*flags, "--steps", step + 2)
    assert load(tmp_path / "out").step == step + 2


@posix
def test_a_folder_is_locked_once(tmp_path):
    with locked(tmp_path):
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []
    with locked(tmp_path), locked(tmp_path.parent):
        pass


@posix
def test_the_lock_is_held_until_after_the_last_save(call, monkeypatch):
    saves, real = [], run_folder.save

    def save(run, folder):
        with pytest.raises(BlockingIOError), locked(Path("out")):
            pass
        saves.append(folder)
        real(run, folder)

    monkeypatch.setattr(run_folder, "save", save)
    call("train", "--data", SKY, "--steps", "2")
    call("train", "--data", SKY, "--steps", "3", "--resume")
    assert len(saves) == 2
    with locked(Path("out")):
        pass


@posix
@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.long)])
def test_two_runs_that_start_together(call, tmp_path, rounds):
    """One is refused, unless it comes when the other has ended: then its run is the last."""
    flags = ["train", "--data", SKY, "--steps", "9000", "--quiet"]
    whole = []
    for seed in (1, 2):
        call(*flags, "--seed", seed, "--out", tmp_path / str(seed))
        whole.append(saved(tmp_path / str(seed)))
    refused = 0
    for _ in range(rounds):
        processes = [Cli(tmp_path).start(*flags, "--seed", seed) for seed in (1, 2)]
        errors = [process.communicate()[1] for process in processes]
        codes = [process.returncode for process in processes]
        found = saved(tmp_path / "out")
        if sorted(codes) == [0, 1]:
            refused += 1
            assert found == whole[codes.index(0)]
            assert errors[codes.index(1)] == BUSY.format("out")
        else:
            assert codes == [0, 0] and found in whole
        shutil.rmtree(tmp_path / "out")
    assert rounds == 1 or refused > rounds // 2


# Threads


def work(seed):
    """What a tape, a training and a sampling compute that are made from this seed."""
    generator = random.Random(seed)
    found = []
    tape = Tape(dtype=generator.choice(["float32", "float64"]))
    numbers = [tape.var(generator.uniform(0.5, 1)) for _ in range(9)]
    for _ in range(200):
        a, b = generator.choices(numbers, k=2)
        operation = generator.choice([tape.add, tape.mul, tape.sub, lambda a, _: tape.tanh(a)])
        numbers.append(tape.tanh(operation(a, b)))
    tape.backward(numbers[-1])
    found += [(tape.value(node), tape.grad(node)) for node in numbers]
    model = ModelConfig(n_embd=8, n_head=2, block_size=6)
    granularity = GRANULARITIES[seed % 3]
    training = TrainConfig(steps=50, batch_size=3, val_fraction=0.3, granularity=granularity)
    trainer = Trainer(model, training, ["ab", "bca", "cab", "abcab", "c"])
    found.append(trainer.advance(50).tobytes())
    found.append(trainer.evaluate())
    run = trainer.snapshot()
    found += [array.tobytes() for array in run.tensors.values()]
    found += sample(run, SampleConfig(num_samples=50))
    return found


@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.long)])
def test_threads_with_tapes_of_their_own(rounds):
    threads = 6
    for first in range(0, rounds * threads, threads):
        seeds = range(first, first + threads)
        together = threading.Barrier(threads)

        def job(seed, together=together):
            together.wait()
            return work(seed)

        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(job, seeds))
        assert found == [work(seed) for seed in seeds]


def test_threads_find_different_things():
    assert work(0) == work(0) != work(3)
    assert np.isfinite(work(0)[0]).all()
