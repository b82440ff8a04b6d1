"""The same command gives the same bits, and so does one that is stopped, or killed, and resumed."""

import itertools
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from command_line import SKY, Cli, metrics, posix, saved, untimed

from tapegpt import run_folder
from tapegpt.checkpoint import load
from tapegpt.setting import DTYPES, GRANULARITIES, MODELS, OPTIMIZERS, SCHEDULES, WEIGHTINGS
from tapegpt.train import loop
from tapegpt.train.trainer import Trainer

KINDS = list(itertools.product(MODELS, GRANULARITIES))
SIZES = {
    "gpt": ["--n-embd", "8", "--n-head", "2", "--block-size", "9"],
    "rnn": ["--n-embd", "8", "--n-state", "12", "--block-size", "9"],
    "rnn-att": ["--n-embd", "8", "--n-state", "12", "--n-att", "5", "--block-size", "9"],
}


def left(out, path):
    """All that a command leaves behind but times: the run, the best one, the metrics."""
    best = saved(out / "best") if (out / "best").exists() else None
    return saved(out), best, [untimed(line) for line in metrics(path)]


def train_flags(model, granularity, *others):
    kind = ["--model", model, *SIZES[model], "--granularity", granularity]
    return ["train", "--data", SKY, *kind, "--steps", "12", "--batch-size", "3", *others]


def results(call, flags):
    """What training and sampling leave behind and print, in this process."""
    out, _ = call(*flags, "--metrics", "m.jsonl")
    drawn, _ = call("sample", "--seed", "1", "--num-samples", "5")
    return *left(Path("out"), Path("m.jsonl")), out, drawn


@pytest.mark.parametrize(
    "others",
    [(), ("--val-fraction", "0.2"), ("--val-fraction", "0.2", "--threads", "3")],
    ids=["", "held-out", "threads"],
)
@pytest.mark.parametrize(("model", "granularity"), KINDS)
def test_same_command_same_bits(call, model, granularity, others):
    flags = train_flags(model, granularity, *others)
    first = results(call, flags)
    shutil.rmtree("out")
    assert results(call, flags) == first


@pytest.mark.parametrize(
    ("model", "granularity", "threads", "rounds"),
    [
        *(("gpt", "vector", threads, 1) for threads in (1, 3)),
        *(
            pytest.param(*kind, threads, 20, marks=pytest.mark.long)
            for kind in KINDS
            for threads in (1, 2, 3)
        ),
    ],
)
def test_same_command_same_bits_in_another_process(
    call, tmp_path, model, granularity, threads, rounds
):
    flags = train_flags(model, granularity, "--val-fraction", "0.2", "--threads", threads)
    check_other_processes(call, tmp_path, flags, rounds)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_where_products_are_large(call, tmp_path, threads):
    """For a matrix unit, where there is one."""
    wide = ("--n-embd", "64", "--n-head", "4", "--block-size", "16", "--batch-size", "40")
    flags = train_flags("gpt", "vector", *wide, "--threads", threads)
    check_other_processes(call, tmp_path, flags, rounds=1)


def check_other_processes(call, tmp_path, flags, rounds):
    here = results(call, flags)
    for i in range(rounds):
        tapegpt = Cli(tmp_path / str(i))
        tapegpt.folder.mkdir()
        out = tapegpt(*flags, "--metrics", "m.jsonl").stdout
        drawn = tapegpt("sample", "--seed", "1", "--num-samples", "5").stdout
        there = left(tapegpt.folder / "out", tapegpt.folder / "m.jsonl")
        assert (*there, out, drawn) == here


# Stopped and resumed


def stopping(patched, stops, number):
    """Have a signal come in the middle of these steps, each of which is a call of the kernel."""
    patched.setattr(loop, "SECONDS_PER_CALL", 0)
    real = Trainer.advance

    def advance(trainer, count, pace=0.0):
        losses = real(trainer, count, pace)
        if count and trainer.step in stops:
            os.kill(os.getpid(), number)
        return losses

    patched.setattr(Trainer, "advance", advance)


