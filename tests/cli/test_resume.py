"""`train --resume`, and the signals that make it necessary."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import (
    SAVED_RUNS,
    SKY,
    interrupted,
    metrics,
    posix,
    saved,
    untimed,
)
from saved_run import make_run

from tapegpt import run_folder
from tapegpt.checkpoint import load, save
from tapegpt.corpus import read_documents
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.system.signals import stop_signals
from tapegpt.train.trainer import Trainer


@posix
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(tapegpt):
    # Some seconds of training, so that signals meet it on its way.
    flags = ["--data", SKY, "--steps", 4000, "--batch-size", 64, "--n-embd", 8, "--seed", 3]
    whole = tapegpt("train", *flags, "--out", "whole", "--metrics", "whole.jsonl")
    flags = ["--out", "parts", "--metrics", "parts.jsonl", *flags]
    first = interrupted(tapegpt, signal.SIGINT, *flags)
    go_on = "go on with tapegpt train --resume --out parts"
    stopped = rf"stopped after step (\d+) of 4000; saved in parts: {go_on}\n"
    step = int(re.search(stopped, first)[1])
    assert len(metrics(tapegpt.folder / "parts.jsonl")) == step
    second = interrupted(tapegpt, signal.SIGTERM, "--resume", *flags)
    assert step < int(re.search(stopped, second)[1]) < 4000
    rest = tapegpt("train", "--resume", *flags)
    assert rest.stdout == whole.stdout
    assert saved(tapegpt.folder / "parts") == saved(tapegpt.folder / "whole")
    parts, whole = (metrics(tapegpt.folder / f"{name}.jsonl") for name in ("parts", "whole"))
    assert [untimed(line) for line in parts] == [untimed(line) for line in whole]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_kills(number):
    before = signal.getsignal(number)
    with stop_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


@posix
def test_a_signal_before_the_first_step(call, monkeypatch):
    """While kernels compile, for instance."""

    def compiling(trainer, count):
        assert count == 0
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "advance", compiling)
    _, err = call("train", "--data", SKY, code=143)
    assert (
        "stopped after step 0 of 1000; saved in out: go on with tapegpt train --resume --out out\n"
        in err
    )
    assert Path("out/run.json").exists()


@posix
def test_a_signal_after_the_last_step(call, monkeypatch):
    def late(run, folder):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_folder, "save", late)
    _, err = call("train", "--data", SKY, "--steps", "3", code=130)
    assert err.endswith("stopped after step 3 of 3; saved in out\n")


def test_resume_with_more_steps(call):
    flags = ["--data", SKY, "--batch-size", "2", "--metrics", "m.jsonl"]
    call("train", "--steps", "10", *flags)
    before = metrics(Path("m.jsonl"))
    _, err = call("train", "--resume", "--steps", "15", *flags)
    assert "step 11/15 " in err
    after = metrics(Path("m.jsonl"))
    assert after[:10] == before
    assert [line["step"] for line in after] == list(range(1, 16))
    # The rate is that of a run of 15 steps from step 11 on.
    trainer = Trainer(ModelConfig(), TrainConfig(batch_size=2, steps=10), read_documents(SKY))
    trainer.advance(10)
    trainer.training = TrainConfig(batch_size=2, steps=15)
    assert [line["loss"] for line in after[10:]] == trainer.advance(5).tolist()


def test_resuming_writes_no_metrics_twice(call):
    """After a kill there may be lines of steps that were not saved, and half of one."""
    flags = ["--data", SKY, "--metrics", "m.jsonl"]
    call("train", "--steps", "10", *flags)
    path = Path("m.jsonl")
    ours = b'a note\n[1]\n{"step": "x"}\n' + b"[" * 10**5 + b"\n"
    before = path.read_bytes()
    call("train", "--resume", "--steps", "12", *flags)
    whole = path.read_bytes()
    assert whole.startswith(before) and before.count(b"\n") == 10
    assert [line["step"] for line in metrics(path)] == list(range(1, 13))
    for rest in (b'{"step": 11, "loss": 3.0}\n{"step": 12, "lo', b'{"ste', b"\n\xff\0"):
        path.unlink()
        call("train", "--steps", "10", *flags)
        path.write_bytes(ours + before + rest)
        call("train", "--resume", "--steps", "12", *flags)
        lines = path.read_bytes().removeprefix(ours).splitlines()
        assert [untimed(json.loads(line)) for line in lines if line.startswith(b"{")] == [
            untimed(json.loads(line)) for line in whole.splitlines()
        ]


def test_resume_refusals(call, refused):
    kept = ["--data", SKY, "--n-embd", "8", "--learning-rate", "0.02"]
    call("train", "--steps", "3", *kept)
    resume = ["train", "--resume", "--steps", "5"]
    before = saved(Path("out"))
    Path("other.txt").write_text("ab\nba\n")
    other = ["--data", "other.txt"]
    refused(*resume, *other, code=1, names=["another corpus", "--data"])
    refused(*resume, *kept, "--n-embd", "16", names="--n-embd 16 differs from 8")
    refused(*resume, *kept, "--learning-rate", "nan", names="--learning-rate nan")
    refused(*resume, *kept, "--init-from", "out", names="--resume and --init-from")
    refused(*resume, *kept, "--dtype", "float64", names="--dtype float64")
    refused(*resume, *kept, "--preset", "microgpt", names="--preset microgpt")
    refused(*resume, *kept, "--momentum", "0.9", names="--momentum 0.9 is for --optimizer sgd")
    refused(*resume, *kept, "--steps", "0", names="--steps 0")
    done = "the run in out has done 3 steps, and --steps is the total: --steps "
    refused("train", "--resume", *kept, names=f"{done}6 trains 3 more\n")
    refused(*resume, *kept, "--steps", "2", names=f"{done}5 trains 2 more\n")
    refused(*resume, *kept, "--out", "missing", code=1, names="'missing/run.json'")
    assert saved(Path("out")) == before
    call(*resume, *kept)


@pytest.mark.parametrize(
    ("name", "flags", "texts"),
    [
        ("gpt", ["--steps", "700"], ["cala", "cana"]),
        ("rnn-att", ["--seconds", "0.05"], ["cas", "cas"]),
    ],
)
def test_a_run_of_the_first_release(call, name, flags, texts):
    """It was saved before any later setting was known."""
    shutil.copytree(SAVED_RUNS / name, name)
    for last, text in zip([[], ["--last"]], texts, strict=True):  # the best one, where there is
        sample = ["sample", "--run", name, "--temperature", "0", "--num-samples", "1"]
        assert call(*sample, "--prompt", "c", *last)[0].startswith(text)
    before = load(Path(name))
    call("train", "--resume", "--data", SKY, "--out", name, *flags)
    after = load(Path(name))
    assert before.step in (600, 9501) and after.step > before.step
    assert after.model == before.model


def test_seconds_that_are_spent(refused):
    timed = replace(make_run().training, steps=None, seconds=31.0)
    save(make_run(training=timed, elapsed=31.004872121000517), Path("out"))
    refused(
        *("train", "--resume"),
        names="the run in out has trained for 31.0 s, and --seconds is the total: --seconds 62.0"
        " trains 31 s more\n",
    )


def test_a_damaged_run_is_not_resumed(call, refused):
    call("train", "--steps", "3", "--data", SKY)
    path = Path("out/run.json")
    path.write_text(path.read_text().replace('"step": 3', '"step": 2'))
    refused("train", "--resume", "--data", SKY, code=1, names="'out/run.json' is damaged")
