"""Models from Python: as on the command line, with arguments for flags."""

import math
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from networks import Gated, Lstm

import tapegpt
from tapegpt import (
    GPT,
    RNN,
    Corpus,
    LanguageModel,
    Tape,
    TapeError,
    TapegptError,
    Text,
    load,
    train,
)
from tapegpt.checkpoint import load as load_run
from tapegpt.errors import DivergedError

WORDS = ["anna", "bob", "clara", "dora", "emil", "fritz", "greta", "hanna"]
SMALL = {"n_embd": 8, "n_head": 2, "block_size": 8}


@pytest.fixture(scope="module")
def trained():
    model = GPT(WORDS, **SMALL)
    return model, train(model, WORDS, steps=40, batch_size=2)


def test_corpora(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("  anna \n\nbob\r\n")
    for source in (["anna", "bob"], "anna\n\n bob", file):
        corpus = Corpus(source)
        assert list(corpus) == ["anna", "bob"]
        assert corpus.characters == "abno"
    assert repr(corpus) == "Corpus(2 documents, 4 characters)"
    assert len(Corpus.names()) > 1000
    for source, said in (
        ([], "at least one"),
        ("", "at least one"),
        ([1], "not 1"),
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(TapegptError, match=said):
            Corpus(source)


def test_training_is_the_command_lines(tmp_path, call, trained):
    model, result = trained
    data = tmp_path / "words.txt"
    data.write_text("\n".join(WORDS))
    sizes = ["--n-embd", "8", "--n-head", "2", "--block-size", "8"]
    call(
        "train",
        "--data",
        data,
        "--steps",
        "40",
        "--batch-size",
        "2",
        "--out",
        tmp_path / "out",
        *sizes,
    )
    run = load_run(tmp_path / "out")
    for name, weights in model.weights.items():
        np.testing.assert_array_equal(weights, run.weights[name])
    assert len(result.losses) == 40 and result.loss == result.losses[-1]
    same = load(tmp_path / "out")
    assert list(same.sample(5, seed=3)) == list(model.sample(5, seed=3))


def test_loss_and_logits(trained):
    model, _ = trained
    logits = model.logits("anna").astype(float)
    assert logits.shape == (5, len(model.characters) + 1)
    tokens = [*map(model.characters.index, "anna"), len(model.characters)]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[range(5), tokens]
    assert model.loss("anna") == pytest.approx(losses.mean(), rel=1e-5)
    assert model.loss(["anna", "anna"]) == pytest.approx(model.loss("anna"), rel=1e-5)
    np.testing.assert_allclose(model.logits(""), logits[:1], rtol=1e-5, atol=1e-6)  # one is near 0
    for use, said in [
        (lambda: model.logits("a" * 8), "sees 8 positions: choose one of 0 to 7"),
        (lambda: model.logits("xyz"), "not in the alphabet"),
        (lambda: model.loss([]), "at least one"),
    ]:
        with pytest.raises(TapegptError, match=said):
            use()


def test_sampling(trained):
    model, _ = trained
    texts = model.sample(4, prompt="an", temperature=0)
    first = next(texts)
    assert first.startswith("an") and list(texts) == [first] * 3
    assert len(list(model.sample())) == 20
    with pytest.raises(TapegptError, match=r"^top_k 0 is out of range"):
        model.sample(top_k=0)
    with pytest.raises(TapegptError, match=r"temprature.*did you mean temperature"):
        model.sample(temprature=1)
    with pytest.raises(TapegptError, match=r"^prompt 'aaaaaaaaa' has 9"):
        list(model.sample(prompt="a" * 9))


def test_weights_are_copies_and_can_be_set(trained):
    model = GPT(WORDS, **SMALL)
    before = model.loss("anna")
    model.weights["lm_head"][:] = 0
    assert model.loss("anna") == before
    model.set_weights({"lm_head": np.zeros(model.shapes["lm_head"])})
    assert model.loss("anna") == pytest.approx(math.log(len(model.characters) + 1), rel=1e-6)
    assert not model.weights["lm_head"].any() and model.weights["wte"].any()
    for weights, said in [
        ({"wtf": np.zeros(3)}, "'wtf'"),
        ({"wte": np.zeros((2, 2))}, "shape"),
        ({"wte": np.full(model.shapes["wte"], np.nan)}, "not finite"),
    ]:
        with pytest.raises(TapegptError, match=said):
            model.set_weights(weights)
    # Training begins with weights that were set.
    train(model, WORDS, steps=1, learning_rate=1e-9, weight_decay=0.0, optimizer="adamw")
    assert abs(model.weights["lm_head"]).max() < 1e-6


@pytest.mark.parametrize("kind", [str, Path])
def test_saving_and_loading(trained, tmp_path, kind, call):
    model, _ = trained
    model.save(kind(tmp_path / "model"))
    model.save(kind(tmp_path / "model"))
    again = load(kind(tmp_path / "model"))
    assert repr(again) == repr(model) and "step 40" in repr(again)
    assert again.settings == model.settings
    for name, weights in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], weights)
    out, _ = call("sample", "--run", tmp_path / "model", "--num-samples", "3", "--seed", "7")
    assert out.split("\n")[:3] == list(again.sample(3, seed=7))
    fresh = RNN(WORDS, n_state=8, block_size=8)
    fresh.save(tmp_path / "fresh")
    assert load(tmp_path / "fresh").loss("bob") == fresh.loss("bob")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(TapegptError, match="other things"):
        model.save(tmp_path / "other")
    with pytest.raises(TapegptError, match="cannot read"):
        load(tmp_path / "missing")