def random_flags(generator):
    """A training of any kind that some steps suffice to tell from all others."""
    steps, model = generator.randint(2, 30), generator.choice(MODELS)
    flags = ["train", "--data", SKY, "--model", model, *SIZES[model], "--steps", steps]
    flags += ["--seed", generator.randrange(99)]
    optimizer, schedule = generator.choice(OPTIMIZERS), generator.choice(SCHEDULES)
    batch_size = generator.randint(1, 5)
    flags += ["--batch-size", batch_size, "--threads", generator.randint(1, batch_size)]
    for name, values in {
        "--granularity": GRANULARITIES,
        "--dtype": DTYPES,
        "--clip-norm": [0.3, 1e9],
        "--learning-rate": [0.01, 0.1],
        "--averaging": [0, 0.3],
        "--weighting": WEIGHTINGS,
    }.items():
        flags += [name, generator.choice(values)]
    if optimizer == "muon":  # which wants whole matrices
        flags[flags.index("--granularity") + 1] = "vector"
    if model == "gpt":
        flags += ["--look-back", generator.randrange(4), "--ensemble", generator.randint(1, 2)]
        if "vector" in flags:
            flags += ["--dropout", generator.choice([0, 0.25])]
    flags += ["--optimizer", optimizer, "--schedule", schedule]
    if generator.random() < 0.6:
        flags += ["--val-fraction", 0.2, "--eval-every", generator.randint(1, steps)]
    if generator.random() < 0.3:
        flags += ["--test-fraction", 0.1]
    return steps, flags


@posix
@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.long)])
def test_stopped_at_random_steps_and_resumed(call, monkeypatch, rounds):
    generator = random.Random(rounds)
    for _ in range(rounds):
        steps, flags = random_flags(generator)
        whole = results(call, flags)
        shutil.rmtree("out")
        flags += ["--metrics", "m.jsonl"]
        stops = sorted({generator.randint(1, steps - 1) for _ in range(generator.randint(1, 3))})
        number = generator.choice([signal.SIGINT, signal.SIGTERM])
        with monkeypatch.context() as patched:
            stopping(patched, stops, number)
            for i in range(len(stops)):
                _, err = call(*flags, *["--resume"][:i], code=128 + number)
                assert f"stopped after step {stops[i]} of {steps}; saved in out" in err
                assert len(metrics(Path("m.jsonl"))) == stops[i]
        samples, _ = call(*flags, "--resume")
        drawn, _ = call("sample", "--seed", "1", "--num-samples", "5")
        assert (*left(Path("out"), Path("m.jsonl")), samples, drawn) == whole, flags
        shutil.rmtree("out")


class KilledError(BaseException):
    """As good as a kill: nothing in the program expects it."""


@pytest.mark.parametrize("before", [True, False])
def test_killed_around_any_save_and_resumed(call, monkeypatch, before):
    """The run and its best one are two folders: one of them is saved, and the other not yet."""
    flags = ["train", "--data", SKY, "--steps", "12", "--val-fraction", "0.2", "--seed", "3"]
    flags += ["--learning-rate", "0.05"]  # so high that two evaluations are not the best so far
    flags += ["--metrics", "m.jsonl"]
    call(*flags)
    whole = left(Path("out"), Path("m.jsonl"))
    real = run_folder.save
    for fatal in itertools.count(1):
        shutil.rmtree("out")
        saves = []

        def save(run, folder, saves=saves, fatal=fatal):
            saves.append(folder)
            if len(saves) != fatal:
                return real(run, folder)
            if not before:
                real(run, folder)
            raise KilledError

        with monkeypatch.context() as patched:
            patched.setattr(run_folder, "save", save)
            try:
                call(*flags)
            except KilledError:
                pass
            else:
                break
        if not Path("out/run.json").exists():
            call(*flags)
        elif load(Path("out")).step < 12:
            call(*flags, "--resume")
        assert left(Path("out"), Path("m.jsonl")) == whole
    assert [saves.count(Path(name)) for name in ("out", "out/best")] == [6, 4]
