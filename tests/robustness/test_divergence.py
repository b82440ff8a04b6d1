"""What is not finite stops training at the step it appears in, wherever in a model that is."""

import math
import re
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from gradients import group
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import has_gradients, named
from ops.catalogue import NO_RESULT, RESULT_WIDTHS

from tapegpt.cli import main
from tapegpt.errors import DivergedError
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import (
    ADAM,
    SGD,
    Optimizer,
    update,
)
from tapegpt.kernels.op import DOUT
from tapegpt.kernels.registry import kernels_of, load_kernels
from tapegpt.kernels.simd import VECTOR_BYTES
from tapegpt.setting import DTYPES, GRANULARITIES
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.tape.alignment import aligned_zeros
from tapegpt.train import trainer as trainer_module
from tapegpt.train.trainer import Trainer
from tapegpt.train.workers import Threads

MODELS = {
    "gpt": ModelConfig(n_embd=4, n_head=2, block_size=3),
    "two gpts": ModelConfig(
        n_embd=4, n_head=2, block_size=3, look_back=1, ensemble=2, dropout=0.25
    ),
    "modern gpt": ModelConfig(
        n_embd=4,
        n_head=2,
        block_size=3,
        positions="rotary",
        activation="relu2",
        qk_norm=True,
        final_norm=True,
        softcap=5.0,
    ),
    "gpt with swiglu": ModelConfig(n_embd=4, n_head=2, block_size=3, activation="swiglu"),
    "gpt with gelu": ModelConfig(n_embd=4, n_head=2, block_size=3, activation="gelu"),
    "gpt with counts": ModelConfig(n_embd=4, n_head=2, block_size=3, counting=2),
    "rnn": ModelConfig(model="rnn", n_embd=3, n_state=5, block_size=3),
    "rnn-att": ModelConfig(model="rnn-att", n_embd=3, n_state=5, n_att=2, block_size=3),
}
DOCUMENTS = ["ab", "b", "ba", "a", "zab", "ba", "ab"]  # one begins with a z
CONFIG = TrainConfig(steps=4, batch_size=2, dtype="float64")


def results(tape_arrays, i, direction):
    """Where what record i computes lies, or its gradient: of an array the first row."""
    first, out, at, back = tape_arrays.records[i].tolist()
    code = first & OPCODE
    if direction == BACKWARD and has_gradients(code):
        out = int(tape_arrays.operands[back + DOUT])
    width = math.prod(
        int(tape_arrays.operands[at + place]) for place in RESULT_WIDTHS.get(code, ())
    )
    return range(out, out + width)


def poison(trainer, i, direction, value):
    """Add `value` to what record i computes, or to its gradient, for the document with a z.

    Records after it do so: they look up 0, or `value` where the first target is a z.
    """
    compiled, program = trainer.compiled, trainer.compiled.program
    tape_arrays, nodes = program.tape_arrays, results(program.tape_arrays, i, direction)
    table = len(tape_arrays.values)
    looked_up = table + program.vocab_size
    first = looked_up + 1
    values, grads = (
        aligned_zeros(first + len(nodes) + 16, tape_arrays.values.dtype)
        for _ in (FORWARD, BACKWARD)
    )
    values[:table] = tape_arrays.values
    values[table + trainer.tokenizer.characters.index("z")] = value
    extra = [(named("lookup"), looked_up, len(tape_arrays.operands), 0)]
    for node, result in enumerate(nodes, first):
        if direction == FORWARD:
            extra += [(named("add"), node, result, looked_up), (named("detach"), result, node, 0)]
        else:
            grads[node] = 1
            extra.append((named("mul"), node, result, looked_up))
    tape_arrays = tape_arrays._replace(
        values=values,
        grads=grads,
        records=np.insert(tape_arrays.records, i + 1, np.array(extra, np.uint32), axis=0),
        operands=np.append(tape_arrays.operands, [1, table, program.slots.targets, 1]),
    )
    for which in (FORWARD, BACKWARD):
        load_kernels(tape_arrays.kernels, values.dtype, kernels_of(tape_arrays.records), which)
    ends = program.ends + len(extra) * (program.ends > i)
    networks = program.networks.copy()
    networks[:, :3] += len(extra) * (networks[:, :3] > i)  # but the losses' nodes
    trainer.compiled = replace(
        compiled,
        program=program._replace(tape_arrays=tape_arrays, ends=ends, networks=networks),
        weights=compiled.by_name(values[: program.num_params]),
    )
    trainer._threads = Threads(trainer.compiled, trainer.training.threads)


def weights_of(trainer):
    return np.concatenate([array.ravel() for array in trainer.compiled.weights.values()])


def make(model, **settings):
    return Trainer(MODELS[model], replace(CONFIG, **settings), DOCUMENTS)