VERSES = "to be, or not to be:\r\nthat is the question\n" * 20


def test_texts(tmp_path):
    file = tmp_path / "verses.txt"
    file.write_bytes(VERSES.encode())
    given = Text(VERSES)
    assert repr(given) == f"Text({len(VERSES) - 20} characters, {len(set(VERSES)) - 1} different)"
    assert Text(file).digest == given.digest
    assert "\n" in given.characters and "\r" not in given.characters
    for source, said in (("", "empty"), (["a"], "a string or a Path"), (file.parent, "directory")):
        with pytest.raises(TapegptError, match=said):
            Text(source)


def test_a_text_is_learnt_as_on_the_command_line(tmp_path, call):
    file, text = tmp_path / "verses.txt", Text(VERSES)
    file.write_bytes(VERSES.encode())
    sizes = ["--n-embd", "8", "--n-head", "2", "--block-size", "8"]
    call("train", "--text", "--data", file, "--steps", "20", "--out", tmp_path / "run", *sizes)
    model = GPT(text, **SMALL)
    result = train(model, text, steps=20, dtype="float32")
    run = load_run(tmp_path / "run" / "best")
    for name, weights in model.weights.items():
        assert weights.tobytes() == run.weights[name].tobytes()
    assert list(result.val_losses) and result.test_loss is None

    (drawn,) = model.sample(length=30, prompt="to ", seed=3)
    assert len(drawn) == 33 and drawn.startswith("to ")
    assert len(list(model.sample(2, length=5))) == 2
    assert model.loss(text) == pytest.approx(model.loss(VERSES))
    assert model.logits("to be").shape == (5, len(model.characters))
    model.save(tmp_path / "saved")
    assert load(tmp_path / "saved").loss(text) == model.loss(text)
    # A fresh optimizer, and another text of the same characters.
    train(model, Text(VERSES[:200]), steps=2, val_fraction=0.0)
    assert model.step == 2


def test_documents_and_texts_are_not_taken_for_each_other():
    text, documents = GPT(Text(VERSES), **SMALL), GPT(WORDS, **SMALL)
    for refused, said in (
        (lambda: train(text, WORDS, steps=1), "is of a text: train it on a Text"),
        (lambda: train(documents, Text(VERSES), steps=1), "is of documents: train it on a Corpus"),
        (lambda: train(documents, WORDS, steps=1, text=True), "leave text out"),
        (lambda: text.loss(["a", "b"]), "give a Text"),
        (lambda: documents.loss(Text("anna")), "give a document"),
    ):
        with pytest.raises(TapegptError, match=said):
            refused()


def test_callbacks():
    model, seen = GPT(WORDS, **SMALL), []
    result = train(model, WORDS, seen.append, every=10, steps=35, val_fraction=0.25, eval_every=20)
    assert [progress.step for progress in seen] == [10, 20, 30, 35]
    assert [progress.val_loss is not None for progress in seen] == [False, True, False, True]
    assert list(result.val_losses) == [20, 35]
    assert sum(len(progress.losses) for progress in seen) == 35
    assert model.loss(WORDS) > 0 and seen[0].loss == seen[0].losses[-1]
    stopped = train(model, WORDS, lambda progress: progress.step >= 20, every=10, steps=1000)
    assert len(stopped.losses) == 20 and model.step == 20
    with pytest.raises(ZeroDivisionError):
        train(model, WORDS, lambda progress: 1 / 0, every=5, steps=10)
    assert model.step == 5
    with pytest.raises(TapegptError, match="every"):
        train(model, WORDS, every=0)


def test_the_best_state_is_kept_and_test_documents_are_measured():
    model = GPT(WORDS * 4, **SMALL)
    result = train(
        model,
        WORDS * 4,
        steps=60,
        val_fraction=0.2,
        test_fraction=0.2,
        eval_every=15,
        learning_rate=0.3,
    )
    best = min(result.val_losses, key=result.val_losses.get)
    assert model.step == best and result.test_loss > 0


