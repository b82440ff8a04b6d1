"""Optimizers of any tape: against NumPy, against the trainer's update, and what they refuse."""

import numpy as np
import pytest
import references
from gradients import group

from tapegpt.errors import DivergedError
from tapegpt.kernels.loops.muon import no_matrices
from tapegpt.kernels.loops.optimizers import ADAM, SGD, Optimizer, update
from tapegpt.setting import DTYPES
from tapegpt.tape import Tape, TapeError
from tapegpt.tape.alignment import aligned_zeros

TOLERANCES = {"float32": 2e-5, "float64": 1e-12}
BETAS, EPS, DECAY = (0.8, 0.95), 1e-6, 0.1


class Regression:
    """A least-squares fit whose weights are arrays before and after others, and scalars."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        self.tape = Tape(dtype)
        self.x, self.y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
        self.w = self.tape.parameter(rng.normal(size=(2, 3)))
        x, y = self.tape.array(self.x), self.tape.array(self.y)
        made = self.tape.linear(x, self.w)
        self.b = self.tape.parameter(rng.normal(size=(1, 2)))
        self.factor = int(self.tape.scalar_parameters([0.7])[0])
        errors = (made + self.b) * self.tape.node(self.factor) - y
        self.loss = (errors * errors).mean()

    @property
    def leaves(self):
        return [self.w, self.b, self.tape.node(self.factor)]

    @property
    def values(self):
        return [np.array(leaf.value, np.float64) for leaf in self.leaves]

    def expected(self, values):
        """The loss and its gradients for these values of the leaves, by hand."""
        w, b, factor = values
        z = self.x @ w.T + b
        errors = z * factor - self.y
        d = 2 * errors / errors.size
        return (errors**2).mean(), [d.T @ self.x * factor, d.sum(0)[None] * factor, (d * z).sum()]


def sgd(w, g, state, step):
    speed = 0.5 * state.get("v", 0.0) + g
    state["v"] = speed
    return w - 0.1 * speed


def adam(w, g, state, step, decay=0.0, cautious=False):
    settings = (step, 0.1, *BETAS, EPS, decay, cautious)
    new, state["m"], state["v"] = references.adam(
        w, g, state.get("m", 0.0), state.get("v", 0.0), *settings
    )
    return new


MADE = {
    "sgd": (lambda tape, leaves: tape.sgd(leaves, lr=0.1, momentum=0.5), sgd),
    "adam": (lambda tape, leaves: tape.adam(leaves, lr=0.1, betas=BETAS, eps=EPS), adam),
    "adamw": (
        lambda tape, leaves: tape.adamw(leaves, lr=0.1, betas=BETAS, eps=EPS, weight_decay=DECAY),
        lambda *given: adam(*given, decay=DECAY),
    ),
    "cautious adamw": (
        lambda tape, leaves: tape.adamw(
            leaves, lr=0.1, betas=BETAS, eps=EPS, weight_decay=DECAY, cautious_decay=True
        ),
        lambda *given: adam(*given, decay=DECAY, cautious=True),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MADE)
def test_steps_are_those_of_the_papers(name, dtype):
    made, (make, reference), tolerance = Regression(dtype), MADE[name], TOLERANCES[dtype]
    opt, values, states = make(made.tape, None), made.values, [{}, {}, {}]
    losses = [opt.step(made.loss), *opt.step(made.loss, n=4), *opt.step(made.loss, n=1)]
    assert opt.steps == 6
    for step, found in enumerate(losses, 1):
        loss, gradients = made.expected(values)
        assert found == pytest.approx(loss, rel=tolerance)
        values = [
            reference(w, g, state, step)
            for w, g, state in zip(values, gradients, states, strict=True)
        ]
    for found, wanted, leaf, slope in zip(made.values, values, made.leaves, gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        # Gradients of the last step stay; values are computed anew.
        np.testing.assert_allclose(leaf.grad, slope, rtol=0, atol=10 * tolerance)
    assert made.loss.value == pytest.approx(made.expected(values)[0], rel=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [ADAM, SGD])
def test_the_update_is_that_of_the_trainer_to_the_bit(kind, dtype):
    """The trainer's kernel on the first parameters, after sweeps that Python asks for."""
    tapes, losses = [Tape(dtype), Tape(dtype)], []
    rng = np.random.default_rng(1)
    weights, rows = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    for tape in tapes:
        w = tape.parameter(weights)
        v = tape.parameter(weights.T[:, :2])
        x = tape.linear(tape.linear(tape.array(rows), w).tanh()[:, :2], v)
        losses.append((x * x).mean())
    first, second = tapes
    settings = {"betas": (0.85, 0.99), "weight_decay": 0.1}
    opt = first.adamw(lr=0.05, **settings) if kind == ADAM else first.sgd(lr=0.05, momentum=0.9)
    found = opt.step(losses[0], n=5)

    count = second.num_params
    state = aligned_zeros(2 * count, np.dtype(dtype)).reshape(2, count)
    kernel = Optimizer(
        kind, state, 0.85, 0.99, 1e-8, 0.1, 0.9, np.inf, 0.0, no_matrices(np.dtype(dtype))
    )
    expected = []
    for step in range(1, 6):
        second.backward(losses[1])
        expected.append(losses[1].value)
        shared = group(second.values[:count], second.grads[:count])
        assert update(shared, 0, count, kernel, step, 0.05)
        second.forward()
    assert found.tolist() == expected
    assert first.values[:count].tobytes() == second.values[:count].tobytes()


