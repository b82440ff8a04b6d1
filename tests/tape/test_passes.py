"""Passes over a recorded program: what they change in it, and that its results stay."""

from contextlib import nullcontext
from dataclasses import replace

import matrix_unit
import numpy as np
import pytest
from gradients import loss_and_gradients
from opcodes import all_named, gradient_rooms, has_gradients, named

from tapegpt.corpus import Tokenizer, tokenize
from tapegpt.graph import compile as program
from tapegpt.graph.fusion import fuse_relu, join_linears, joint_width
from tapegpt.graph.memory_plan import mark_overwritten, share_gradients, share_values
from tapegpt.kernels.compile.cpu import MATRIX_UNIT, VECTOR_BYTES
from tapegpt.kernels.interpreter import forward_sweep, reverse_sweep
from tapegpt.kernels.layout import NONE, BatchRange
from tapegpt.kernels.op import DOUT, place
from tapegpt.kernels.ops import linear
from tapegpt.kernels.ops.product.amx import AMX_LEAST
from tapegpt.kernels.ops.product.matrix import IDENTITY, RELU
from tapegpt.setting import DTYPES
from tapegpt.settings import ModelConfig
from tapegpt.tape import Tape
from tapegpt.tape.alignment import ALIGNMENT

# Places in the argument list of a linear, and of gradients in the list for the reverse sweep.
START, ACTIVATION, ACTIVATION_OF_X = (
    place(linear.Args, name) for name in ("start", "activation", "activation_of_x")
)
DX = DOUT + 1
MODEL = ModelConfig(n_layer=2, n_embd=10, n_head=5, block_size=6)
DOCUMENTS = ["ab", "b", "abcab", "cabbage", "a", "bca"]
NO_WINDOW = BatchRange(0, 0, 0, 0)


def parameters(tape, *shapes):
    rng = np.random.default_rng(0)
    return [tape.parameter(rng.normal(size=shape)) for shape in shapes]


def opcodes(tape_arrays):
    return tape_arrays.records[:, 0].tolist()


def as_bytes(tape_arrays):
    return [array.tobytes() for array in tape_arrays]


def fresh(tape_arrays):
    """Which gradients each kind of record overwrites."""
    return {
        opcode: int(tape_arrays.operands[back])
        for opcode, _, _, back in tape_arrays.records.tolist()
        if has_gradients(opcode)
    }


def activations(tape_arrays):
    """(that of the result, that of x) of every linear."""
    return [
        tuple(tape_arrays.operands[[at + ACTIVATION, at + ACTIVATION_OF_X]].tolist())
        for opcode, _, at, _ in tape_arrays.records
        if opcode in all_named("linear")
    ]


def perceptron(dtype="float64", extra=None):
    """A tape with linear, relu, linear, what `extra` records between and the mean of it all."""
    tape = Tape(dtype)
    w, u = parameters(tape, (40, 7), (7, 40))
    x = tape.array(np.random.default_rng(1).normal(size=(5, 7)))
    hidden = tape.linear(x, w)
    active = tape.relu(hidden)
    out = tape.linear(active, u, residual=x)
    if extra is not None:
        out = tape.add(out, extra(tape, x, hidden, active, u))
    root = tape.mean(out)
    tape.backward(root)
    return tape, x, root


