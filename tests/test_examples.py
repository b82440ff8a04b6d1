"""Every file in examples/ runs, and does what it says, with settings that take little time."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_black_scholes():
    prices, greeks = main_of("black_scholes")(1001)
    assert prices.shape == (1001,) and len(greeks) == 5
    assert prices.min() >= 0
    delta, by_strike, _, vega, rho = greeks
    assert ((delta >= 0) & (delta <= 1) & (by_strike <= 0) & (vega >= 0) & (rho >= 0)).all()


def test_new_operation():
    loss, gradient = main_of("new_operation")()
    rng = np.random.default_rng(0)
    x, row = rng.normal(size=(4, 3)), rng.normal(size=(1, 3))
    y = x + row
    share = 1 / (1 + np.exp(-y))
    assert loss == pytest.approx((y * share).mean())
    expected = (share + y * share * (1 - share)).sum(axis=0, keepdims=True) / 12
    np.testing.assert_allclose(gradient, expected)


def test_own_gpt():
    model, result = main_of("own_gpt")(60)
    assert result.losses[-10:].mean() < result.losses[:10].mean()
    assert model.settings.n_embd == 32


def test_lstm():
    result = main_of("lstm")(60)
    assert result.losses[-10:].mean() < result.losses[:10].mean()


def test_logistic_regression():
    losses, likeness = main_of("logistic_regression")(2000, 8, 40)
    assert losses[-1] < 0.8 * losses[0]
    assert likeness > 0.97


def test_two_moons():
    losses, accuracy = main_of("two_moons")(40, 40)
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy >= 0.85


def test_oscillator():
    losses, found = main_of("oscillator")(200, 150)
    assert losses[-1] < 0.02 * losses[0]
    assert found == pytest.approx([4.0, 0.3], abs=0.4)


def test_microgpt_side_by_side():
    plain, taped, worst = main_of("microgpt_side_by_side")()
    assert taped == pytest.approx(plain, rel=1e-12)
    assert worst < 1e-12


def test_micrograd_value():
    losses, found = main_of("micrograd_value")(300)
    assert losses[-1] < 1e-4
    assert found == pytest.approx([1.5, -1.0, 0.5], abs=0.02)


def test_values_in_every_place():
    """Operators with numbers on both sides, against a gradient by hand."""
    value = main_of("micrograd_value").__globals__["Value"]
    a, b = value(-4.0), value(2.0)
    c = 2 * a + a * b + 3 - b / 4 + (1 - b) ** 2 - (-a).relu() + 6 / b
    c += 1
    c.backward()
    assert c.data == -8 - 8 + 3 - 0.5 + 1 - 4 + 3 + 1
    assert (a.grad, b.grad) == (2 + 2 + 1, -4 - 0.25 + 2 - 1.5)


def test_all_examples_are_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {name[len("test_") :] for name in globals() if name.startswith("test_")} - {
        "all_examples_are_tested",
        "values_in_every_place",
    }