@pytest.mark.parametrize("product", ["linear", "x @ w", "w @ x", "x @ w of itself"])
def test_products_pass_what_is_fixed_no_gradient(product):
    rng, tape = np.random.default_rng(2), Tape()
    w = tape.parameter(rng.normal(size=(5, 5)))
    kept = tape.parameter(rng.normal(size=(5, 5)))
    x = tape.array(rng.normal(size=(5, 5)))
    made = {"linear": lambda: tape.linear(x, w), "x @ w": lambda: x @ w, "w @ x": lambda: w @ x}
    result = made[product]() if product in made else (x @ w) @ (w @ w)
    loss = ((result + kept) * x).mean()
    tape.backward(loss)
    before, other, expected, data = w.value, kept.value, w.grad, x.grad
    opt = tape.sgd([w, kept], lr=0.5)
    opt.step(loss)
    np.testing.assert_allclose(w.value, before - 0.5 * expected, rtol=1e-12)
    np.testing.assert_allclose(w.grad, expected, rtol=1e-12)
    for _ in range(2):
        with pytest.raises(TapeError, match=r"is fixed.*call backward first"):
            _ = x.grad
        opt.step(loss, n=2)
    tape.set_value(w, before)
    tape.set_value(kept, other)
    tape.backward(loss)
    np.testing.assert_allclose(x.grad, data, rtol=1e-9)


def test_what_is_computed_from_fixed_arrays_alone_gets_no_gradient():
    rng, tape = np.random.default_rng(3), Tape()
    frozen, w = (tape.parameter(rng.normal(size=(4, 4))) for _ in range(2))
    x = tape.array(rng.normal(size=(5, 4)))
    hidden = tape.linear(tape.rmsnorm(x), frozen).tanh()
    out = tape.linear(hidden, w, residual=hidden)
    loss = (out * out).mean()
    tape.backward(loss)
    before, expected, others = w.value, w.grad, [node.grad for node in (x, frozen, hidden)]
    opt = tape.sgd([w], lr=0.5)
    for _ in range(2):
        tape.set_value(w, before)
        opt.step(loss)
        np.testing.assert_allclose(w.grad, expected, rtol=1e-12)
        for node in (x, frozen, hidden):
            with pytest.raises(TapeError, match=r"is fixed.*call backward first"):
                _ = node.grad
    tape.set_value(w, before)
    tape.backward(loss)
    for node, grad in zip((x, frozen, hidden), others, strict=True):
        np.testing.assert_allclose(node.grad, grad, rtol=1e-12)
    tape.sgd([frozen], lr=0.5).step(loss)  # through the other one, which stays as it is
    np.testing.assert_allclose(frozen.grad, others[1], rtol=1e-12)