def replayed(tape, x, root, tape_arrays):
    """The root, the parameters' gradients and dx; other gradients are not to be read first."""
    root = root.id
    tape_arrays.values[root] = np.nan
    tape_arrays.grads[:] = 1e9
    tape_arrays.grads[: tape.num_params] = 0
    tape_arrays.grads[root] = 1
    # Rows and columns end in zeros, in gradients as in values.
    for node, shape in tape._shapes.items():
        rows = tape_arrays.grads[node : node + shape.rows * shape.stride].reshape(shape.rows, -1)
        rows[:, shape.width :] = 0
    forward_sweep(tape_arrays, 0, len(tape_arrays.records), NO_WINDOW)
    reverse_sweep(tape_arrays, 0, len(tape_arrays.records), NO_WINDOW)
    return tape_arrays.values[root], tape_arrays.grads[: tape.num_params].copy(), tape.grad(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_relu_between_linears_becomes_part_of_them(dtype):
    tape, x, root = perceptron(dtype)
    tape_arrays = mark_overwritten(tape._replay_arrays(), tape.num_params)
    before = as_bytes(tape_arrays)
    fused = mark_overwritten(fuse_relu(tape._replay_arrays()), tape.num_params)
    assert opcodes(fused) == [
        opcode for opcode in opcodes(tape_arrays) if opcode != named("array_relu")
    ]
    assert activations(tape_arrays) == [(IDENTITY, IDENTITY)] * 2
    assert activations(fused) == [(RELU, IDENTITY), (IDENTITY, RELU)]
    assert as_bytes(tape_arrays) == before
    for plain, other in zip(
        replayed(tape, x, root, tape_arrays), replayed(tape, x, root, fused), strict=True
    ):
        np.testing.assert_array_equal(plain, other)
        assert np.abs(plain).max() > 1e-3


OTHER_USES = {
    "of the linear": lambda tape, x, hidden, active, u: tape.linear(hidden, u),
    "of the linear, added": lambda tape, x, hidden, active, u: tape.linear(
        tape.add(hidden, hidden), u
    ),
    "of the relu": lambda tape, x, hidden, active, u: tape.linear(tape.scale(active, 2), u),
    "of the relu, by a linear": lambda tape, x, hidden, active, u: tape.linear(active, u),
    "another relu": lambda tape, x, hidden, active, u: tape.linear(tape.relu(hidden), u),
}


@pytest.mark.parametrize("extra", OTHER_USES.values(), ids=OTHER_USES)
def test_a_relu_stays_where_somebody_else_listens(extra):
    tape, *_ = perceptron(extra=extra)
    tape_arrays = tape._replay_arrays()
    assert as_bytes(fuse_relu(tape_arrays)) == as_bytes(tape_arrays)


def test_a_relu_stays_where_no_linear_follows_or_precedes():
    tape = Tape()
    w, u = parameters(tape, (7, 7), (7, 7))
    x = tape.array(np.ones((5, 7)))
    tape.mean(tape.add(tape.relu(tape.linear(x, w)), tape.linear(tape.relu(x), u)))
    tape_arrays = tape._replay_arrays()
    assert as_bytes(fuse_relu(tape_arrays)) == as_bytes(tape_arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_the_same_with_relus_fused(dtype, monkeypatch):
    tokenizer = Tokenizer.from_documents(DOCUMENTS)
    corpus = tokenize(DOCUMENTS, tokenizer)
    results = []
    for fuse in (fuse_relu, lambda tape_arrays: tape_arrays):
        monkeypatch.setattr(program, "fuse_relu", fuse)
        compiled = program.compiled_model(
            MODEL, tokenizer.vocab_size, "vector", dtype, len(DOCUMENTS)
        )
        rng = np.random.default_rng(0)
        for weight in compiled.weights.values():
            weight[:] = rng.normal(size=weight.shape) * 0.5
        codes = opcodes(compiled.program.tape_arrays)
        results.append((codes, *loss_and_gradients(compiled, corpus, 0, len(DOCUMENTS))))
    (fused_codes, fused_loss, fused_gradients), (codes, loss, gradients) = results
    assert codes.count(named("array_relu")) == MODEL.n_layer
    assert fused_codes == [code for code in codes if code != named("array_relu")]
    assert fused_loss == loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(fused_gradients[name], gradient)


def test_the_last_to_use_an_array_overwrites_its_gradient():
    tape = Tape()
    (w,) = parameters(tape, (3, 3))
    x = tape.array(np.ones((2, 3)))
    h = tape.linear(x, w, residual=x)
    a = tape.scale(h, 2.0)
    b = tape.add(a, h)
    tape.mean(tape.attention(b, h, a, 3))
    tape_arrays = tape._replay_arrays()
    before = as_bytes(tape_arrays)
    marked = mark_overwritten(tape_arrays, tape.num_params)
    assert as_bytes(tape_arrays) == before
    # a and h are used last, and b alone, by attention; x twice by the linear, which adds the
    # second time.
    assert fresh(marked) == {
        named("linear"): 0b01,
        named("array_scale"): 0,
        named("array_add"): 0,
        named("attention"): 0b111,
        named("array_mean"): 0b1,
    }
    assert (marked.records == tape_arrays.records).all()


def test_gradients_of_parameters_are_always_added_to():
    tape = Tape()
    (w,) = parameters(tape, (3, 3))
    tape.mean(tape.add(tape.relu(w), w))
    marked = mark_overwritten(tape._replay_arrays(), tape.num_params)
    assert fresh(marked) == {
        named("array_relu"): 0,
        named("array_add"): 0b01,
        named("array_mean"): 0b1,
    }


def unchanged(tape_arrays, *_, **__):
    return tape_arrays


def measured(model, dtype, documents=DOCUMENTS, scale=0.5):
    """Opcodes, loss and gradients of a recorded model with random weights, twice over a batch."""
    tokenizer = Tokenizer.from_documents(documents)
    corpus = tokenize(documents, tokenizer)
    compiled = program.compiled_model(model, tokenizer.vocab_size, "vector", dtype, len(documents))
    rng = np.random.default_rng(0)
    for weight in compiled.weights.values():
        weight[:] = rng.normal(size=weight.shape) * scale
    loss_and_gradients(compiled, corpus, 2, 3)  # leaves something where gradients lie
    return compiled.program.tape_arrays, *loss_and_gradients(compiled, corpus, 0, len(documents))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.3},
        {"ensemble": 3},
        {"look_back": 2},
        {"n_embd": 70},
        {"n_layer": 4},
        {"n_embd": 65, "block_size": 20},
    ],
    ids=str,
)
def test_sharing_places_changes_no_result(dtype, changes, monkeypatch):
    model = replace(MODEL, **changes)
    tape_arrays, loss, gradients = measured(model, dtype)
    for name in ("share_values", "share_gradients"):
        monkeypatch.setattr(program, name, unchanged)
        plain, plain_loss, plain_gradients = measured(model, dtype)
        assert opcodes(plain) == opcodes(tape_arrays)
        assert plain_loss == loss
        for weights, gradient in plain_gradients.items():
            np.testing.assert_array_equal(gradient, gradients[weights])
    assert (plain.operands != tape_arrays.operands).any()
    assert (plain.records != tape_arrays.records).any()


