"""Runs on disk: exact round trips, and nothing damaged, forged or half-written ever loads."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.numpy
from faults import CODES, Faults
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegpt import checkpoint
from tapegpt.checkpoint import Run, RunError, discard, load, save, state_names
from tapegpt.errors import TapegptError
from tapegpt.models.registry import parameter_shapes
from tapegpt.settings import MODELS, OPTIMIZERS, ModelConfig, TrainConfig
from tapegpt.system import atomic_files

SMALL = ModelConfig(n_embd=4, n_head=2, block_size=3)
TRAINING = TrainConfig(learning_rate=0.01)
CORPUS = hashlib.sha256(b"ab\nba\n").hexdigest()


def make_run(seed=0, model=SMALL, training=TRAINING, characters="ab", step=7, **changes):
    generator = np.random.default_rng(seed)
    state = random.Random(seed)
    state.gauss(0, 1)  # leaves a second value to come

    def arrays():
        shapes = parameter_shapes(model, len(characters) + 1)
        return {
            name: generator.normal(size=shape).astype(training.dtype)
            for name, shape in shapes.items()
        }

    run = Run(
        model=model,
        training=training,
        characters=characters,
        step=step,
        elapsed=0.0,
        best_loss=None,
        stale=0,
        random_state=state.getstate(),
        documents=2,
        corpus_digest=CORPUS,
        tensors=arrays(),
        optimizer={name: arrays() for name in state_names(training)},
    )
    return replace(run, **changes)


def plain(run):
    """Everything in a run, as something that == compares to the bit and to the order."""

    def arrays(table):
        return [(name, a.dtype, a.shape, a.tobytes()) for name, a in table.items()]

    rest = [getattr(run, name) for name in Run.__slots__[:-2]]
    return repr(rest), arrays(run.tensors), [(s, arrays(t)) for s, t in run.optimizer.items()]


def refused(folder):
    """Assert that nothing loads; the one line that says why."""
    with pytest.raises(RunError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and len(line) < 500
    return line


def tensors_file(folder):
    (path,) = folder.glob("tensors-*")
    return path


@pytest.fixture
def folder(tmp_path):
    save(make_run(), tmp_path / "out")
    return tmp_path / "out"


# Round trips


@st.composite
def runs(draw):
    n_head, n_att = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    model = ModelConfig(
        model=draw(st.sampled_from(MODELS)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 5)),
        block_size=draw(st.integers(1, 9)),
        n_state=n_att + draw(st.integers(0, 3)),
        n_att=n_att,
    )
    training = TrainConfig(
        **draw(
            st.fixed_dictionaries({"steps": st.integers(1, 2**53)})
            | st.fixed_dictionaries({"seconds": st.floats(5e-324, 1e308)})
        ),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        learning_rate=draw(st.floats(5e-324, 1e308)),
        val_fraction=0.5,
        patience=draw(st.none() | st.integers(1, 2**53)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    characters = draw(st.sets(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
    return make_run(
        seed=draw(st.integers(0, 2**32)),
        model=model,
        training=training,
        characters="".join(sorted(characters)),
        step=draw(st.integers(0, 2**53)),
        elapsed=draw(st.floats(0, 1e308)),
        best_loss=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        stale=draw(st.integers(0, 2**53)),
        documents=draw(st.integers(1, 2**40)),
    )


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
    tensors = safetensors.numpy.load(blob)
    assert tensors["adam.v/layer0.mlp_fc1"].shape == (16, 4)
    assert len(tensors) == 27


def test_the_tensors_are_written_as_safetensors_would(folder, monkeypatch):
    blob = tensors_file(folder).read_bytes()
    assert safetensors.numpy.save(safetensors.numpy.load(blob)) == blob
    monkeypatch.setattr(checkpoint, "PIECE", 50)  # some rows at a time
    save(make_run(), folder)
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
    assert peak < 3 * checkpoint.PIECE < tensors_file(tmp_path).stat().st_size / 10


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


def tensors_name(run):
    with TemporaryDirectory() as name:
        save(run, Path(name))
        return tensors_file(Path(name)).name


# Runs that must not be saved


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


# Damage


def mutate(data, generator, other):
    """The bytes with one random damage, different from what they were."""
    while True:
        position = generator.randrange(len(data))
        length = generator.randrange(1, 40)
        damaged = generator.choice(
            [
                data[:position]
                + bytes([data[position] ^ 1 << generator.randrange(8)])
                + data[position + 1 :],
                data[:position],
                data + generator.randbytes(length),
                data + generator.choice([b"\n", b" ", b"\0", data]),
                data[:position] + bytes(length) + data[position + length :],
                data[:position] + data[position + length :],
                data[:position] + data[max(0, position - length) : position] + data[position:],
                data[:position] + generator.randbytes(length) + data[position + length :],
                data[:position] + other[position:],
                other,
            ]
        )
        if damaged != data:
            return damaged


def test_damage_is_refused(tmp_path):
    """A few hundred seeded mutants of either file; test_damaged_runs.py has other kinds too."""
    folder = tmp_path / "out"
    run = make_run()
    save(run, folder)
    save(make_run(seed=1), tmp_path / "other")
    generator = random.Random(2)
    victims = [
        (folder / "run.json", tmp_path / "other" / "run.json"),
        (tensors_file(folder), tensors_file(tmp_path / "other")),
    ]
    for _ in range(300):
        path, other = generator.choice(victims)
        data = path.read_bytes()
        path.write_bytes(mutate(data, generator, other.read_bytes()))
        refused(folder)
        path.write_bytes(data)
    assert plain(load(folder)) == plain(run)


def test_every_bit_of_the_manifest_and_the_header_counts(folder):
    for path in (folder / "run.json", tensors_file(folder)):
        data = path.read_bytes()
        for position in [*range(120), len(data) - 1]:
            for bit in range(8):
                damaged = bytearray(data)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                refused(folder)
        path.write_bytes(data)
    load(folder)


def test_missing_pieces(tmp_path, folder):
    assert refused(tmp_path / "nowhere").endswith(
        "No such file or directory: train a run first (python -m tapegpt train), "
        "or name the folder of one"
    )
    assert "Not a directory" in refused(folder / "run.json")
    tensors = tensors_file(folder)
    tensors.unlink()
    assert f"{tensors.name}': No such file" in refused(folder)
    (folder / "run.json").unlink()
    assert "train a run first" in refused(folder)


def test_swapped_files(folder, tmp_path):
    save(make_run(seed=1), tmp_path / "other")
    tensors_file(folder).write_bytes(tensors_file(tmp_path / "other").read_bytes())
    assert "do not match their digest" in refused(folder)
    (folder / "run.json").write_bytes((tmp_path / "other" / "run.json").read_bytes())
    assert "No such file" in refused(folder)
    (folder / "run.json").write_bytes(tensors_file(folder).read_bytes())
    assert "does not match its digest" in refused(folder)


# Forgery: digests that fit, so that only the checks behind them are left


def forge(folder, text):
    """Write run.json with `text` after its first line, and a first line that vouches for it."""
    rest = text if isinstance(text, bytes) else text.encode()
    first = b'{"digest": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()
    (folder / "run.json").write_bytes(first + rest)


def forge_settings(folder, edit):
    data = json.loads((folder / "run.json").read_bytes())
    del data["digest"]
    edit(data)
    lines = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in data.items())
    forge(folder, ",\n".join(lines) + "}\n")


def forge_tensors(folder, blob):
    tensors_file(folder).unlink()
    digest = hashlib.sha256(blob).hexdigest()
    (folder / f"tensors-{digest[:16]}.safetensors").write_bytes(blob)
    forge_settings(folder, lambda data: data.update(tensors_digest=digest))


def test_forging_works(folder):
    before = (folder / "run.json").read_bytes()
    forge_settings(folder, lambda data: None)
    assert (folder / "run.json").read_bytes() == before
    forge_settings(folder, lambda data: data.update(step=8))
    assert load(folder).step == 8


HOSTILE = [
    *(None, True, False, -1, 0.5, 1e999, float("nan"), 2**31, 2**63, 10**4000),
    *("", "x", "../../etc/passwd", "0" * 63, "A" * 64, [], [[]], {}, {"a": 1}),
    *([3, [0] * 624 + [700], None], [3, [True] * 625, None], [3, [2**32] * 624 + [1], None]),
    *([3, [1] * 625, "0"], [3, [1] * 625, 1], [3, [1] * 625, float("inf")], [3, 5, None]),
    *([3, [-1] * 625, None], [3, [10**400] * 625, None], [4, [1] * 625, None], [[], {}, None]),
]
HARMLESS = [
    *(("step", 2**31), ("steps", 2**31), ("seed", 2**31), ("seed", 2**63), ("documents", 2**31)),
    *((name, 0.5) for name in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")),
    *((name, 0.5) for name in ("momentum", "clip_norm", "decay", "warmup", "val_fraction")),
    *((name, 0.5) for name in ("elapsed", "best_loss", "dropout", "test_fraction")),
    *((name, None) for name in ("learning_rate", "clip_norm", "eval_every", "patience")),
    *(("seconds", None), ("best_loss", None), ("stale", 2**31), ("training", {})),
]


def test_forged_values_are_refused(folder):
    before = (folder / "run.json").read_bytes()
    data = json.loads(before)
    places = [[name] for name in data if name != "digest"]
    places += [[part, name] for part in ("model", "training") for name in data[part]]
    for *path, name in places:
        for value in HOSTILE:

            def edit(table, path=path, name=name, value=value):
                for part in path:
                    table = table[part]
                table[name] = value

            forge_settings(folder, edit)
            if (name, value) in HARMLESS:
                load(folder)
            else:
                refused(folder)
        forge_settings(folder, lambda table, path=path, name=name: drop(table, path, name))
        if path == ["training"]:  # as if an older version had saved the run
            assert getattr(load(folder).training, name) == getattr(TrainConfig(), name)
        elif not path or name in ("n_embd", "block_size"):  # whose defaults need other weights
            refused(folder)
        (folder / "run.json").write_bytes(before)
    load(folder)


def test_a_setting_that_no_version_knows_is_refused_by_name(folder):
    forge_settings(folder, lambda data: data["training"].update(colour="red"))
    assert "TrainConfig has no setting 'colour'" in refused(folder)


def drop(table, path, name):
    for part in path:
        table = table[part]
    del table[name]


def test_forged_texts_are_refused(folder):
    rest = (folder / "run.json").read_bytes().partition(b"\n")[2]
    for old, new in [
        (b'"step": 7', b'"step": 7, "step": 7'),
        (b'"step": 7', b'"step": 7, "step": 8'),
        (b'"step": 7', b'"step": 7, "more": 8'),
        (b'"step": 7', b'"step":  7'),
        (b'"step": 7', b'"step": 7.0'),
        (b'"step": 7', b'"step": 7e0'),
        (b'"step": 7', b'"step": 07'),
        (b'"step": 7', b'"step": ' + b"7" * 5000),
        (b'"step": 7', b'"step": ' + b"[" * 100_000 + b"]" * 100_000),
        (b'"step": 7', b'"step": NaN'),
        (b'"ab"', b'"a\\u0062"'),
        (b'"ab"', b'"a\\ud800"'),
        (b'"ab"', b'"a\xff"'),
        (b'"ab"', b'"a\0"'),
        (b'"learning_rate": 0.01', b'"learning_rate": 1e-2'),
        (b'"n_embd": 4', b'"n_embd": 2147483646'),
        (b'"n_layer": 1', b'"n_layer": 1024'),
        (b'"block_size": 3', b'"block_size": 2147483647'),
        (b'"format": 2', b'"format": 1'),
        (b'"format": 2', b'"format": 2.0'),
        (b"}\n", b"}"),
        (b"}\n", b"}\n\n"),
        (b"}\n", b"}{}\n"),
        (rest, b""),
        (rest, b'"a": 1}\n'),
        (rest, b"[" * 1_000_000),
    ]:
        assert rest.count(old) >= 1
        forge(folder, new.join(rest.rsplit(old, 1)))
        refused(folder)
    forge(folder, rest)
    load(folder)


def test_another_format_is_named(folder):
    forge_settings(folder, lambda data: data.update(format=3))
    assert "its format is 3, and this version reads 2" in refused(folder)


def test_forged_tensors_are_refused(folder):
    good = safetensors.numpy.load(tensors_file(folder).read_bytes())
    wte = good["wte"]
    for edit in [
        {"wte": wte[:2]},
        {"wte": wte.T.copy()},
        {"wte": wte.reshape(-1)},
        {"wte": wte.astype(np.float64)},
        {"wte": wte.view(np.int32)},
        {"wte": np.full_like(wte, np.nan)},
        {"adam.v/wte": np.full_like(wte, np.inf)},
        {"more": wte},
        {"../wte": wte},
        {"wte": np.zeros((3, 4000), np.float32)},
    ]:
        forge_tensors(folder, safetensors.numpy.save(good | edit))
        refused(folder)
    forge_tensors(folder, safetensors.numpy.save({k: a for k, a in good.items() if k != "wte"}))
    assert "tensor 'wte' is missing" in refused(folder)
    forge_tensors(folder, safetensors.numpy.save(good))
    load(folder)


def test_forged_headers_are_refused(folder):
    blob = tensors_file(folder).read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header, body = blob[8 : 8 + size], blob[8 + size :]
    forged = [b"", b"\0", blob[:8], blob[:100], blob + b"\0", bytes(len(blob))]
    forged += [
        n.to_bytes(8, "little") + blob[8:] for n in (0, 1, size - 1, size + 8, 2**63, 2**64 - 1)
    ]
    for old, new in [
        (b'"shape":[3,4]', b'"shape":[4,3]'),
        (b'"shape":[3,4]', b'"shape":[9223372036854775807,9223372036854775807]'),
        (b'"shape":[3,4]', b'"shape":[-3,-4]'),
        (b'"shape":[3,4]', b'"shape":[]'),
        (b'"shape":[3,4]', b'"shape":[12]'),
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (b'"dtype":"F32"', b'"dtype":"BF16"'),
        (b'"dtype":"F32"', b'"dtype":"F99"'),
        (b'"data_offsets":[0,', b'"data_offsets":[8,'),
        (b'"data_offsets":[0,', b'"data_offsets":[-1,'),
        (b'"wte"', b'"wpe"'),
        (b'"wte"', b'"\xff"'),
        (b"{", b"[" * 5000),
        (header, b"null"),
        (header, b"{}"),
    ]:
        assert old in header
        edited = header.replace(old, new, 1)
        forged.append(len(edited).to_bytes(8, "little") + edited + body)
    generator = random.Random(3)
    for _ in range(200):
        edited = mutate(header, generator, body)
        forged.append(len(edited).to_bytes(8, "little") + edited + body)
    for fake in forged:
        forge_tensors(folder, fake)
        try:
            run = load(folder)
        except RunError as error:
            assert "\n" not in str(error)
        else:  # spaces at the header's end, or a digit of an offset that stays the same number
            assert plain(run) == plain(make_run())
    forge_tensors(folder, blob)
    load(folder)


# Paths


def test_links_are_not_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (folder / "run.json", tensors_file(folder)):
        path.rename(elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
        assert "it is a link" in refused(folder)
        path.unlink()
        (elsewhere / path.name).rename(path)
    load(folder)
    folder.rename(elsewhere / "out")
    folder.symlink_to(elsewhere / "out")  # the folder itself may lie anywhere
    load(folder)


def test_a_save_does_not_write_through_links(folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    later = make_run(seed=1)
    (folder / "run.json.new").symlink_to(precious)
    (folder / f"{tensors_name(later)}.new").symlink_to(precious)
    (folder / tensors_name(later)).symlink_to(precious)
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to(precious)
    save(later, folder)
    assert precious.read_text() == "mine"
    assert plain(load(folder)) == plain(later)


@pytest.mark.parametrize("name", ["run.json", "tensors"])
def test_what_is_not_a_file_is_refused(folder, name):
    path = folder / name if name == "run.json" else tensors_file(folder)
    path.unlink()
    os.mkfifo(path)  # would block a careless reader for ever
    assert "not a regular file" in refused(folder)
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(folder)
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert "it is a link" in refused(folder)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 1024, "ensemble": 1024},
        {"block_size": 2**31 - 1, "look_back": 1024, "ensemble": 1024},
        {"block_size": 10**9},
        {"n_embd": 10**9},
        {"model": "rnn", "n_state": 10**9},
    ],
    ids=str,
)
def test_forged_sizes_name_no_weights(folder, monkeypatch, sizes):
    """The file's size refutes them: they are refused before a list of weights is made."""
    monkeypatch.setattr("tapegpt.checkpoint.parameter_shapes", None)
    forge_settings(folder, lambda data: data["model"].update(sizes))
    assert "bytes, and its settings need" in refused(folder)


