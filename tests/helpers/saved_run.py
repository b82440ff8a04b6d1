"""Runs on disk, and how to damage and forge them."""

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from tapegpt.checkpoint import Run, save, state_names
from tapegpt.models.registry import parameter_shapes
from tapegpt.setting import MODELS, OPTIMIZERS
from tapegpt.settings import ModelConfig, TrainConfig

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


def tensors_file(folder):
    (path,) = folder.glob("tensors-*")
    return path


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


def tensors_name(run):
    with TemporaryDirectory() as name:
        save(run, Path(name))
        return tensors_file(Path(name)).name


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
    *((name, 0.5) for name in ("softcap", "adam_rate", "cooldown", "final_rate")),
    *((name, None) for name in ("softcap", "eval_windows")),
    *(
        (name, on)
        for name in ("qk_norm", "final_norm", "zero_init", "cautious_decay")
        for on in (True, False)
    ),
    *(("text", False), ("bytes", False)),
    *(("seconds", None), ("best_loss", None), ("stale", 2**31), ("training", {})),
]


def python(*arguments):
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