def test_wide_models_follow_float64():
    """On a matrix unit, where it can be emulated at least: each with another activation."""
    model = ModelConfig(n_embd=AMX_LEAST, block_size=16, n_layer=2)
    assert len(DOCUMENTS) * 16 >= AMX_LEAST
    documents = [(2 * document + "cabbage")[:15] for document in DOCUMENTS * 2]
    emulating = VECTOR_BYTES == 64 and not MATRIX_UNIT
    with matrix_unit.emulated() if emulating else nullcontext():
        tape_arrays, loss, gradients = measured(model, "float32", documents, 0.1)
    wide = [at for opcode, _, at, _ in tape_arrays.records if opcode == named("linear", 1)]
    assert len(wide) == (8 if MATRIX_UNIT or emulating else 0)
    double, expected_loss, expected = measured(model, "float64", documents, 0.1)
    assert named("linear", 1) not in opcodes(double)
    assert activations(tape_arrays) == activations(double)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected.items():
        difference = np.linalg.norm(gradients[name] - gradient)
        assert difference <= 1e-5 * np.linalg.norm(gradient), name


def without_joints(*_):
    return 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ensemble": 3},
        {"look_back": 2, "dropout": 0.3},
        {"n_embd": 70},
        {"n_embd": 16, "n_head": 4},
        {"n_embd": 3, "n_head": 1},
        {"n_embd": 96, "n_head": 3},
    ],
    ids=str,
)
def test_q_k_and_v_of_one_product_are_those_of_three(changes, monkeypatch):
    model = replace(MODEL, **changes)
    tape_arrays, loss, gradients = measured(model, "float64")
    monkeypatch.setattr(program, "joint_width", without_joints)
    plain, plain_loss, plain_gradients = measured(model, "float64")
    linears, attentions = (
        [codes.count(code) for codes in map(opcodes, (plain, tape_arrays))]
        for code in (named("linear"), attention_of(plain))
    )
    assert attentions[0] == attentions[1] == model.n_layer * model.ensemble
    # Where vectors are narrow, matrices of odd sizes have gaps between them.
    numbers = model.n_embd * Tape("float64")._stride(model.n_embd)
    one_matrix = numbers * 8 % ALIGNMENT == 0
    assert one_matrix or model.n_embd != MODEL.n_embd or Tape("float64").lanes < 4
    assert linears[0] - linears[1] == (2 * attentions[0] if one_matrix else 0)
    assert loss == pytest.approx(plain_loss, rel=1e-13)
    for name, gradient in plain_gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=1e-13 * scale)


def attention_of(tape_arrays):
    return next(code for code in opcodes(tape_arrays) if code in all_named("attention"))


def three_linears(tape, x, weights, residual=None):
    """A tape's arrays with the attention of three products."""
    q, k, v = (tape.linear(x[i], weights[i], residual) for i in range(3))
    tape.attention(q, k, v, 2)
    return tape._replay_arrays()