@pytest.mark.parametrize("piece", [b'{"":0},', b"[],", b"0,", b'{"a":[1]},'])
def test_forged_texts_are_not_parsed(folder, monkeypatch, piece):
    """A tree of many small pieces takes 25 times the memory of its text."""
    monkeypatch.setattr("tapegpt.checkpoint.json.loads", None)
    forge(folder, b'"a": [' + piece * ((8 << 20) // len(piece) - 100) + b"0]}\n")
    assert "it is not written as tapegpt writes it" in refused(folder)


def test_a_run_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    folder = tmp_path / "large"
    save(make_run(model=ModelConfig(n_embd=32)), folder)
    size = tensors_file(folder).stat().st_size
    monkeypatch.setattr("tapegpt.system.atomic_files.bytes_available", lambda: 2 * size - 1)
    assert "does not fit into memory" in refused(folder)
    monkeypatch.setattr("tapegpt.system.atomic_files.bytes_available", lambda: 2 * size)
    load(folder)


@pytest.mark.parametrize("name", ["run.json", "tensors"])
def test_huge_files_are_not_read(folder, name):
    path = folder / name if name == "run.json" else tensors_file(folder)
    os.truncate(path, 1 << 36)  # sparse: takes no room
    assert "68719476736 bytes, more than" in refused(folder)


def test_a_reader_meets_a_writer(folder, monkeypatch):
    """The run is replaced after its run.json was read and before its tensors were."""
    later = make_run(seed=1, step=8)

    def slow_read(path, limit):
        data = atomic_files.read(path, limit)
        monkeypatch.setattr(checkpoint, "read", atomic_files.read)
        save(later, folder)
        return data

    monkeypatch.setattr(checkpoint, "read", slow_read)
    assert plain(load(folder)) == plain(later)


# Failing saves


@pytest.mark.parametrize("code", CODES)
def test_a_failing_save_leaves_the_old_run(folder, code):
    before = plain(load(folder))
    later = make_run(seed=1, step=8)
    failures = 0
    for call in count():
        error = None
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, folder, code, failing=call)
            try:
                save(later, folder)
            except RunError as caught:
                error = caught
        assert not list(folder.glob("*.new"))
        run = load(folder)
        if error is not None:
            failures += 1
            line = str(error)
            assert os.strerror(code) in line and str(folder) in line and "\n" not in line
        if run.step == 8:  # only tidying up has failed, or the last sync, when the new run is whole
            assert plain(run) == plain(later)
            assert error is None or call >= faults.calls - 4
            save(make_run(), folder)
        assert plain(load(folder)) == before
        if call >= faults.calls:
            break
    assert failures >= 12
    save(later, folder)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for open files")
def test_everything_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.replace

    def log_fsync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def log_rename(old, new):
        calls.append((os.path.basename(old), os.path.basename(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_rename)
    save(make_run(), tmp_path / "out")
    tensors = tensors_file(tmp_path / "out").name
    assert calls == [
        f"{tensors}.new",
        "run.json.new",
        (f"{tensors}.new", tensors),
        "out",
        ("run.json.new", "run.json"),
        "out",
    ]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from test_checkpoint import make_run
from tapegpt.checkpoint import RunError, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save(make_run(seed=1), Path(sys.argv[1]))
except RunError as error:
    print(error)
"""


def python(*arguments):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", [0, 1000, 5000])
def test_a_short_write_leaves_the_old_run(folder, room):
    """The system itself refuses to write past some byte."""
    names = sorted(folder.iterdir())
    assert "File too large" in python(LIMITED, folder, room)
    assert sorted(folder.iterdir()) == names
    assert plain(load(folder)) == plain(make_run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            save(make_run(seed=1), folder)
    finally:
        folder.chmod(0o755)
    assert plain(load(folder)) == plain(make_run())


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(RunError, match="cannot save the run in"):
            save(make_run(), folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_errors_are_runtime_errors_of_the_program():
    assert issubclass(RunError, TapegptError) and RunError.exit_code == 1


# kill -9


def saver(folder, first_step, progress, fatal_call):
    """Save run after run, and a byte to `progress` after each; die at a call into C, if given."""

    def profile(frame, event, argument):
        nonlocal fatal_call
        if event == "c_call":
            fatal_call -= 1
            if fatal_call < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    runs = [make_run(seed=step % 3, step=step) for step in range(first_step, first_step + 50)]
    if fatal_call is not None:
        sys.setprofile(profile)
    for run in runs:
        save(run, folder)
        os.write(progress, b".")


def kill_campaign(folder, kills, seed):
    """Kill a saving process again and again: half the time inside a save at a random call, half the
    time from outside at a random moment. Whatever the moment, the last completed save, or the one
    under way, must load."""
    generator = random.Random(seed)
    save(make_run(seed=0, step=0), folder)
    done = 0
    for kill in range(kills):
        inside = kill % 2 == 1
        fatal_call = generator.randrange(800) if inside else None
        outlet, inlet = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(outlet)
            saver(folder, done + 1, inlet, fatal_call)
            os._exit(0)
        os.close(inlet)
        if not inside:
            os.read(outlet, 1)
            time.sleep(generator.uniform(0, 0.004))
            os.kill(child, signal.SIGKILL)
            done += 1
        while dots := os.read(outlet, 1000):
            done += len(dots)
        os.close(outlet)
        os.waitpid(child, 0)
        run = load(folder)
        assert run.step in (done, done + 1), (run.step, done)
        assert plain(run) == plain(make_run(seed=run.step % 3, step=run.step))
        done = run.step
    save(make_run(step=done), folder)
    assert len(list(folder.iterdir())) == 2
    print(kills, "kills,", done, "saves")


@pytest.mark.parametrize("kills", [20, pytest.param(10_000, marks=pytest.mark.long)])
def test_kill_at_any_moment(tmp_path, kills):
    command = "import sys, pathlib, test_checkpoint as t\n"
    command += "t.kill_campaign(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 4)"
    assert python(command, tmp_path / "out", kills).startswith(f"{kills} kills")
