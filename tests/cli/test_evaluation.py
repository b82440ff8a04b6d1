"""`train` with documents held out."""

import math
import signal
from pathlib import Path

import pytest
from command_line import SKY, evaluated, interrupted, metrics, posix, saved, untimed

from tapegpt.checkpoint import load
from tapegpt.corpus import read_documents
from tapegpt.setting import GRANULARITIES
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.trainer import Trainer

HOLD_OUT = ["--data", SKY, "--val-fraction", "0.2", "--metrics", "m.jsonl"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_held_out_documents(call, granularity):
    kind = ["--granularity", granularity, "--steps", "25", "--eval-every", "10"]
    _, err = call("train", *HOLD_OUT, *kind, "--test-fraction", "0.1")
    training = TrainConfig(granularity=granularity, steps=25, val_fraction=0.2, test_fraction=0.1)
    trainer = Trainer(ModelConfig(), training, read_documents(SKY))
    losses, expected = [], {}
    for count in (10, 10, 5):
        losses += trainer.advance(count).tolist()
        expected[trainer.step] = trainer.evaluate()
    assert [line["loss"] for line in metrics(Path("m.jsonl"))] == losses
    assert evaluated() == expected
    last, best = load(Path("out")), load(Path("out/best"))
    assert (last.step, last.best_loss) == (25, min(expected.values()))
    assert expected[best.step] == best.best_loss == last.best_loss
    assert best.stale == 0
    test_loss = trainer.test(best.weights)
    assert metrics(Path("m.jsonl"))[-1]["test_loss"] == test_loss
    assert f"test_loss {test_loss:.4f}\n" in err
    assert f"least val_loss {last.best_loss:.4f}, saved in out/best\n" in err
    assert f"val_loss {expected[25]:.4f}, counting " in err
    assert len(call("sample", "--run", "out/best", "--num-samples", "3")[0].splitlines()) == 3


def test_ten_evaluations_unless_told_otherwise(call):
    call("train", *HOLD_OUT, "--steps", "50")
    assert list(evaluated()) == list(range(5, 51, 5))
    call("train", *HOLD_OUT, "--steps", "400", "--batch-size", "5")
    documents = len(read_documents(SKY))
    a_pass = -(-(documents - round(0.2 * documents)) // 5)
    assert list(evaluated())[:2] == [a_pass, 2 * a_pass]
    call("train", *HOLD_OUT, "--steps", "7")
    assert list(evaluated()) == list(range(1, 8))


def fake_evaluations(monkeypatch, losses):
    results = iter(losses)
    monkeypatch.setattr(Trainer, "_loss_per_token", lambda *arguments: next(results))


def test_the_best_is_kept_beside_the_last(call, monkeypatch):
    fake_evaluations(monkeypatch, [math.nan, 3.0, 2.0, 2.5, math.nan])
    call("train", *HOLD_OUT, "--steps", "10", "--eval-every", "2")
    assert evaluated() == {2: None, 4: 3.0, 6: 2.0, 8: 2.5, 10: None}
    last, best = load(Path("out")), load(Path("out/best"))
    assert (last.step, last.best_loss, last.stale) == (10, 2.0, 2)
    assert (best.step, best.best_loss, best.stale) == (6, 2.0, 0)


def test_early_stopping(call, monkeypatch, refused):
    flags = [*HOLD_OUT, "--steps", "30", "--eval-every", "3"]
    fake_evaluations(monkeypatch, [3.0, 2.0, math.nan, 2.0, 1.0, 1.5, 1.5, 0.5, 0.6, 0.7])
    out, err = call("train", *flags, "--patience", "2")
    assert len(out.splitlines()) == 20
    assert "2 evaluations without improvement: stopped early\n" in err
    assert load(Path("out")).step == 12
    assert load(Path("out/best")).step == 6
    refused(
        "train",
        "--resume",
        *flags,
        names="has had 2 evaluations without improvement: choose --patience above 2",
    )
    call("train", "--resume", *flags, "--patience", "3")
    assert load(Path("out")).step == 30
    assert load(Path("out/best")).step == 24
    assert list(evaluated()) == list(range(3, 31, 3))


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_new_run_leaves_no_best_one_of_the_old(call, flags):
    call("train", *HOLD_OUT, "--steps", "2")
    assert Path("out/best/run.json").exists()
    call("train", "--data", SKY, "--steps", "2", *flags)
    assert not Path("out/best").exists()


@posix
def test_interrupted_and_resumed_with_held_out_documents(tapegpt):
    flags = ["--data", SKY, "--steps", 4000, "--batch-size", 32, "--n-embd", 8]
    flags += ["--val-fraction", 0.3, "--eval-every", 90, "--optimizer", "sgd"]
    tapegpt("train", *flags, "--out", "whole", "--metrics", "whole.jsonl")
    flags = ["--out", "parts", "--metrics", "parts.jsonl", *flags]
    interrupted(tapegpt, signal.SIGINT, *flags)
    tapegpt("train", "--resume", *flags)
    for folder in ("", "best"):
        parts, whole = (tapegpt.folder / name / folder for name in ("parts", "whole"))
        assert saved(parts) == saved(whole)
    parts, whole = (metrics(tapegpt.folder / f"{name}.jsonl") for name in ("parts", "whole"))
    assert [untimed(line) for line in parts] == [untimed(line) for line in whole]
