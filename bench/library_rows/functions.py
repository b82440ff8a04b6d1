"""Graphs of scalars as functions of many numbers."""

import numpy as np

from library_rows import JAX, OURS, TORCH, Ways, compiled
from tapegpt import Tape

if TORCH:
    import torch
if JAX:
    import jax
    from jax import numpy as jnp
    from jax.scipy.stats import norm


def options(count: int) -> Ways:
    """The price of an option and its five derivatives (Black and Scholes 1973), float64."""
    rng = np.random.default_rng(0)
    low, high = [80, 80, 0.2, 0.1, 0.0], [120, 120, 2.0, 0.5, 0.05]
    x = [rng.uniform(*bounds, count) for bounds in zip(low, high, strict=True)]

    def price_of(spot, strike, years, volatility, rate, log, exp, cdf):
        spread = volatility * years**0.5
        d1 = (log(spot / strike) + (rate + volatility * volatility * 0.5) * years) / spread
        return spot * cdf(d1) - strike * exp(-(rate * years)) * cdf(d1 - spread)

    def by(erf):
        return lambda x: (erf(x * 0.5**0.5) + 1) * 0.5

    tape = Tape()
    inputs = [tape.var(1.0) for _ in range(5)]
    f = tape.function(inputs, price_of(*inputs, tape.log, tape.exp, by(tape.erf)))

    def ours():
        price, greeks = f.value_and_grad(*x)
        return price, *greeks

    yield OURS, ours
    if TORCH:
        tensors = [torch.from_numpy(column).requires_grad_() for column in x]
        ones = torch.ones(count, dtype=torch.float64)

        def pytorch(*x):
            price = price_of(*x, torch.log, torch.exp, by(torch.erf))
            return price.detach(), *torch.autograd.grad(price, x, ones)

        yield "PyTorch", lambda: pytorch(*tensors)
        quick = compiled(pytorch)
        yield "PyTorch compiled", lambda: quick(*tensors)
    if JAX:

        def price(*x):
            return price_of(*x, jnp.log, jnp.exp, norm.cdf)

        g = jax.jit(jax.vmap(jax.value_and_grad(price, argnums=range(5))))
        arrays = [jnp.asarray(column) for column in x]

        def theirs():
            price, greeks = jax.block_until_ready(g(*arrays))
            return price, *greeks

        yield "JAX", theirs


def rosenbrock(count: int) -> Ways:
    """The gradient of Rosenbrock's function of many numbers, float64."""
    x = np.random.default_rng(0).normal(size=count)

    def value(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    tape = Tape()
    ids = tape.variables(x)
    one, hundred = (np.full(count - 1, tape.constant(c).id) for c in (1.0, 100.0))
    inner = tape.elementwise("sub", ids[1:], tape.elementwise("mul", ids[:-1], ids[:-1]))
    left = tape.elementwise("sub", one, ids[:-1])
    steep = tape.elementwise("scale", tape.elementwise("mul", inner, inner), hundred)
    terms = tape.elementwise("add", steep, tape.elementwise("mul", left, left))
    f, gradient = tape.function(ids, tape.sum(terms.tolist())), np.empty_like(x)
    yield OURS, lambda: f.grad(x, out=gradient)

    def by_hand():
        slope = 200 * (x[1:] - x[:-1] ** 2)
        gradient = np.zeros_like(x)
        gradient[:-1] = -2 * x[:-1] * slope - 2 * (1 - x[:-1])
        gradient[1:] += slope
        return gradient

    yield "NumPy", by_hand
    if TORCH:
        tensor = torch.from_numpy(x).requires_grad_()

        def pytorch(x):
            return torch.autograd.grad(value(x), x)[0]

        yield "PyTorch", lambda: pytorch(tensor)
        quick = compiled(pytorch)
        yield "PyTorch compiled", lambda: quick(tensor)
    if JAX:
        g, array = jax.jit(jax.grad(value)), jnp.asarray(x)
        yield "JAX", lambda: g(array).block_until_ready()
