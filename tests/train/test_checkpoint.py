"""Runs on disk: exact round trips, and which runs are saved."""

import hashlib
import json
import random
import re
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from saved_run import (
    SMALL,
    TRAINING,
    make_run,
    plain,
    runs,
    tensors_file,
    tensors_name,
)

from tapegpt.checkpoint import RunError, discard, load, save
from tapegpt.models.registry import parameter_shapes
from tapegpt.runs import tensors
from tapegpt.settings import ModelConfig, TrainConfig


@settings(max_examples=50, deadline=None)
@given(runs())
def test_round_trip(run):
    with TemporaryDirectory() as name:
        folder = Path(name) / "new" / "out"
        save(run, folder)
        again = load(folder)
    assert plain(again) == plain(run)
    assert type(again.random_state[1]) is tuple
    ours, original = random.Random(), random.Random()
    ours.setstate(again.random_state)
    original.setstate(run.random_state)
    assert [ours.gauss(0, 1) for _ in range(3)] == [original.gauss(0, 1) for _ in range(3)]


def test_every_unicode_character_fits(tmp_path):
    model = ModelConfig(n_embd=1, n_head=1, block_size=1)
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    run = make_run(model=model, characters=everything)
    save(run, tmp_path)
    assert load(tmp_path).characters == everything


def test_equal_runs_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        save(make_run(), tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_files_are_what_they_say(folder):
    text = (folder / "run.json").read_bytes()
    data = json.loads(text)
    assert data["digest"] == hashlib.sha256(text.partition(b"\n")[2]).hexdigest()
    blob = tensors_file(folder).read_bytes()
    assert data["tensors_digest"] == hashlib.sha256(blob).hexdigest()
    assert tensors_file(folder).name == f"tensors-{data['tensors_digest'][:16]}.safetensors"
    assert data["model"] == asdict(SMALL)
    assert data["training"] == asdict(TRAINING)
    assert (data["characters"], data["step"], data["documents"]) == ("ab", 7, 2)
    loaded = safetensors.numpy.load(blob)
    assert loaded["adam.v/layer0.mlp_fc1"].shape == (16, 4)
    assert len(loaded) == 27


@pytest.mark.parametrize("counting", [0, 3])
def test_the_tensors_are_written_as_safetensors_would(folder, monkeypatch, counting):
    counted = np.array([0, 1, 2, 1, 2], np.uint8) if counting else None
    run = make_run(model=replace(SMALL, counting=counting), counted=counted)
    save(run, folder)
    blob = tensors_file(folder).read_bytes()
    assert safetensors.numpy.save(safetensors.numpy.load(blob)) == blob
    monkeypatch.setattr(tensors, "PIECE", 50)  # some rows at a time
    save(run, folder)
    assert tensors_file(folder).read_bytes() == blob


def test_a_save_takes_no_memory_to_speak_of(tmp_path):
    model = ModelConfig(n_embd=512, n_head=4, block_size=8)
    shapes = parameter_shapes(model, 3)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    run = replace(
        make_run(),
        model=model,
        tensors=weights,
        optimizer=dict.fromkeys(("adam.m", "adam.v"), weights),
    )
    tracemalloc.start()
    save(run, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * tensors.PIECE < tensors_file(tmp_path).stat().st_size / 10


def test_views_are_saved_as_they_look(tmp_path):
    run = make_run()
    padded = {name: np.full((a.shape[0], 16), 9, a.dtype) for name, a in run.tensors.items()}
    views = {}
    for name, array in run.tensors.items():
        views[name] = padded[name][:, : array.shape[1]]
        views[name][:] = array
        if name == "wpe":
            views[name] = array.T.copy().T
    save(replace(run, tensors=views), tmp_path)
    assert plain(load(tmp_path)) == plain(run)


def test_a_save_replaces_the_run_and_only_the_run(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "tensors-best.safetensors").write_text("mine")
    (folder / "run.json.new").write_text("left by a killed save")
    (folder / "tensors-0123456789abcdef.safetensors").write_text("left by a killed save")
    (folder / "tensors-0123456789abcdef.safetensors.new").write_text("left by a killed save")
    later = make_run(seed=1, step=8)
    save(later, folder)
    assert plain(load(folder)) == plain(later)
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt",
        "run.json",
        tensors_name(later),
        "tensors-best.safetensors",
    ]
    save(later, folder)
    assert plain(load(folder)) == plain(later)


def test_a_discarded_run_is_gone_and_nothing_else(folder, tmp_path):
    save(make_run(), folder / "best")
    discard(folder / "best")
    assert not (folder / "best").exists()
    discard(folder / "best")
    (folder / "notes.txt").write_text("mine")
    discard(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    discard(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": -1}, "step"),
        ({"step": True}, "step"),
        ({"step": 2**54}, "step"),
        ({"elapsed": -1.0}, "elapsed"),
        ({"elapsed": 1}, "elapsed"),
        ({"elapsed": float("inf")}, "not JSON compliant"),
        ({"best_loss": 2}, "best_loss"),
        ({"best_loss": float("nan")}, "not JSON compliant"),
        ({"stale": -1}, "stale"),
        ({"stale": 1.0}, "stale"),
        ({"documents": 0}, "documents"),
        ({"corpus_digest": "?"}, "corpus_digest"),
        ({"characters": "aa"}, "characters"),
        ({"characters": "a\ud800"}, "surrogates"),
        ({"characters": ""}, "(3, 4), not float32 (1, 4)"),
        ({"characters": "abc"}, "(3, 4), not float32 (4, 4)"),
        ({"random_state": (3, (1, 2), None)}, "random_state"),
        ({"random_state": (3, (*range(624), 700), None)}, "random_state"),
        ({"random_state": (3, (*range(624), 1), float("nan"))}, "not JSON compliant"),
        ({"random_state": (3, (*range(624), 1), "1")}, "random_state"),
        ({"random_state": (2, tuple(range(625)), None)}, "not written"),
        ({"random_state": None}, "random_state"),
        ({"training": TrainConfig(dtype="float64")}, "is float32 (3, 4), not float64 (3, 4)"),
        ({"training": TrainConfig(optimizer="sgd")}, "'adam.m/layer0.attn_wk' is unknown"),
        ({"model": ModelConfig(n_layer=2)}, "'adam.m/layer1.attn_wk' is missing"),
        ({"tensors": {}}, "'layer0.attn_wk' is missing"),
        ({"optimizer": {}}, "'adam.m/layer0.attn_wk' is missing"),
        ({"optimizer": {"sgd": {"x": 1}}}, "missing"),
    ],
)
def test_wrong_runs_are_not_saved(folder, changes, problem):
    with pytest.raises(RunError, match=re.escape(problem)) as caught:
        save(replace(make_run(seed=1), **changes), folder)
    assert "\n" not in str(caught.value)
    assert plain(load(folder)) == plain(make_run())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["wte", "adam.m", "adam.v"])
def test_what_is_not_finite_is_not_saved(folder, value, where):
    run = make_run(seed=1)
    (run.tensors if where == "wte" else run.optimizer[where])["wte"][2, 1] = value
    with pytest.raises(RunError, match=f"{where}.* not finite"):
        save(run, folder)
    assert plain(load(folder)) == plain(make_run())