GRAPHS = {
    "twice by one record": lambda tape, u, w, x: (u @ u) @ w + w * w,
    "by several records": lambda tape, u, w, x: (
        tape.linear(tape.linear(x @ u, w), w, residual=u) + u
    ),
    "as a table too": lambda tape, u, w, x: tape.linear(tape.embed((u, [1, 3, 0, 1])), u) @ w,
    "one row of it": lambda tape, u, w, x: tape.linear(x[:1], u) + w[2:3] * u,
    "by scalars too": lambda tape, u, w, x: tape.linear(x, u) * tape.exp(tape.mean(w @ u)),
    "by nobody": lambda tape, u, w, x: tape.linear(x, u).tanh(),
}


@pytest.mark.parametrize("leaves", ["all", "first", "second"])
@pytest.mark.parametrize("used", GRAPHS)
def test_gradients_of_a_step_are_those_of_backward(used, leaves):
    """Also where a record overwrites what the step before left, instead of adding to zero."""
    rng, tape = np.random.default_rng(4), Tape()
    u, w = (tape.parameter(rng.normal(size=(4, 4))) for _ in range(2))
    x = tape.array(rng.normal(size=(4, 4)))
    out = GRAPHS[used](tape, u, w, x)
    loss = (out * out).mean()
    other = (tape.linear(out, w) * u).mean()
    moved = {"all": [u, w], "first": [u], "second": [w]}[leaves]
    opt = tape.sgd(None if leaves == "all" else moved, lr=1e-3)
    for root in (loss, other, loss, loss):
        tape.backward(root)
        expected = [node.grad for node in moved]
        before = [node.value for node in moved]
        tape.grads[:] = 1e9 * (tape.grads != 0)  # as a step before would have left them
        opt.step(root)
        for node, value, grad in zip(moved, before, expected, strict=True):
            np.testing.assert_allclose(node.grad, grad, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(node.value, value - 1e-3 * grad, rtol=1e-12, atol=1e-12)


def test_what_one_optimizer_holds_fixed_another_moves():
    tape = Tape()
    x, w = tape.parameter([[1.0, 2.0]]), tape.parameter([[3.0], [4.0]])
    loss = (x @ w).mean()
    first, second = tape.sgd([w], lr=0.1), tape.sgd([x], lr=0.1)
    first.step(loss)
    assert w.value.ravel().tolist() == pytest.approx([2.9, 3.8])
    second.step(loss)
    assert x.value.ravel().tolist() == pytest.approx([0.71, 1.62])
    assert x.grad.ravel().tolist() == pytest.approx([2.9, 3.8])
    mark = tape.mark()
    tape.reset(mark)
    with pytest.raises(TapeError, match="is fixed"):
        _ = w.grad
    tape.reset()


def test_named_leaves_alone_move():
    made = Regression("float64")
    before = made.values
    opt = made.tape.sgd([made.b], lr=0.1)
    losses = opt.step(made.loss, n=30)
    after = made.values
    assert losses[-1] < losses[0]
    assert (before[0] == after[0]).all() and before[2] == after[2]
    assert (before[1] != after[1]).all()


def test_scalars_that_lie_between_others_are_moved_alone():
    tape = Tape()
    x, fixed, y = tape.var(3.0), tape.var(5.0), tape.var(4.0)
    loss = x * x + fixed * y * y
    assert tape.sgd([y, x], lr=0.05).step(loss) == 89
    assert [node.value for node in (x, fixed, y)] == [2.7, 5.0, 2.0]
    ids = tape.variables(np.arange(4.0))
    tape.sgd(ids, lr=0.25).step(tape.dot(list(ids), list(ids)))
    assert [tape.value(int(node)) for node in ids] == [0, 0.5, 1, 1.5]


def test_values_set_between_steps_and_another_rate_count():
    tape = Tape()
    x = tape.var(1.0)
    loss = x * x
    opt = tape.sgd([x], lr=0.25)
    assert opt.step(loss) == 1 and x.value == 0.5
    x.value, opt.lr = 4.0, 0.5
    assert opt.step(loss) == 16 and x.value == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_muon_moves_matrices_and_adamw_the_rest(dtype):
    tape, rng = Tape(dtype), np.random.default_rng(2)
    weights, row = rng.normal(size=(6, 4)), rng.normal(size=(1, 6))
    left = tape.parameter(row)
    w = tape.parameter(weights)
    goal = tape.array(rng.normal(size=(1, 4)))
    error = left @ w - goal
    loss = (error * error).mean()
    opt = tape.muon([w], lr=0.02, adam_lr=0.005, momentum=0.9, weight_decay=0.2)
    expected, m, adams = [row, weights], 0.0, {"m": 0.0, "v": 0.0}
    for step in (1, 2, 3):
        a, b = expected
        d = 2 * (a @ b - goal.value) / 4
        moved, m = references.muon(b, a.T @ d, m, 0.02, 0.9, 0.2)
        settings = (step, 0.005, 0.9, 0.999, 1e-8, 0.2)
        rest, adams["m"], adams["v"] = references.adam(
            a, d @ b.T, adams["m"], adams["v"], *settings
        )
        expected = [rest, moved]
        opt.step(loss)
    tolerance = {"float32": 2e-4, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(left.value, expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(w.value, expected[1], rtol=0, atol=tolerance)


def test_what_diverges_leaves_the_tape_as_before():
    tape = Tape()
    x = tape.var(2.0)
    opt = tape.sgd([x], lr=1e308)
    with pytest.raises(DivergedError, match="step 1: the update is not finite"):
        opt.step(x * x * 1e10, n=3)
    assert x.value == 2
    y = tape.var(0.0)
    with pytest.raises(DivergedError, match="step 1: the loss is not finite"):
        tape.sgd([y]).step(tape.log(y), n=3)


def test_parameters_at_any_time():
    tape = Tape()
    w = tape.parameter([[1.0, 2.0]])
    x = tape.relu(w)
    v = tape.parameter([[3.0]])
    assert tape.num_params < v.id
    loss = (x * v).mean()
    for _ in range(2):  # of late parameters too
        tape.backward(loss, accumulate=True)
    assert (w.grad.tolist(), v.grad.tolist()) == ([[3, 3]], [[3]])
    tape.reset()
    assert len(tape) == tape.num_params
    tape.backward(tape.sum(tape.relu(w)), accumulate=True)
    assert w.grad.tolist() == [[4, 4]]


def test_optimizers_know_what_was_recorded_or_forgotten():
    tape = Tape()
    w = tape.parameter([[1.0]])
    here = tape.mark()
    late = tape.parameter([[2.0]])
    loss = (w * late).mean()
    first, second = tape.sgd(lr=0.5), tape.sgd([w], lr=0.5)
    assert first.step(loss) == second.step(loss) * 0 + 2
    tape.reset(here)
    with pytest.raises(TapeError, match="forgotten by a reset"):
        first.step(tape.mean(w))
    second.step(tape.mean(w))
    opt = tape.adam()
    opt.step(tape.mean(w))
    tape.parameter([[1.0]])
    with pytest.raises(TapeError, match="make a new one"):
        opt.step(tape.mean(w))


def test_misuse_of_optimizers():
    tape = Tape()
    x = tape.var(1.0)
    y = tape.exp(x)
    for use, message in (
        (lambda: tape.adam().step(x), "nothing to move"),
        (lambda: tape.adam([]).step(x), "nothing to move"),
        (lambda: tape.adam([x, x]).step(x), "node 0 twice"),
        (lambda: tape.adam([y]).step(x), "result of an operation"),
        (lambda: tape.adam([x], lr=0), "lr: 0 is not a finite number above 0"),
        (lambda: tape.adam([x], lr=np.nan), "lr: nan"),
        (lambda: tape.adam([x], betas=(0.9, 1)), "betas: 1 is not"),
        (lambda: tape.adam([x], betas=0.9), "is not two numbers"),
        (lambda: tape.adam([x], eps=-1.0), "eps: -1.0"),
        (lambda: tape.adamw([x], weight_decay="1"), "weight_decay: '1'"),
        (lambda: tape.sgd([x], momentum=1.0), "momentum: 1.0"),
        (lambda: tape.sgd([x]).step(y, n=0), "number of steps"),
        (lambda: tape.sgd([x]).step(tape.array([1.0])), "is an array"),
        (lambda: tape.adam(5), "wants a list of leaves"),
        (lambda: tape.muon([]), "at least one matrix"),
        (lambda: tape.muon([x]), "is a scalar"),
    ):
        with pytest.raises(TapeError, match=message):
            use()
