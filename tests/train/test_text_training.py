"""Training on windows of a text, against a plain network that reads every window by itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
import references

from tapegpt.checkpoint import load, save
from tapegpt.corpus.stream import read_bytes, read_text
from tapegpt.errors import UsageError
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.trainer import Trainer

TEXT = "".join("abc d\n"[(i * i + i // 5) % 6] + "ef"[i * 7 // 5 % 2] for i in range(130))
MODEL = ModelConfig(n_layer=1, n_embd=8, n_head=2, block_size=7)
FORMS = [("scalar", 1), ("dot", 1), ("vector", 1), ("vector", 3)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT)
    return read_text([path])


def make(stream, model=MODEL, **settings):
    settings = {"text": True, "dtype": "float64", "steps": 10, "batch_size": 3} | settings
    return Trainer(model, TrainConfig(**settings), stream)


def windows_of(trainer, step):
    """The windows of a step: lists of tokens."""
    batch = trainer.training.batch_size
    tokens, offsets, _ = trainer.data.numbered(step * batch, batch)
    windows = [tokens[offsets[i] : offsets[i + 1]].tolist() for i in range(batch)]
    return [windows[i % batch] for i in range(step * batch, (step + 1) * batch)]


def losses_of(weights, tokens):
    """The loss at every position of a window."""
    logits = references.gpt_logits(weights, 1, 2, tokens[:-1])
    return [
        references.cross_entropy(row[None], [target])
        for row, target in zip(logits, tokens[1:], strict=True)
    ]


@pytest.mark.parametrize(("granularity", "threads"), FORMS)
def test_a_step_learns_from_windows(stream, granularity, threads):
    trainer = make(stream, granularity=granularity, threads=threads, val_fraction=0.2)
    trainer.advance(2)
    expected = []
    for window in windows_of(trainer, 2):
        assert len(window) == 8
        assert trainer.tokenizer.decode(window) in TEXT[: round(0.8 * len(TEXT))]
        expected.append(np.mean(losses_of(trainer.compiled.weights, window)))
    assert trainer.advance(1)[0] == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize(("granularity", "threads"), FORMS)
@pytest.mark.parametrize("block", [7, 4, 1])
def test_every_held_out_character_counts_once(stream, monkeypatch, granularity, threads, block):
    monkeypatch.setattr("tapegpt.corpus.windows.TOKENS_PER_PIECE", 5 * block)
    fractions = {"val_fraction": 0.2, "test_fraction": 0.1}
    model = replace(MODEL, block_size=block)
    trainer = make(stream, model, granularity=granularity, threads=threads, **fractions)
    trainer.advance(2)
    ids = trainer.tokenizer.encode(TEXT).tolist()
    test, held_out = (round(share * len(TEXT)) for share in (0.9, 0.7))
    for begin, end, measured in (
        (held_out, test, trainer.evaluate()),
        (test, len(TEXT), trainer.test()),
    ):
        losses = []
        half = block // 2
        for first in range(begin, end, block - half):  # predicted from half a block before it
            window = ids[first - 1 - half : min(first + block - half, end)]
            losses += losses_of(trainer.compiled.weights, window)[half:]
        assert len(losses) == end - begin
        assert measured == pytest.approx(np.mean(losses), rel=1e-12)


def test_random_windows_are_measured_where_they_are_asked_for(stream):
    trainer = make(stream, val_fraction=0.2, eval_windows=9)
    ((corpus, context),) = trainer.data.held_out()
    assert context == 0
    windows = corpus.tokens.reshape(9, 8).tolist()
    assert all(trainer.tokenizer.decode(w) in TEXT[-round(0.2 * len(TEXT)) :] for w in windows)
    assert len({tuple(window) for window in windows}) > 4
    expected = np.mean([losses_of(trainer.compiled.weights, window) for window in windows])
    assert trainer.evaluate() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        replace(MODEL, look_back=2, ensemble=2, dropout=0.1),
        ModelConfig(model="rnn", n_embd=8, n_state=8, block_size=7),
        ModelConfig(model="rnn-att", n_embd=8, n_state=8, n_att=4, block_size=7),
        ModelConfig(n_embd=16, n_head=1, block_size=40),
    ],
    ids=lambda model: f"{model.model}-{model.block_size}",
)
def test_any_network_learns_and_goes_on_to_the_same_bits(stream, tmp_path, model):
    settings = {"dtype": "float32", "val_fraction": 0.2, "batch_size": 4, "steps": 60}
    settings |= {"optimizer": "adam", "learning_rate": 0.02, "averaging": 0.2, "threads": 2}
    trainer, other = make(stream, model, **settings), make(stream, model, **settings)
    before = trainer.evaluate()
    trainer.advance(60)
    other.evaluate()
    other.advance(23)
    save(other.snapshot(), tmp_path)
    run = load(tmp_path)
    assert (run.documents, run.vocab_size, run.characters) == (len(TEXT), 8, "\n abcdef")
    resumed = Trainer.resumed(run, stream)
    resumed.advance(30)
    resumed.advance(7)
    assert resumed.snapshot().tensors.keys() == trainer.snapshot().tensors.keys()
    for name, weights in trainer.snapshot().tensors.items():
        assert resumed.snapshot().tensors[name].tobytes() == weights.tobytes()
    assert trainer.evaluate() < 0.9 * before


def test_the_first_loss_is_that_of_a_guess_among_the_alphabet(stream):
    trainer = make(stream, replace(MODEL, zero_init=True))
    assert trainer.advance(1)[0] == pytest.approx(math.log(8), rel=1e-12)


def test_bytes_are_a_text_of_256_symbols(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 2)
    trainer = Trainer(MODEL, TrainConfig(bytes=True, batch_size=2), read_bytes([path]))
    assert trainer.training.text
    trainer.advance(1)
    save(trainer.snapshot(), tmp_path / "run")
    assert load(tmp_path / "run").vocab_size == 256


@pytest.mark.parametrize(
    ("block", "settings", "problem"),
    [
        (260, {}, "a text of 260 characters is shorter than a window of 261: choose a smaller"),
        (200, {"val_fraction": 0.3}, "leaves fewer than 201 of 260 characters to train on"),
        (
            60,
            {"val_fraction": 0.2, "eval_windows": 5},
            "--eval-windows 5 wants more than the 52 characters that are held out",
        ),
    ],
)
def test_a_text_that_is_too_short_is_refused(stream, block, settings, problem):
    with pytest.raises(UsageError, match=problem):
        make(stream, replace(MODEL, block_size=block), **settings)


def test_settings_that_do_nothing_are_refused():
    with pytest.raises(UsageError, match="--eval-windows 5 is for --text alone"):
        TrainConfig(eval_windows=5, val_fraction=0.1)
    with pytest.raises(UsageError, match="--eval-windows 5 wants held-out"):
        TrainConfig(eval_windows=5, text=True)