def test_errors_name_arguments():
    for use, said in [
        (lambda: GPT(WORDS, n_embd=10, n_head=4), "^n_embd 10 is not divisible by n_head 4"),
        (lambda: GPT(WORDS, n_emb=10), "'n_emb'.*n_embd"),
        (lambda: GPT(WORDS, dtype="float16"), "^dtype 'float16' is unknown"),
        (lambda: LanguageModel("gtp", WORDS), "^model 'gtp' is unknown.*gpt"),
        (lambda: LanguageModel(3, WORDS), "no network"),
    ]:
        with pytest.raises(TapegptError, match=said):
            use()
    model = GPT(WORDS, **SMALL)
    for settings, said in [
        ({"steps": 3, "seconds": 3}, "^steps 3 and seconds 3"),
        ({"step": 3}, "'step'"),
        ({"momentum": 0.5}, "^momentum 0.5 is for optimizer sgd"),
        ({"dtype": "float64"}, "float32"),
    ]:
        with pytest.raises(TapegptError, match=said):
            train(model, WORDS, **settings)
    with pytest.raises(TapegptError, match="leave text out"):
        train(model, WORDS, text=True)
    with pytest.raises(TapegptError, match="does not know, 'xy'"):
        train(model, ["xy"])
    before = model.weights
    with pytest.raises(DivergedError, match="learning_rate"):
        train(model, WORDS, steps=200, learning_rate=1e30, optimizer="sgd")
    for name, weights in model.weights.items():
        np.testing.assert_array_equal(weights, before[name])
    with pytest.raises(TapegptError):
        Tape().value(3)
    assert issubclass(TapeError, TapegptError) and issubclass(TapeError, ValueError)


def test_threads_with_models_of_their_own():
    results = {}

    def work(number):
        model = GPT(WORDS, seed=number, **SMALL)
        train(model, WORDS, steps=20)
        results[number] = model.weights["wte"]

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = GPT(WORDS, seed=2, **SMALL)
    train(again, WORDS, steps=20)
    np.testing.assert_array_equal(results[2], again.weights["wte"])


@pytest.mark.parametrize("network", [Gated, Lstm])
def test_networks_of_ones_own(network, tmp_path):
    settings = {"look_back": 2} if network is Gated else {"n_state": 8}
    model = LanguageModel(network(), WORDS, n_embd=8, block_size=8, dtype="float64", **settings)
    before = model.loss(WORDS)
    train(model, WORDS, steps=120, batch_size=4)
    assert model.loss(WORDS) < 0.75 * before
    assert len(list(model.sample(3))) == 3
    model.save(tmp_path / "own")
    assert load(tmp_path / "own", network()).loss("anna") == model.loss("anna")
    with pytest.raises(TapegptError, match="n_head 3 is for model gpt"):
        LanguageModel(network(), WORDS, n_embd=8, n_head=3)


def test_an_elementwise_operation_at_every_granularity():
    losses = []
    for granularity in ("vector", "dot", "scalar"):
        model = LanguageModel(Gated(), WORDS, n_embd=4, block_size=8, dtype="float64", look_back=1)
        losses.append(train(model, WORDS, steps=6, granularity=granularity).losses)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-11)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-11)


def test_the_command_line_takes_a_network_of_ones_own(tmp_path):
    data = tmp_path / "words.txt"
    data.write_text("\n".join(WORDS))

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "tapegpt", *map(str, arguments)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done

    out = tmp_path / "out"
    common = ["train", "--data", data, "--out", out, "--model", "networks:Gated", "--steps"]
    run(*common, "5", "--look-back", "2", "--n-embd", "8")
    run(*common, "8", "--resume")
    assert run("sample", "--run", out, "--num-samples", "2", "--model", "networks:Gated").stdout
    refused = run("sample", "--run", out, code=1)
    assert "networks:Gated" in refused.stderr and refused.stderr.count("\n") == 1
    for name, said in [("networks:Nothing", "cannot be imported"), ("math:pi", "is no network")]:
        refused = run("train", "--model", name, code=2)
        assert said in refused.stderr and refused.stderr.count("\n") == 1
    refused = run("train", "--model", "networks:Gated", "--n-state", "3", code=2)
    assert "--n-state 3 is for --model rnn" in refused.stderr


def test_importing_is_light():
    script = (
        "import sys, tapegpt; from tapegpt import GPT, RNN, Corpus, train, load;"
        "GPT(Corpus(['ab']), n_embd=4);"
        "assert not {'numba', 'llvmlite'} & set(sys.modules); print(dir(tapegpt))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert all(repr(name) in done.stdout for name in tapegpt.__all__)
    import_module("tapegpt.train.loop")

    with pytest.raises(TapegptError, match="steps"):  # the package of that name can be called too
        tapegpt.train(GPT(WORDS, **SMALL), WORDS, steps=0)


def test_reading_a_model_imports_nothing(tmp_path):
    model = LanguageModel(Gated(), WORDS, n_embd=4, block_size=8)
    model.save(tmp_path / "own")
    script = (
        "import sys; sys.path.insert(0, '.'); import tapegpt\n"
        "try: tapegpt.load(sys.argv[1])\n"
        "except tapegpt.TapegptError as error: print(error)\n"
        "assert 'networks' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "own")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "networks:Gated" in done.stdout and "not known" in done.stdout
