"""`train`: what it prints, saves and takes for a setting."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    GOLDEN,
    SKY,
    metrics,
    posix,
    saved,
)

from tapegpt.checkpoint import load, state_names
from tapegpt.corpus import default_corpus, read_documents
from tapegpt.presets import configure, default_learning_rate
from tapegpt.setting import GRANULARITIES
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train import stopping
from tapegpt.train.trainer import Trainer


def test_train_defaults(trained):
    folder, result = trained
    samples = result.stdout.split("\n")
    assert samples.pop() == ""
    assert len(samples) == 20
    assert all(re.fullmatch("[a-z]{0,16}", sample) for sample in samples)
    assert {path.name for path in folder.iterdir()} == {"out"}
    assert sorted(saved(folder / "out"))[0] == "run.json"
    assert len(saved(folder / "out")) == 2
    settings = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert settings["model"] == {
        "model": "gpt", "n_layer": 1, "n_embd": 16, "n_head": 4, "block_size": 16,
        "n_state": 32, "n_att": 16, "look_back": 0, "ensemble": 1, "dropout": 0.0,
        "positions": "learned", "activation": "relu", "qk_norm": False, "final_norm": False,
        "zero_init": False, "softcap": None, "counting": 0,
    }  # fmt: skip
    assert settings["step"] == settings["training"]["steps"] == 1000
    assert settings["documents"] == len(read_documents(default_corpus()))


def test_progress_is_plain_lines_where_there_is_no_terminal(trained):
    lines = trained[1].stderr.splitlines()
    assert re.fullmatch(
        r"tapegpt: data: \d+ documents, \d+ characters, longest \d+, alphabet 26, 0 duplicates",
        lines[0],
    )
    assert lines[1] == "tapegpt: 4192 parameters, vector float32"
    speed = r"\d+ steps/s, \S+ tokens/s"
    assert re.fullmatch(rf"tapegpt: loss \d\.\d{{4}}; 1000 steps in [\d.]+ s: {speed}", lines[-4])
    assert lines[-3] == "tapegpt: saved in out"
    assert re.fullmatch(r"tapegpt: of the samples \d+ of 20 are in the corpus.*", lines[-2])
    assert lines[-1] == "tapegpt: for more: tapegpt sample"
    steps = [
        re.fullmatch(rf"step (\d+)/1000 loss \d\.\d{{4}}, {speed}(, \d s left)?", line)
        for line in lines[2:-4]
    ]
    assert all(steps)
    numbers = [int(step[1]) for step in steps]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    assert numbers[-1] == 1000
    assert len(numbers) <= 12
    assert "\r" not in trained[1].stderr


@posix
def test_progress_is_a_bar_on_a_terminal(tapegpt):
    import termios

    terminal, other_end = os.openpty()
    termios.tcsetwinsize(other_end, (24, 100))
    process = tapegpt.start("train", "--steps", "2000", "--data", SKY, stderr=other_end)
    os.close(other_end)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(terminal)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert len(out.splitlines()) == 20
    text = shown.decode()
    assert re.search(r"\r +\d+% \d+/2000", text)  # and empty again at the end
    assert re.search(r"\rtapegpt: loss \d\.\d{4}; 2000 steps in [\d.]+ s: \d+ steps/s", text)
    assert "step 1/" not in text


def test_no_samples(call):
    out, err = call("train", "--data", SKY, "--steps", "3", "--num-samples", "0")
    assert out == ""
    assert re.search(r"3 steps in 0\.0*[1-9]\d? s: ", err)
    assert "of the samples" not in err


def test_quiet(tapegpt, trained):
    result = tapegpt("train", "--quiet")
    assert result.stderr == ""
    assert result.stdout == trained[1].stdout
    assert saved(tapegpt.folder / "out") == saved(trained[0] / "out")


def test_metrics(call, tmp_path):
    path = tmp_path / "losses.jsonl"
    call("train", "--steps", "30", "--data", SKY, "--batch-size", "3", "--metrics", path)
    trainer = Trainer(ModelConfig(), TrainConfig(steps=30, batch_size=3), read_documents(SKY))
    expected = trainer.advance(30).tolist()
    lines = metrics(path)
    times = [line.pop("seconds") for line in lines if "seconds" in line]
    assert lines == [{"step": step, "loss": loss} for step, loss in enumerate(expected, 1)]
    assert times == sorted(times) and 0 < times[0] < times[-1] < 60
    call("train", "--steps", "2", "--data", SKY, "--metrics", path)
    assert len(metrics(path)) == 2


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sky_microgpt", {"--steps": 200}),
        (
            "sky_microgpt_l2",
            {
                "--n-layer": 2,
                "--n-embd": 12,
                "--n-head": 3,
                "--block-size": 12,
                "--seed": 1,
                "--steps": 40,
            },
        ),
    ],
)
def test_golden(tapegpt, name, flags):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    result = tapegpt(
        *("train", "--preset", "microgpt", "--granularity", "scalar", "--dtype", "float64"),
        *("--data", SKY, "--metrics", "losses.jsonl", *sum(flags.items(), ())),
    )
    losses = [line["loss"] for line in metrics(tapegpt.folder / "losses.jsonl")]
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=1e-9)
    assert result.stdout.splitlines() == expected["samples"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "adamw", "--weight-decay", "0.1", "--schedule", "cosine"],
        ["--optimizer", "sgd", "--momentum", "0.95", "--schedule", "exponential"],
        ["--ensemble", "2", "--look-back", "3", "--averaging", "0.1", "--weighting", "token"],
        ["--optimizer", "sgd", "--clip-norm", "0.5", "--schedule", "constant"],
    ],
    ids=lambda flags: flags[1],
)
def test_flags_are_the_settings_of_the_run(call, granularity, flags):
    kind = ["--steps", "20", "--data", SKY, "--granularity", granularity, *flags]
    call("train", *kind, "--metrics", "m.jsonl")
    settings = {
        name[2:].replace("-", "_"): value if value.isalpha() else json.loads(value)
        for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    model, training = configure(None, {"steps": 20, "granularity": granularity, **settings})
    expected = Trainer(model, training, read_documents(SKY)).advance(20)
    assert [line["loss"] for line in metrics(Path("m.jsonl"))] == expected.tolist()
    run = load(Path("out"))
    assert set(run.optimizer) == set(state_names(training))
    assert run.training.learning_rate == default_learning_rate(ModelConfig(), training)


@pytest.mark.parametrize(
    "flags", [["--n-layer", "1"], ["--granularity", "dot", "--val-fraction", "0.3"]]
)
def test_training_for_some_seconds(call, flags):
    call("train", "--seconds", "0.5", "--data", SKY, "--metrics", "m.jsonl", *flags)
    lines = metrics(Path("m.jsonl"))
    times = [line["seconds"] for line in lines if "seconds" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(times) > 3
    assert times[-2] < 0.5 <= times[-1]
    run = load(Path("out"))
    assert (run.training.seconds, run.training.steps) == (0.5, None)
    assert (run.step, run.elapsed) == (len(lines), times[-1])
    if "--val-fraction" in flags:
        evaluated = [line for line in lines if "val_loss" in line]
        assert 2 <= len(evaluated) <= 11
        assert evaluated[-1] == lines[-1]


def test_more_seconds_for_a_run(call, refused):
    flags = ["--data", SKY, "--metrics", "m.jsonl"]
    call("train", "--seconds", "0.2", "--n-layer", "1", *flags)
    done = load(Path("out"))
    refused("train", "--resume", *flags, names="--seconds is the total: --seconds 0.4 trains 0.2 s")
    _, err = call("train", "--resume", "--seconds", "0.4", *flags)
    assert re.search(rf"^step {done.step + 1} loss .* tokens/s, 0 s left$", err, re.M)
    run = load(Path("out"))
    assert run.step > done.step
    assert run.elapsed >= 0.4
    lines = metrics(Path("m.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, run.step + 1))
    assert lines[done.step]["seconds"] > done.elapsed
    _, err = call("train", "--resume", "--steps", run.step + 3, *flags)
    assert f"step {run.step + 3}/{run.step + 3} " in err
    assert load(Path("out")).training.seconds is None


def test_evaluations_take_none_of_the_seconds(call, monkeypatch):
    """A clock that only training and evaluations move."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "perf_counter", lambda: now[0])
    advance, evaluate = Trainer.advance, Trainer.evaluate
    paces = []

    def slow_advance(trainer, count, pace=0.0):
        if count > 0:  # to do none compiles what steps need
            paces.append(pace)
        now[0] += 0.125 * count
        return advance(trainer, count, pace)

    def slow_evaluate(trainer):
        now[0] += 1000
        return evaluate(trainer)

    monkeypatch.setattr(Trainer, "advance", slow_advance)
    monkeypatch.setattr(Trainer, "evaluate", slow_evaluate)
    flags = ["--n-layer", "1", "--val-fraction", "0.2", "--data", SKY, "--metrics", "m.jsonl"]
    call("train", "--seconds", "5", *flags)
    run, lines = load(Path("out")), metrics(Path("m.jsonl"))
    assert (run.step, run.elapsed) == (40, 5)
    evaluated = [line["seconds"] for line in lines if "val_loss" in line]
    assert evaluated == [0.5 * i for i in range(1, 11)]
    assert paces == [0.0] + [0.125] * (len(paces) - 1)


