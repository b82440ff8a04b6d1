"""Chains of elementwise records in the steps of an optimizer: what is fused, and to what end."""

import numpy as np
import pytest

from tapegpt.optim import chains
from tapegpt.optim.packing import packing_of
from tapegpt.setting import DTYPES
from tapegpt.tape import Tape, TapeError

TOLERANCES = {"float32": 2e-5, "float64": 1e-12}
RATE = 0.1

CHAINS = {
    "gate": lambda x, y: x * y + y * x.sigmoid(),
    "numbers beside it": lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
    "padding is not 0": lambda x, y: (x / y).exp() + (1 / (x * x)).log(),
    "choices": lambda x, y: x.tape.where(x < y, x * y, (x - y).relu()) + abs(y).sqrt(),
    "one twice": lambda x, y: (x * y) * (x * y) + x.tape.detach(x) * y,
    "powers": lambda x, y: x**0.5 * y**-1.0 - (-x).tanh() * x.tape.power(y, x),
}


@pytest.fixture
def fused(monkeypatch):
    """Chains of any size are worth it."""
    monkeypatch.setattr(chains, "LEAST_SAVED", 0)


def tape_of_large_ids(dtype="float64"):
    """Sizes are no ids of what follows, so nothing looks as if others read it."""
    tape = Tape(dtype)
    tape.parameter(np.zeros((16, 64)))
    return tape


def records_of(opt):
    return len(opt._fixed[1].records)


def leaves_after(formula, dtype, width, steps):
    """The leaves and losses after steps, and the optimizer."""
    rng, tape = np.random.default_rng(0), tape_of_large_ids(dtype)
    x, y = (tape.parameter(rng.uniform(0.5, 1.5, (5, width))) for _ in range(2))
    opt = tape.sgd(lr=RATE)
    losses = opt.step(formula(x, y).mean(), n=steps)
    return np.array([x.value, y.value]), losses, opt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("name", CHAINS)
def test_steps_are_those_without_fusing(name, width, dtype, monkeypatch):
    plain, losses, opt = leaves_after(CHAINS[name], dtype, width, 3)
    monkeypatch.setattr(chains, "LEAST_SAVED", 0)
    fused, same_losses, fused_opt = leaves_after(CHAINS[name], dtype, width, 3)
    assert (records_of(opt) > 3, records_of(fused_opt)) == (True, 2)
    assert fused == pytest.approx(plain, rel=TOLERANCES[dtype], abs=TOLERANCES[dtype])
    assert same_losses == pytest.approx(losses, rel=TOLERANCES[dtype])


def test_values_within_are_right_and_gradients_are_refused(fused):
    tape = tape_of_large_ids()
    x, data = tape.parameter([[1.0, 2.0, 3.0]]), tape.array([[3.0, 2.0, 5.0]])
    within = x * data
    out = within.tanh() * 2
    loss = out.mean()
    opt = tape.sgd(lr=RATE)
    opt.step(loss, n=2)
    assert records_of(opt) == 2
    assert (within.value == x.value * data.value).all()
    assert (out.value == np.tanh(within.value) * 2).all()
    for node in (within, data):
        with pytest.raises(TapeError, match=r"within a chain.*call backward first"):
            tape.grad(node)
    tape.backward(loss)
    assert within.grad == pytest.approx(2 / 3 * (1 - np.tanh(within.value) ** 2))
    assert data.grad == pytest.approx(within.grad * x.value)


def test_what_others_read_is_computed(fused):
    tape = tape_of_large_ids()
    x = tape.parameter([[1.0, 2.0]])
    shared = (x * x).exp()
    loss = (shared * shared).mean() + shared[:1, 1:].mean() + tape.matmul(shared, x.T).mean()
    opt = tape.sgd(lr=1e-9)
    tape.backward(loss)
    gradient = x.grad
    opt.step(loss)
    assert tape.grad(x) == pytest.approx(gradient)
    assert tape.grad(shared).any()


def test_a_gradient_of_0_stays_0_beside_what_is_infinite(fused):
    tape = tape_of_large_ids()
    x = tape.parameter([[1.0, 1000.0]])
    loss = tape.where(x < 2.0, x.exp() * x.exp(), x * 0).mean()
    opt = tape.sgd(lr=RATE)
    opt.step(loss)
    assert records_of(opt) == 2
    assert x.value[0, 1] == 1000
    assert x.value[0, 0] == pytest.approx(1 - RATE * np.e**2)


def test_constants_may_change(fused):
    tape = tape_of_large_ids()
    x, factor = tape.parameter([[2.0]]), tape.constant(3.0)
    loss = (x**2 * factor).mean()
    opt = tape.sgd(lr=RATE)
    opt.step(loss)
    assert x.value == pytest.approx(2 - RATE * 12)
    tape.set_value(x, [[2.0]])
    tape.set_value(factor, 4.0)
    opt.step(loss)
    assert x.value == pytest.approx(2 - RATE * 16)
    ((exponent, _),) = opt._fixed[1].numbers
    tape.set_value(x, [[2.0]])
    tape.set_value(exponent, 3.0)
    assert opt.step(loss) == 32
    assert x.value == pytest.approx(2 - RATE * 48)


def test_a_scalar_that_is_moved_gets_its_gradient(fused):
    tape = tape_of_large_ids()
    x = tape.parameter([[1.0, 2.0]])
    factor = tape.node(int(tape.scalar_parameters([3.0])[0]))
    loss = ((x + x) * factor * 2.0).exp().mean()
    tape.backward(loss)
    gradient = factor.grad
    tape.sgd(lr=1e-9).step(loss)
    assert factor.grad == pytest.approx(gradient)


@pytest.mark.parametrize(("rows", "records"), [(16, 3), (4096, 2)])
def test_only_large_arrays_are_fused(rows, records):
    tape = Tape("float32")
    x = tape.parameter(np.ones((rows, 64)))
    opt = tape.sgd(lr=RATE)
    opt.step((x * x + x).mean())
    assert records_of(opt) == records


def test_chains_that_are_alike_share_an_operation_and_long_ones_are_cut(fused):
    tape = tape_of_large_ids()
    x = tape.parameter([[0.5, 0.25]])
    y = x
    for _ in range(3):
        y = tape.matmul(y.sin().cos(), tape.array(np.eye(2)))
    for _ in range(chains.MOST_STEPS + 2):
        y = y.sin()
    loss = y.mean()
    opt = tape.sgd(lr=RATE)
    tape.backward(loss)
    gradient = x.grad
    opt.step(loss)
    codes = opt._fixed[1].records[:, 0].tolist()
    assert len(set(codes[0:6:2])) == 1
    assert len(codes) == 3 * 2 + 2 + 1
    assert x.grad == pytest.approx(gradient)


def test_rows_of_a_batch_are_left_as_they_are(fused):
    tape = tape_of_large_ids()
    table = tape.parameter([[0.5]])
    tape.batch(2, 3)
    x = tape.embed((table, tape.batch_input(1)))
    (x * x + x).sigmoid()
    end = len(tape._record_rows())
    assert len(chains.fuse_chains(tape, packing_of(tape, None), end).records) == end


def test_a_power_with_an_unusual_exponent_is_left_apart(fused):
    tape = tape_of_large_ids()
    x = tape.parameter(np.full((3, 4), 0.5))
    opt = tape.sgd(lr=RATE)
    for exponent in (1.7, np.nan):
        opt.step(tape.where(x < 1, x * x + x, x**exponent).mean())
        assert opt._fixed[1].numbers == ()
