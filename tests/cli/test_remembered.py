"""What a run remembers, and what is done with it: `info`, `eval`, `--resume`, `--init-from`."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import SAVED_RUNS, SKY, metrics, saved

from tapegpt import __version__
from tapegpt.checkpoint import RunError, load, load_history
from tapegpt.corpus import read_documents
from tapegpt.runs import history
from tapegpt.runs.text import parts_of
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.trainer import Trainer

TRAIN = ["train", "--data", SKY, "--n-embd", "8"]
HOLD_OUT = ["--val-fraction", "0.2", "--test-fraction", "0.1"]


def test_a_run_remembers_how_it_came_about(call):
    call(*TRAIN, *HOLD_OUT, "--steps", "20", "--eval-every", "10", "--metrics", "m.jsonl")
    call("train", "--resume", "--steps", "30")
    known = load_history(Path("out"))
    assert known.text == (str(SKY),)
    assert [(session.step, session.version) for session in known.sessions] == [
        (0, __version__),
        (20, __version__),
    ]
    assert known.sessions[0].command.startswith(f"tapegpt train --data {SKY} --n-embd 8 ")
    assert known.sessions[1].command == "tapegpt train --resume --steps 30"
    evaluated = {line["step"]: line["val_loss"] for line in metrics(Path("m.jsonl")) if
                 "val_loss" in line}  # fmt: skip
    losses = {point.step: point for point in known.losses}
    assert list(losses) == [10, 20, 30]
    assert {step: losses[step].val_loss for step in evaluated} == evaluated
    assert all(1 < point.loss < 4 for point in known.losses)
    assert known.test_loss is not None


def test_equal_trainings_differ_in_their_history_alone(call):
    for out in ("a", "b"):
        call(*TRAIN, "--steps", "5", "--out", out)
    assert saved(Path("a")) == saved(Path("b"))
    assert load_history(Path("a")).sessions[0].command.endswith("--out a")


def test_resuming_needs_no_text(call, refused):
    shutil.copy(SKY, "sky.txt")
    call("train", "--data", "sky.txt", "--steps", "5", "--out", "a")
    shutil.copytree("a", "b")
    call("train", "--resume", "--out", "a", "--steps", "9")
    call("train", "--resume", "--out", "b", "--steps", "9", "--data", SKY)
    assert saved(Path("a")) == saved(Path("b"))
    resume = ["train", "--resume", "--out", "a", "--steps", "12"]
    with open("sky.txt", "a") as file:
        file.write("one more\n")
    refused(*resume, code=1, names=["has changed since", "sky.txt", "--data"])
    refused("eval", "a", code=1, names=["has changed since", "sky.txt", "--data"])
    Path("sky.txt").unlink()
    refused(*resume, code=1, names=["is not at", "sky.txt", "--data"])
    call(*resume, "--data", SKY)


def test_the_learning_rate_of_a_resumed_run(call):
    call(*TRAIN, "--steps", "10", "--learning-rate", "0.01")
    _, err = call("train", "--resume", "--steps", "20", "--learning-rate", "0.002")
    assert "learning rate 0.002 from step 11 on, before 0.01\n" in err
    assert load(Path("out")).training.learning_rate == 0.002
    _, err = call("train", "--resume", "--steps", "25")
    assert "learning rate" not in err


def test_damage_to_what_is_remembered(call, refused):
    call(*TRAIN, "--steps", "5")
    path = Path("out") / history.HISTORY
    text = path.read_bytes()
    sessions = {"command": "x", "version": "1", "began": "", "step": 0}
    shape = {"format": 1, "text": [], "sessions": [sessions], "losses": [], "test_loss": None}
    forged = [
        {**shape, "format": 2},
        {**shape, "text": [1]},
        {**shape, "text": None},
        {**shape, "sessions": []},
        {**shape, "sessions": [{**sessions, "more": 1}]},
        {**shape, "sessions": [{**sessions, "step": "1"}]},
        {**shape, "losses": [{"step": 1}]},
        {**shape, "test_loss": "x"},
        [shape],
    ]
    damaged = [text[:-1], text.replace(b"losses", b"Losses"), b"", b"{}", b"\xff" * 99]
    for content in [*damaged, *(history.with_digest(json.dumps(x).encode()[1:]) for x in forged)]:
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"run-history\.json' is damaged.*delete it"):
            load_history(Path("out"))
    assert "documents" in call("info")[0]
    call("train", "--resume", "--steps", "9", "--data", SKY)
    assert len(load_history(Path("out")).sessions) == 1
    path.unlink()
    path.symlink_to(SKY)
    with pytest.raises(RunError, match="it is a link"):
        load_history(Path("out"))


def test_much_to_remember_stays_little():
    known = history.begun(["train", "x" * 10**6], [], None, 0)
    for step in range(5000):
        known = history.with_losses(known, history.Losses(step, 0.1 * step, 2.0, None))
        if step % 10 == 0:
            known = history.begun(["train", "--resume"], [], known, step)
    assert len(history.render(known)) < history.LIMIT / 4
    assert known.losses[-1].step == 4999
    assert known.sessions[0].step == 0
    assert known.sessions[-1].step == 4990


# info


def test_info(call):
    call(*TRAIN, *HOLD_OUT, "--steps", "20", "--eval-every", "5")
    out, _ = call("info")
    shown = dict(line.split(None, 1) for line in out.splitlines())
    assert shown["model"].startswith("model gpt, n_layer 1, n_embd 8,")
    assert shown["text"] == f"{SKY}: {len(read_documents(SKY))} documents, 26 characters"
    assert shown["done"] == "20 of 20 steps"
    run = load(Path("out"))
    best = load(Path("out/best")).step
    assert shown["val_loss"].startswith(f"{run.best_loss:.4f} at step {best}")
    facts = json.loads(call("info", "out", "--json")[0])
    assert facts["parameters"] == sum(array.size for array in run.tensors.values())
    assert facts["history"]["text"] == [str(SKY)]
    assert (facts["step"], facts["best_step"], facts["best_loss"]) == (20, best, run.best_loss)
    assert json.loads(call("info", "out/best", "--json")[0])["history"] == facts["history"]


def test_info_on_a_run_of_the_first_release(call):
    out, err = call("info", SAVED_RUNS / "gpt")
    assert "600 of 600 steps" in out
    assert "began" not in out
    assert err == ""
    assert json.loads(call("info", SAVED_RUNS / "rnn-att", "--json")[0])["history"] is None


def test_info_on_no_run(refused):
    refused("info", "missing", code=1, names="'missing/run.json'")
    refused("info", "--jsn", names="did you mean --json?")


# eval


@pytest.mark.parametrize("flags", [[], ["--averaging", "0.3", "--dropout", "0.1"]])
def test_eval_measures_what_training_measures(call, flags):
    call(*TRAIN, *HOLD_OUT, *flags, "--steps", "30", "--metrics", "m.jsonl")
    last = metrics(Path("m.jsonl"))[-1]
    found = json.loads(call("eval", "--json", "--last")[0])["measured"]
    by_part = {part["text"]: part for part in found}
    assert list(by_part) == ["training", "held out", "test"]
    assert by_part["held out"]["nats_per_token"] == pytest.approx(last["val_loss"], rel=1e-5)
    best = {part["text"]: part for part in json.loads(call("eval", "--json")[0])["measured"]}
    assert best["test"]["nats_per_token"] == pytest.approx(last["test_loss"], rel=1e-5)


def test_what_eval_counts(call):
    call(*TRAIN, "--steps", "5", "--block-size", "6")
    Path("text").write_text("abcdefgh\nab\n")
    out, err = call("eval", "out", "--data", "text", "--json")
    (found,) = json.loads(out)["measured"]
    assert "text: 2 more characters lie beyond the block of 6" not in err  # with --json
    assert (found["characters"], found["characters_cut"]) == (8, 2)
    assert found["tokens"] == 9  # of the second document the end, too
    total = found["nats_per_token"] * 9
    assert found["nats_per_character"] == pytest.approx(total / 8)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    out, err = call("eval", "out", "--data", "text")
    assert f"{found['nats_per_token']:.4f}" in out
    assert "text: 2 more characters lie beyond the block of 6" in err


def test_eval_refusals(call, refused):
    call(*TRAIN, "--steps", "5")
    Path("text").write_text("ABC\n")
    refused(
        *("eval", "--data", "text"),
        code=1,
        names="character 'A' (U+0041) on line 1 of 'text' is not in the alphabet of the run, and 1"
        " of 1 documents have such: --skip-unknown leaves those out\n",
    )
    refused("eval", "--data", "text", "--skip-unknown", code=1, names="of any of the 1 documents")
    refused("eval", "--skip-unknown", names="--skip-unknown is for a text of --data")
    refused("eval", "--data", "missing", code=1, names="'missing' cannot be read")
    refused("eval", "missing", code=1, names="'missing/run.json'")


def test_eval_leaves_out_documents_that_it_cannot_read(call):
    call(*TRAIN, "--steps", "5")
    Path("known").write_text("abc\nba\n")
    Path("some").write_text("abc\r\n \tAb\r\n\r\nx\u00e9y\nba\n", encoding="utf-8")
    _, err = call("eval", "--data", "known", "--data", "some", code=1)
    assert "'A' (U+0041) on line 2 of 'some' is not" in err
    assert "2 of 6 documents have such" in err
    flags = ["--data", "some", "--skip-unknown"]
    _, err = call("eval", *flags)
    assert "some: 2 of 4 documents are left out, whose characters the run does not know\n" in err
    known = json.loads(call("eval", "--data", "known", "--json")[0])["measured"]
    some = json.loads(call("eval", *flags, "--json")[0])["measured"]
    assert some == [{**known[0], "text": "some", "left_out": 2}]
    assert known[0]["left_out"] == 0


def test_eval_leaves_out_characters_of_a_text_that_it_cannot_read(call):
    Path("book").write_text("abc ba\ncab\n" * 30)
    call("train", "--text", "--data", "book", "--n-embd", "8", "--block-size", "8", "--steps", "5")
    Path("known").write_text("abc\nba\n" * 9)
    Path("some").write_text("abc\nbZ\u00e9a\n" * 9, encoding="utf-8")
    _, err = call("eval", "--data", "some", code=1)
    assert "'Z' (U+005A) on line 2 of 'some' is not" in err
    assert "18 of 81 characters are such" in err
    flags = ["--data", "some", "--skip-unknown"]
    assert "some: 18 of 81 characters are left out" in call("eval", *flags)[1]
    known = json.loads(call("eval", "--data", "known", "--json")[0])["measured"]
    some = json.loads(call("eval", *flags, "--json")[0])["measured"]
    assert some == [{**known[0], "text": "some", "left_out": 18}]


def test_parts_are_those_of_the_trainer():
    documents = read_documents(SKY)
    training = TrainConfig(val_fraction=0.3, test_fraction=0.2, seed=5)
    parts = parts_of(documents, training, 16)
    assert sorted([*parts.training, *parts.held_out, *parts.test]) == sorted(documents)
    trainer = Trainer(ModelConfig(), training, documents)
    corpora = [trainer.data.numbered(0, 1)]
    for pieces in (trainer.data.held_out(), trainer.data.test()):
        corpora += [piece.corpus for piece in pieces]
    for part, (tokens, offsets, _) in zip(parts, corpora, strict=True):
        tokens = tokens[offsets[0] : offsets[-1]]
        ends = np.flatnonzero(tokens == trainer.tokenizer.bos)
        texts = [
            trainer.tokenizer.decode(tokens[begin + 1 : end])
            for begin, end in zip(ends[::2], ends[1::2], strict=True)
        ]
        assert texts == part


# --init-from


def test_a_training_from_the_weights_of_another(call):
    call(*TRAIN, "--steps", "400", "--learning-rate", "0.02", "--out", "a")
    flags = ["--init-from", "a", "--data", SKY, "--steps", "1", "--metrics", "m.jsonl"]
    call("train", *flags, "--out", "b", "--learning-rate", "1e-9", "--schedule", "constant")
    a, b = load(Path("a")), load(Path("b"))
    assert a.model == b.model and (b.step, b.training.learning_rate) == (1, 1e-9)
    for name, weights in a.tensors.items():
        np.testing.assert_allclose(b.tensors[name], weights, atol=1e-7)
    before = json.loads(call("eval", "a", "--json")[0])["measured"][0]["nats_per_token"]
    after = json.loads(call("eval", "b", "--json")[0])["measured"][0]["nats_per_token"]
    assert after == pytest.approx(before, abs=1e-4)
    trainer = Trainer(a.model, a.training, read_documents(SKY))
    trainer.begin_with(a.tensors)
    assert metrics(Path("m.jsonl"))[0]["loss"] == trainer.advance(1)[0]


def test_characters_that_the_other_run_does_not_know(call):
    call(*TRAIN, "--steps", "50", "--out", "a")
    Path("text").write_text("Abc\n\u00e9tat\n" * 20, encoding="utf-8")
    flags = ["--data", "text", "--steps", "1", "--learning-rate", "1e-9", "--averaging", "0.5"]
    _, err = call("train", "--init-from", "a", *flags, "--out", "b")
    assert "2 characters that the run of --init-from does not know" in err
    assert "'A\u00e9'" in err
    a, b = load(Path("a")), load(Path("b"))
    assert set(b.characters) == set(a.characters) | set("A\u00e9")
    for name in ("wte", "lm_head"):
        for i, character in enumerate(a.characters):
            row = b.weights[name][b.characters.index(character)]
            np.testing.assert_allclose(row, a.weights[name][i], atol=1e-7)
        np.testing.assert_allclose(b.weights[name][-1], a.weights[name][-1], atol=1e-7)
        assert np.abs(b.weights[name][b.characters.index("A")]).max() > 0
    np.testing.assert_allclose(b.weights["wpe"], a.weights["wpe"], atol=1e-7)
    assert "random weights" not in call("train", "--init-from", "b", *flags, "--out", "c")[1]


def test_settings_beside_init_from(call, refused):
    call(*TRAIN, "--steps", "5", "--model", "rnn", "--out", "a")
    begin = ["train", "--init-from", "a", "--data", SKY, "--steps", "3", "--out", "b"]
    refused(*begin, "--n-embd", "16", names="--n-embd 16 differs from 8 in the run of --init-from")
    refused(*begin, "--momentum", "0.9", names="--momentum 0.9 is for --optimizer sgd")
    refused("train", "--init-from", "missing", code=1, names="'missing/run.json'")
    call(*begin, "--n-embd", "8", "--preset", "1s", "--batch-size", "4")
    run = load(Path("b"))
    assert run.model == load(Path("a")).model
    assert (run.training.optimizer, run.training.batch_size) == ("adamw", 4)