def chosen_records(tape_arrays, each):
    """Record numbers, `each` of every operation: from first to last."""
    codes = tape_arrays.records[:, 0] & OPCODE
    for code in np.unique(codes):
        found = np.flatnonzero(codes == code)
        if code not in NO_RESULT:
            for i in np.unique(np.linspace(0, len(found) - 1, each).astype(int)):
                yield int(code), int(found[i])


def poisoned_step(trainer):
    """Steps before the one of the document with a z."""
    tokens, offsets, _ = trainer.data.numbered(0, 1)
    documents = [
        trainer.tokenizer.decode(tokens[begin + 1 : end - 1]) for begin, end in pairwise(offsets)
    ]
    return next(i for i, text in enumerate(documents) if "z" in text) // CONFIG.batch_size


# Where NaN may have no effect: gradients that nobody wants, as of a recurrence's first zeros, which
# may be looked up; probabilities of other tokens than the target; losses of shorter documents.
UNUSED = {
    (named("lookup"), BACKWARD),
    (named("detach"), BACKWARD),
    (named("relu"), BACKWARD),
    (named("previous"), BACKWARD),
    (named("counted_features"), BACKWARD),
    (named("div"), FORWARD),
    (named("scale"), FORWARD),
}
# What an ensemble makes of all of its networks counts when it is evaluated, not in training.
TOGETHER = (named("array_add"), named("array_scale"), named("cross_entropy"))
# Nor do gradients pass through the mean of the networks' losses where each is swept on its own.
MEAN = ((named("add"), BACKWARD), (named("scale"), BACKWARD))


def check_operations(model, each, **settings):
    """Poison `each` records of every operation; returns how often, and how often that stopped."""
    untouched = make(model, **settings)
    tape_arrays = untouched.compiled.program.tape_arrays
    step = poisoned_step(untouched)
    untouched.advance(4)
    expected = weights_of(untouched)
    tried = stopped = 0
    for code, i in chosen_records(tape_arrays, each):
        for direction, value in product((FORWARD, BACKWARD), (math.nan, math.inf, -math.inf)):
            trainer = make(model, **settings)
            poison(trainer, i, direction, value)
            tried += 1
            try:
                trainer.advance(4)
            except DivergedError:
                stopped += 1
                assert trainer.step == step, (code, i, direction, value)
            else:
                found = weights_of(trainer)
                assert np.isfinite(found).all(), (code, i, direction, value)
                if math.isnan(value):
                    unused = MODELS[model].ensemble > 1 and code in TOGETHER
                    unused |= len(untouched.compiled.program.networks) > 0 and (
                        (code, direction) in MEAN
                    )
                    assert unused or (code, direction) in UNUSED, (code, i)
                    np.testing.assert_array_equal(found, expected)
    assert stopped > 0.7 * tried
    return tried, stopped


KINDS = [
    (model, granularity)
    for model, granularity in product(MODELS, GRANULARITIES)
    if granularity == "vector" or MODELS[model].dropout == MODELS[model].counting == 0
]


@pytest.mark.parametrize(("model", "granularity"), KINDS)
def test_training_stops_at_the_step(model, granularity):
    # Of scalars there are many records: one of each operation does.
    check_operations(model, 2 if granularity == "vector" else 1, granularity=granularity)


OPTIMIZERS = [
    {"optimizer": "adam"},
    {"optimizer": "adamw", "clip_norm": 0.5},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "clip_norm": 0.5, "momentum": 0.0},
    {"optimizer": "adamw", "clip_norm": 0.5, "threads": 2},
    {"optimizer": "muon", "clip_norm": 0.5, "threads": 2},
]


# Optimizers see parameters and gradients alone, which are the same at every granularity.
@pytest.mark.parametrize(
    ("granularity", "settings"),
    [("scalar", OPTIMIZERS[0]), ("dot", OPTIMIZERS[0]), *product(["vector"], OPTIMIZERS)],
)
def test_every_optimizer_stops(granularity, settings):
    check_operations("gpt", 1, granularity=granularity, dtype="float32", **settings)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_training_stops_wherever_the_poison_is(dtype, settings):
    tried = stopped = 0
    for model, granularity in KINDS:
        counts = check_operations(model, 20, granularity=granularity, dtype=dtype, **settings)
        tried, stopped = tried + counts[0], stopped + counts[1]
    print(f"{settings} {dtype}: {tried} injections, {stopped} stopped, the others had no effect")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_norm", [0.25, math.inf])