def test_what_is_not_one_product_stays_three():
    tape = Tape()
    a, b, c, narrow = parameters(tape, (4, 5), (4, 5), (4, 5), (4, 3))
    apart = tape.parameter(np.ones((4, 5)))
    x, y, z = (tape.array(np.ones((2, width))) for width in (5, 5, 3))
    added = tape.array(np.ones((2, 4)))
    mark = tape.mark()
    assert joint_width(three_linears(tape, [x] * 3, [a, b, c]), tape._stride) == 12
    for xs, weights, residual in (
        ([x, y, x], [a, b, c], None),
        ([x, x, x], [a, c, b], None),
        ([x, x, x], [a, b, apart], None),
        ([x, x, z], [b, c, narrow], None),
        ([x, x, x], [a, b, c], added),
    ):
        tape.reset(mark)
        tape_arrays = three_linears(tape, xs, weights, residual)
        if residual is not None:  # the first alone
            for at in tape_arrays.records[tape_arrays.records[:, 0] == named("linear")][1:, 2]:
                tape_arrays.operands[at + START] = NONE
        assert joint_width(tape_arrays, tape._stride) == 0
        joined = join_linears(tape_arrays, tape.extents, tape._stride, 0)
        assert as_bytes(joined) == as_bytes(tape_arrays)


def gradient_places(tape_arrays):
    """Where the gradients of results lie, and those that attention keeps to itself."""
    places, own = [], []
    for opcode, _, _, back in tape_arrays.records.tolist():
        if has_gradients(opcode):
            places.append(int(tape_arrays.operands[back + DOUT]))
        if gradient_rooms(opcode):
            own.append(set(tape_arrays.operands[back + DX + 3 : back + DX + 8].tolist()))
    return places, own


@pytest.mark.parametrize("n_layer", [1, 2, 5])
def test_more_layers_need_no_more_places_for_gradients(n_layer):
    tape_arrays, *_ = measured(replace(MODEL, n_embd=24, n_head=4, n_layer=n_layer), "float64")
    places, own = gradient_places(tape_arrays)
    # Those of the loss, the logits and the hidden layer; of the residual stream, of q, k and v
    # together, and of what attention or a normalisation gives.
    assert len(set(places)) == 3 + 3
    assert len(own) == n_layer
    assert all(room == own[0] for room in own)


def test_what_is_added_to_stays_in_its_place():
    """The residual stream of a GPT is one array, and so is its gradient."""
    tape_arrays, *_ = measured(replace(MODEL, n_layer=5), "float64")
    added = [
        (
            int(tape_arrays.operands[at + START]),
            out,
            tape_arrays.operands[back + DOUT : back + DOUT + 3],
        )
        for opcode, out, at, back in tape_arrays.records.tolist()
        if opcode == named("linear") and tape_arrays.operands[at + START] != NONE
    ]
    assert len(added) == 10
    # The first adds to what a normalisation needs again, and lm_head needs what the last gives.
    assert [start == out for start, out, _ in added] == [False] + [True] * 8 + [False]
    for _, _, (dout, _, dstart) in added:
        assert dstart == dout


def test_places_of_values_that_are_needed_again_are_not_shared():
    tape = Tape()
    (w,) = parameters(tape, (8, 8))
    x = tape.array(np.random.default_rng(1).normal(size=(2, 8)))
    kept = tape.linear(x, w)
    last = tape.add(kept, x)
    for _ in range(3):
        last = tape.softmax(tape.relu(tape.rmsnorm(tape.scale(tape.linear(last, w), 2.0))))
    root = tape.mean(tape.add(tape.scale(last, 3.0), last))
    tape.backward(root)
    tape_arrays = mark_overwritten(tape._replay_arrays(), tape.num_params)
    tape_arrays = share_gradients(tape_arrays, tape.num_params, tape.extents)
    before = as_bytes(tape_arrays)
    shared = share_values(tape_arrays, tape.extents, keep=[kept.id])
    assert as_bytes(tape_arrays) == before
    assert len(set(shared.records[:, 1])) < len(set(tape_arrays.records[:, 1]))
    expected, value = replayed(tape, x, root, tape_arrays), tape.value(kept)
    for plain, other in zip(expected, replayed(tape, x, root, shared), strict=True):
        np.testing.assert_array_equal(plain, other)
    np.testing.assert_array_equal(tape.value(kept), value)


@pytest.mark.parametrize("model", ["rnn", "rnn-att"])
def test_what_goes_on_to_the_next_position_is_not_shared(model):
    recurrent = ModelConfig(model=model, n_embd=7, n_state=7, n_att=3, block_size=6)
    tape_arrays, *_ = measured(recurrent, "float64")
    for lie in (tape_arrays.records[:, 1].tolist(), gradient_places(tape_arrays)[0]):
        assert len(set(lie)) == len(lie)
