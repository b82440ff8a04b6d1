"""What --out and --metrics may name: nothing that a user would miss is replaced or deleted."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import SKY, metrics, posix

from tapegpt import run_folder
from tapegpt.checkpoint import load
from tapegpt.train import loop
from tapegpt.train.trainer import Trainer

TRAIN = ["train", "--data", SKY, "--steps", "4", "--n-embd", "4", "--n-head", "2", "--quiet"]
HOLD_OUT = ["--val-fraction", "0.2", "--eval-every", "2"]
REFUSED = ["--resume", "another --out", "--overwrite"]


def everything(folder="."):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def steps_by_folder():
    return {str(path.parent): load(path.parent).step for path in Path().rglob("run.json")}


# A folder that is not empty


def test_a_run_is_not_replaced_by_another(call, refused):
    call(*TRAIN, *HOLD_OUT, "--out", "a")
    Path("link").symlink_to("a")
    for out in ("a", "./a/", "link", Path("a").resolve()):
        refused(*TRAIN, "--out", out, code=1, names=REFUSED)


@pytest.mark.parametrize("name", ["run.json", "notes.txt", "best", "tensors-1.safetensors", ".git"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_not_ours_is_refused(call, refused, name, is_folder):
    path = Path("a") / name / "mine" if is_folder else Path("a") / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    beside = ": choose another --out, or --overwrite to save a run beside it\n"
    refused(*TRAIN, "--out", "a", code=1, names=["'a' holds", beside])
    if name in ("run.json", "notes.txt", ".git"):
        Path("a").rename("out")
        refused(*TRAIN, code=1, names="'out' holds")


def test_an_empty_folder_will_do(call):
    Path("a/best").mkdir(parents=True)
    Path("a/run.json.new").write_text("left by a process that was killed")
    call(*TRAIN, *HOLD_OUT, "--out", "a")
    assert load(Path("a")).step == 4


# The default folder


def test_training_twice_without_a_folder_loses_nothing(call):
    loud = [flag for flag in TRAIN if flag != "--quiet"]
    call(*loud, *HOLD_OUT)
    first = {path.relative_to("out"): data for path, data in everything("out").items()}
    _, err = call(*loud, "--steps", "5")
    assert "saved in out; the earlier run is in out-1 now\n" in err
    _, err = call(*loud, "--steps", "6")
    assert "saved in out; the earlier run is in out-2 now\n" in err
    assert {path.relative_to("out-1"): data for path, data in everything("out-1").items()} == first
    best = load(Path("out-1/best")).step
    assert steps_by_folder() == {"out": 6, "out-1": 4, "out-1/best": best, "out-2": 5}


def test_the_earlier_run_stays_until_the_new_one_is_saved(call, monkeypatch):
    call(*TRAIN)
    before = everything()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*TRAIN)
    assert everything() == before
    with monkeypatch.context() as patched:
        rename = os.rename

        def fail(source, target):
            if str(source) == "out.new":
                raise PermissionError(13, "Permission denied")
            rename(source, target)

        patched.setattr(os, "rename", fail)
        _, err = call(*TRAIN, "--steps", "5", "--rescue", "b", code=1)
    assert "cannot move the run in 'out' aside: Permission denied" in err
    assert {path: data for path, data in everything().items() if path.parts[0] != "b"} == before
    assert load(Path("b")).step == 5


# --overwrite


def test_overwriting_waits_for_the_end(call, monkeypatch):
    call(*TRAIN, "--steps", "8", "--out", "a")
    before = everything("a")
    seen = []
    real = run_folder.save

    def save(run, folder):
        seen.append((run.step, str(folder), everything("a") == before))
        real(run, folder)

    monkeypatch.setattr(run_folder, "save", save)
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    call(*TRAIN, "--out", "a", "--overwrite", "--save-every", "1e-9")
    assert seen == [
        *((step, "a-1", True) for step in (1, 2, 3, 4)),
        (4, "a", True),
    ]
    assert steps_by_folder() == {"a": 4}
    assert sorted(os.listdir()) == ["a"]


def test_overwriting_waits_for_an_evaluation(call, monkeypatch):
    call(*TRAIN, *HOLD_OUT, "--steps", "8", "--out", "a")
    real, places = run_folder.save, []

    def save(run, folder):
        places.append((run.step, str(folder)))
        real(run, folder)

    monkeypatch.setattr(run_folder, "save", save)
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    call(*TRAIN, *HOLD_OUT, "--out", "a", "--overwrite", "--save-every", "1e-9")
    assert places[:4] == [(1, "a-1"), (2, "a"), (2, "a/best"), (2, "a")]
    assert {"a", "a/best"} == steps_by_folder().keys()


@posix
def test_a_run_that_was_stopped_does_not_overwrite(call, monkeypatch):
    call(*TRAIN, "--steps", "8", "--out", "a")
    before, real = everything("a"), Trainer.advance

    def advance(trainer, count, pace=0.0):
        if count:
            os.kill(os.getpid(), 15)
        return real(trainer, count, pace)

    monkeypatch.setattr(Trainer, "advance", advance)
    _, err = call(*TRAIN, "--out", "a", "--overwrite", code=143)
    assert "saved in a-1: go on with tapegpt train --resume --out a-1\n" in err
    assert everything("a") == before
    assert load(Path("a-1")).step == 1


def test_resuming_is_no_overwriting(refused):
    refused("train", "--resume", "--overwrite", names="--resume and --overwrite")


# The best state


@posix
def test_best_is_never_followed_through_a_link(call, refused):
    call(*TRAIN, "--out", "precious")
    before = everything("precious")
    Path("a").mkdir()
    Path("a/best").symlink_to("../precious")
    refused(*TRAIN, "--out", "a", code=1, names="holds 'best'")
    for flags in ([], HOLD_OUT):
        refused(*TRAIN, *flags, "--out", "a", "--overwrite", code=1, names="move it away")
    call(*TRAIN, *HOLD_OUT, "--out", "b")
    shutil.rmtree("b/best")
    Path("b/best").symlink_to("../precious")
    more = ["--resume", "--steps", "6", "--out", "b"]
    refused(*TRAIN, *HOLD_OUT, *more, code=1, names="'b/best'")
    assert everything("precious") == before
    drawn, _ = call("sample", "--run", "b", "--seed", "1")
    assert drawn == call("sample", "--run", "b", "--seed", "1", "--last")[0]


def test_the_best_of_a_run_is_no_place_for_another(call, refused):
    call(*TRAIN, *HOLD_OUT, "--out", "a")
    Path("b").symlink_to("a/best")
    for out in ("a/best", "b"):
        for flags in ([], ["--overwrite"], ["--resume"]):
            more = [*TRAIN, *HOLD_OUT, "--steps", "9", "--out", out, *flags]
            refused(*more, code=1, names="best state of the run in")


def test_a_run_called_best_is_not_that_of_the_folder_around_it(call, refused):
    call(*TRAIN, "--out", "runs/best", "--seed", "1")
    refused(*TRAIN, "--out", "runs", code=1, names="holds 'best'")
    refused(*TRAIN, "--out", "runs", "--overwrite", code=1, names="another run")
    call(*TRAIN, *HOLD_OUT, "--out", "a")
    shutil.rmtree("a/best")
    shutil.copytree("runs/best", "a/best")
    resume = [*TRAIN, *HOLD_OUT, "--resume", "--steps", "6", "--out", "a"]
    refused(*resume, code=1, names="holds another run")
    refused(*TRAIN, "--out", "a", "--overwrite", code=1, names="holds another run")
    shutil.rmtree("a/best")
    call(*resume)
    assert load(Path("a")).best_loss == load(Path("a/best")).best_loss


def test_samples_are_of_the_best_state(call, monkeypatch):
    losses = iter([2.0, 1.0, 3.0, 9.0])
    seen = []

    def loss(trainer, offsets, weights=None):
        seen.append(weights)
        return next(losses)

    monkeypatch.setattr(Trainer, "_loss_per_token", loss)
    flags = ["--learning-rate", "0.5", "--steps", "600", "--eval-every", "200"]
    printed, _ = call(*TRAIN, *HOLD_OUT, *flags, "--test-fraction", "0.1")
    best = load(Path("out/best"))
    assert (best.step, load(Path("out")).step) == (400, 600)
    assert all((seen[-1][name] == best.weights[name]).all() for name in best.weights)
    greedy = ["--temperature", "0", "--num-samples", "1", "--prompt", "a"]
    drawn, _ = call("sample", "--seed", "1")
    assert drawn == call("sample", "--seed", "1", "--run", "out/best")[0]
    last, _ = call("sample", "--seed", "1", "--last")
    assert last != drawn
    assert printed != ""
    shutil.rmtree("out/best")
    assert call("sample", "--seed", "1")[0] == last
    assert call("sample", *greedy)[0] == call("sample", *greedy, "--last")[0]


# --metrics


@pytest.mark.parametrize("spelled", ["names.txt", "./names.txt", "x/../names.txt", "soft", "hard"])
def test_metrics_do_not_replace_the_corpus(call, refused, spelled):
    shutil.copy(SKY, "names.txt")
    Path("x").mkdir()
    Path("soft").symlink_to("names.txt")
    os.link("names.txt", "hard")
    flags = ["train", "--steps", "2", "--data", "names.txt"]
    refused(*flags, "--metrics", spelled, names="is the text to train on")
    assert Path("names.txt").read_bytes() == SKY.read_bytes()


def test_metrics_do_not_replace_a_run(call, refused):
    call(*TRAIN, *HOLD_OUT, "--out", "a")
    os.link("a/run.json", "hard")
    more = [*TRAIN, *HOLD_OUT, "--resume", "--steps", "6", "--out", "a"]
    for path in ("a/run.json", "a/best/run.json", "a/best", "a/run.json.new", "hard", "a/../hard"):
        refused(*more, "--metrics", path, names="is a file of the run in 'a'")
    refused(*TRAIN, "--out", "b", "--metrics", "a/run.json", names="other things than metrics")
    refused(*TRAIN, "--out", "b", "--metrics", "b/run.json", names="is a file of the run in 'b'")


@pytest.mark.parametrize(
    "text", ["notes\n", "\n", "x", '{"step": 1}\n', '{"step": 1, "loss": 2, "lr": 3}\n', "[1]\n"]
)
def test_metrics_replace_nothing_but_metrics(refused, text):
    Path("m.jsonl").write_text(text)
    refused(*TRAIN, "--metrics", "m.jsonl", names="holds other things than metrics")
    Path("m.jsonl").write_text('{"step": 1, "loss": 2.5}\n' + text)
    refused(*TRAIN, "--metrics", "m.jsonl", names="holds other things than metrics")


@pytest.mark.parametrize("rest", [b"", b'{"ste', b'{"step": 5, "lo'])
def test_metrics_move_earlier_ones_aside(call, rest):
    call(*TRAIN, *HOLD_OUT, "--test-fraction", "0.1", "--out", "a", "--metrics", "m.jsonl")
    with open("m.jsonl", "ab") as stream:
        stream.write(rest)
    earlier = Path("m.jsonl").read_bytes()
    _, err = call(*TRAIN[:-1], "--out", "b", "--metrics", "m.jsonl")
    assert len(metrics(Path("m.jsonl"))) == 4
    assert "the metrics of an earlier training, m.jsonl, are in m-1.jsonl now\n" in err
    assert Path("m-1.jsonl").read_bytes() == earlier


def test_metrics_behind_a_link(call):
    Path("link.jsonl").symlink_to("m.jsonl")
    for out in ("a", "b"):
        call(*TRAIN, "--out", out, "--metrics", "link.jsonl")
    assert Path("link.jsonl").is_symlink()
    assert len(metrics(Path("m.jsonl"))) == len(metrics(Path("m-1.jsonl"))) == 4


def test_metrics_beside_a_run_that_is_moved(call, refused):
    call(*TRAIN)
    refused(*TRAIN, "--metrics", "out/m.jsonl", names="moved aside")


def test_metrics_on_standard_output(call):
    out, err = call(*TRAIN, "--metrics", "-")
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 2, 3, 4]
    assert len(err.splitlines()) == 20
    assert not Path("-").exists()
