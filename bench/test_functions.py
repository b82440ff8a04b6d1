"""A graph as a function of arrays, beside JAX where it is installed, and an operation of one's own.

pytest bench/test_functions.py --benchmark-only
"""

import numpy as np
import pytest

from tapegpt import Tape, elementwise

OPTIONS = [100_000, 1_000_000]


def options(count):
    rng = np.random.default_rng(0)
    low, high = [80, 80, 0.2, 0.1, 0.0], [120, 120, 2.0, 0.5, 0.05]
    return [rng.uniform(*bounds, count) for bounds in zip(low, high, strict=True)]


def price_of(spot, strike, years, volatility, rate, log, exp, cdf):
    spread = volatility * years**0.5
    d1 = (log(spot / strike) + (rate + volatility * volatility * 0.5) * years) / spread
    return spot * cdf(d1) - strike * exp(-(rate * years)) * cdf(d1 - spread)


def greeks():
    tape = Tape()
    inputs = [tape.var(1.0) for _ in range(5)]
    price = price_of(*inputs, tape.log, tape.exp, lambda x: (tape.erf(x * 0.5**0.5) + 1.0) * 0.5)
    return tape.function(inputs, price)


def per_row(benchmark, count, run):
    run()
    benchmark(run)
    benchmark.extra_info["ns a row"] = benchmark.stats["min"] / count * 1e9


@pytest.mark.parametrize("count", OPTIONS)
def test_black_scholes(benchmark, count):
    f, x = greeks(), options(count)
    per_row(benchmark, count, lambda: f.value_and_grad(*x))


@pytest.mark.parametrize("count", OPTIONS)
def test_black_scholes_by_jax(benchmark, count):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    norm = pytest.importorskip("jax.scipy.stats").norm
    numpy = jax.numpy

    def price(*x):
        return price_of(*x, numpy.log, numpy.exp, norm.cdf)

    f = jax.jit(jax.vmap(jax.value_and_grad(price, argnums=range(5))))
    x = [numpy.asarray(column) for column in options(count)]
    per_row(benchmark, count, lambda: jax.block_until_ready(f(*x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rosenbrock_gradient(benchmark, dtype):
    tape = Tape(dtype)
    x = np.random.default_rng(0).normal(size=1_000_000).astype(dtype)
    ids = tape.variables(x)
    one, hundred = (np.full(len(x) - 1, tape.constant(c).id) for c in (1.0, 100.0))
    inner = tape.elementwise("sub", ids[1:], tape.elementwise("mul", ids[:-1], ids[:-1]))
    left = tape.elementwise("sub", one, ids[:-1])
    steep = tape.elementwise("scale", tape.elementwise("mul", inner, inner), hundred)
    terms = tape.elementwise("add", steep, tape.elementwise("mul", left, left))
    f, g = tape.function(ids, tape.sum(terms.tolist())), np.empty_like(x)
    per_row(benchmark, len(x), lambda: f.grad(x, out=g))


@pytest.mark.parametrize("kind", ["built in", "own"])
def test_relu(benchmark, kind):
    own = elementwise(lambda a: a.relu())
    tape = Tape("float32")
    x = tape.parameter(np.random.default_rng(0).normal(size=(512, 1024)))
    loss = tape.mean(tape.relu(x) if kind == "built in" else own(x))

    def step():
        tape.forward()
        tape.backward(loss)

    per_row(benchmark, 512 * 1024, step)