@pytest.mark.parametrize("seconds_a_step", [1e-5, 0.01, 0.3, 7.0])
def test_a_signal_is_heard_within_half_a_second(call, monkeypatch, seconds_a_step):
    """Or after the step, where one takes longer: Python hears it between calls of the kernel."""
    now, calls = [100.0], []

    def advance(trainer, count, pace=0.0):
        now[0] += count * seconds_a_step
        trainer.step += count
        calls.append(count)
        return np.ones(count)

    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: now[0])
    monkeypatch.setattr(Trainer, "advance", advance)
    steps = min(10**7, int(300 / seconds_a_step))
    call("train", "--data", SKY, "--steps", steps)
    assert sum(calls) == steps
    assert max(calls) <= max(1, 0.5 / seconds_a_step)


def test_divergence(call):
    call("train", "--steps", "3", "--data", SKY)
    before = saved(Path("out"))
    out, err = call("train", "--data", SKY, "--learning-rate", "1e30", code=3)
    assert out == ""
    assert re.fullmatch(
        r"tapegpt: error: training diverged at step 2: the loss is not finite"
        r" \(loss (nan|inf), --learning-rate 1e\+30\): try a lower rate, or --clip-norm 1",
        err.splitlines()[-1],
    )
    assert saved(Path("out")) == before


def test_debug_shows_a_traceback_and_keeps_the_code(call):
    _, err = call("train", "--debug", "--steps", "0", code=2)
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("tapegpt: error: --steps 0 ")
