"""Nothing damaged, forged or too large ever loads."""

import json
import os
import random

import numpy as np
import pytest
import safetensors.numpy
from saved_run import (
    HARMLESS,
    HOSTILE,
    forge,
    forge_settings,
    forge_tensors,
    make_run,
    mutate,
    plain,
    tensors_file,
    tensors_name,
)

from tapegpt.checkpoint import RunError, load, save
from tapegpt.settings import ModelConfig, TrainConfig


def refused(folder):
    """Assert that nothing loads; the one line that says why."""
    with pytest.raises(RunError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and len(line) < 500
    return line


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
        "No such file or directory: train a run first (tapegpt train), or name the folder of one"
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


def test_forging_works(folder):
    before = (folder / "run.json").read_bytes()
    forge_settings(folder, lambda data: None)
    assert (folder / "run.json").read_bytes() == before
    forge_settings(folder, lambda data: data.update(step=8))
    assert load(folder).step == 8


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