@pytest.mark.parametrize(("kind", "weight_decay"), [(ADAM, 0.0), (ADAM, 0.1), (SGD, 0.0)])
@given(
    vectors=st.integers(1, 9),
    place=st.floats(0, 1, exclude_max=True),
    poison=st.sampled_from([math.nan, math.inf, -math.inf, "large"]),
    where=st.sampled_from(["gradient", "weight", "state"]),
)
@settings(max_examples=30)
def test_an_update_notices(dtype, clip_norm, kind, weight_decay, vectors, place, poison, where):
    if poison == "large":  # its square, and a rate times it, are beyond the largest number
        poison = float(np.finfo(dtype).max) / 2
    count = vectors * VECTOR_BYTES // np.dtype(dtype).itemsize
    values, grads = (aligned_zeros(count, np.dtype(dtype)) for _ in range(2))
    state = aligned_zeros((2 - kind) * count, np.dtype(dtype)).reshape(-1, count)
    optimizer = Optimizer(
        kind, state, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=weight_decay, momentum=0.7,
        clip_norm=clip_norm, averaging=0.0, muon=no_matrices(dtype),
    )  # fmt: skip
    values[:], grads[:], state[:] = 1, 1, 1
    assert update(group(values, grads), 0, count, optimizer, 1, 100.0)
    grads[:] = 1
    {"gradient": grads, "weight": values, "state": state[0]}[where][int(place * count)] = poison
    noticed = not update(group(values, grads), 0, count, optimizer, 2, 100.0)
    finite = np.isfinite(values).all()
    assert noticed or finite
    # A sum of a few numbers beyond a tenth of the largest may be infinite.
    if noticed and finite:
        assert np.abs(values).max() > np.finfo(dtype).max / 10
    if not math.isfinite(poison):
        assert noticed


@pytest.mark.parametrize("kind", [ADAM, SGD])
def test_a_norm_that_overflows_is_noticed(kind):
    """Shortened by an infinite norm a finite gradient would be zero."""
    values, grads = (aligned_zeros(16, np.dtype("float64")) for _ in range(2))
    state = aligned_zeros((2 - kind) * 16, np.dtype("float64")).reshape(-1, 16)
    none = no_matrices("float64")
    optimizer = Optimizer(kind, state, 0.8, 0.9, 1e-6, 0.0, 0.7, 1.0, 0.0, none)
    grads[3] = 1e200
    finite = update(group(values, grads), 0, 16, optimizer, 1, 1e200)
    assert not (finite and np.isfinite(state).all())


def test_squares_that_overflow_are_noticed():
    """Adam in float64: the moment is infinite from then on, and its weight stays as it is."""
    trainer = make("gpt", granularity="vector")
    linear = np.flatnonzero(trainer.compiled.program.tape_arrays.records[:, 0] == named("linear"))
    poison(trainer, int(linear[2]), BACKWARD, 1e200)
    with pytest.raises(DivergedError, match="the gradient is not finite, or too large"):
        trainer.advance(4)


@pytest.mark.parametrize(
    ("direction", "clip", "line"),
    [
        (FORWARD, (), "the loss is not finite (loss nan, --learning-rate 0.125): try a lower rate,"
         " or --clip-norm 1"),
        (BACKWARD, (), "the gradient is not finite, or too large (loss 1.*, --learning-rate 0.125):"
         " try a lower rate, or --clip-norm 1"),
        (BACKWARD, ("--clip-norm", "2"), "the gradient is not finite, or too large (loss 1.*,"
         " --learning-rate 0.125): try a lower rate"),
    ],
)  # fmt: skip
def test_nothing_is_saved(tmp_path, monkeypatch, capsys, direction, clip, line):
    """Also in the midst of a chunk of steps, and where every step is evaluated and saved."""
    data, out = tmp_path / "data.txt", tmp_path / "out"
    data.write_text("\n".join(DOCUMENTS))
    arguments = ["train", "--data", data, "--out", out, "--n-embd", "4", "--n-head", "2", *clip]
    arguments += ["--block-size", "3", "--batch-size", "2", "--learning-rate", "0.125"]
    arguments = [str(argument) for argument in [*arguments, "--quiet"]]
    assert main([*arguments, "--steps", "2"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    steps = []

    def make_poisoned(*given):
        trainer = Trainer(*given)
        steps.append(poisoned_step(trainer))
        linear = np.flatnonzero(
            trainer.compiled.program.tape_arrays.records[:, 0] == named("linear")
        )
        poison(trainer, int(linear[2]), direction, math.nan)
        return trainer

    monkeypatch.setattr(trainer_module, "Trainer", make_poisoned)
    capsys.readouterr()
    assert main([*arguments, "--steps", "9", "--overwrite"]) == 3
    expected = f"tapegpt: error: training diverged at step {steps[0] + 1}: {line}"
    found = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(re.escape(expected).replace(r"1\.\*", r"1\.\d+"), found), found
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
