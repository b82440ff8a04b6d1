"""Graphs of arrays."""

from functools import partial

import numpy as np

from library_rows import JAX, OURS, TORCH, Ways, compiled
from tapegpt import Tape, elementwise

if TORCH:
    import torch
    from torch.nn import functional
if JAX:
    import jax
    from jax import numpy as jnp


RATE = 0.2


def descend(out, *leaves):
    """The mean of the squares of out, and a step of plain descent, by PyTorch."""
    loss = out.square().mean()
    grads = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.sub_(grad, alpha=RATE)
    return loss.detach()


def logistic(rows: int, columns: int = 32) -> Ways:
    """A step of logistic regression, all points at once, float32. Points are columns."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(columns, rows)).astype(np.float32)
    signs = np.where(rng.normal(size=columns) @ points > 0, 1, -1).astype(np.float32)
    tape = Tape("float32")
    weights = tape.parameter(np.zeros((1, columns)))
    of_scores = elementwise(lambda score, sign: (-(score * sign)).softplus())
    loss = tape.mean(of_scores(weights @ points, tape.array(signs)))
    opt = tape.sgd(lr=RATE)
    yield OURS, lambda: opt.step(loss)

    w = np.zeros(columns, np.float32)

    def by_hand():
        z = (w @ points) * signs
        e = np.exp(-np.abs(z))
        loss = (np.log1p(e) - np.minimum(z, 0)).mean()
        share = np.where(z > 0, e, np.float32(1)) / (1 + e)
        w[:] += points @ (share * signs) * np.float32(RATE / rows)
        return loss

    yield "NumPy", by_hand
    if TORCH:
        x, sign = torch.from_numpy(points), torch.from_numpy(signs)

        def log_loss(z):
            return torch.log(1 + torch.exp(-z))

        def way(of_z, change):
            state = torch.zeros(columns, requires_grad=True)

            def step(w):
                loss = of_z((w @ x) * sign).mean()
                (gradient,) = torch.autograd.grad(loss, [w])
                with torch.no_grad():
                    w.sub_(gradient, alpha=RATE)
                return loss.detach()

            quick = change(step)
            return lambda: quick(state)

        yield "PyTorch", way(lambda z: -functional.logsigmoid(z), lambda step: step)
        yield "PyTorch compiled", way(log_loss, compiled)
    if JAX:
        array, jax_signs, held = jnp.asarray(points), jnp.asarray(signs), jnp.zeros(columns, "f4")

        def jax_loss(w, x, sign):  # quicker than jax.nn.softplus; not for scores beyond 88
            return jnp.log(1 + jnp.exp(-(w @ x) * sign)).mean()

        @jax.jit
        def jax_step(w, x, sign):
            loss, gradient = jax.value_and_grad(jax_loss)(w, x, sign)
            return loss, w - RATE * gradient

        def theirs():
            nonlocal held
            loss, held = jax_step(held, array, jax_signs)
            return loss.block_until_ready()

        yield "JAX", theirs


def lstm(steps: int, width: int, batch: int, module: bool) -> Ways:
    """A step of plain descent of an LSTM without biases, float32.

    module: against torch.nn.LSTM, instead of cells written out.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, width)).astype(np.float32)
    gates = [
        [rng.normal(0, width**-0.5, (width, width)).astype(np.float32) for _ in range(4)]
        for _ in range(2)
    ]

    tape = Tape("float32")
    from_x, from_h = ([tape.parameter(w) for w in matrices] for matrices in gates)
    new_cell = elementwise(lambda i, f, g, c: c / (1 + (-f).exp()) + g.tanh() / (1 + (-i).exp()))
    first_cell = elementwise(lambda i, g: g.tanh() / (1 + (-i).exp()))
    shown = elementwise(lambda o, c: c.tanh() / (1 + (-o).exp()))
    h = c = None
    for t in range(steps):
        i, f, g, o = (tape.linear(tape.array(x[t]), w) for w in from_x)
        if h is None:
            c = first_cell(i, g)
        else:
            of_h = zip(from_h, (i, f, g, o), strict=True)
            i, f, g, o = [tape.linear(h, w, residual=given) for w, given in of_h]
            c = new_cell(i, f, g, c)
        h = shown(o, c)
    loss, opt = tape.mean(h * h), tape.sgd(lr=RATE)
    yield OURS, lambda: opt.step(loss)
    if not TORCH:
        return
    inputs = torch.from_numpy(x)
    w_x, w_h = (torch.from_numpy(np.concatenate(part)).requires_grad_() for part in gates)

    if module:
        net = torch.nn.LSTM(width, width, bias=False)
        with torch.no_grad():
            net.weight_ih_l0.copy_(w_x)
            net.weight_hh_l0.copy_(w_h)

        leaves = [net.weight_ih_l0, net.weight_hh_l0]
        yield "PyTorch", lambda: descend(net(inputs)[1][0], *leaves)
        return

    def eager():
        of_h = w_h.t()
        h = c = None
        for given in functional.linear(inputs, w_x):
            gates = given if h is None else torch.addmm(given, h, of_h)
            i, f, g, o = gates.chunk(4, 1)
            c = i.sigmoid() * g.tanh() + (0 if h is None else f.sigmoid() * c)
            h = o.sigmoid() * c.tanh()
        return descend(h, w_x, w_h)

    yield "PyTorch", eager


def swiglu(rows: int, width: int) -> Ways:
    """A step of plain descent of x + W swiglu(U norm x, G norm x), 4 times as wide within."""
    rng = np.random.default_rng(0)
    x, hidden = rng.normal(size=(rows, width)).astype(np.float32), 4 * width
    shapes = [(hidden, width), (hidden, width), (width, hidden)]
    up, gate, down = (rng.normal(0, s[1] ** -0.5, s).astype(np.float32) for s in shapes)

    tape = Tape("float32")
    parameters = [tape.parameter(w) for w in (up, gate, down)]
    given = tape.array(x)
    inner = tape.rmsnorm(given)
    inner = tape.swiglu(*(tape.linear(inner, w) for w in parameters[:2]))
    out = tape.linear(inner, parameters[2], residual=given)
    loss, opt = tape.mean(out * out), tape.sgd(lr=RATE)
    yield OURS, lambda: opt.step(loss)
    if TORCH:
        leaves = [torch.from_numpy(np.concatenate([up, gate])), torch.from_numpy(down)]
        tensor = torch.from_numpy(x)

        def pytorch(x, both, down):
            inner = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
            up, gate = functional.linear(inner, both).chunk(2, 1)
            out = torch.addmm(x, functional.silu(gate) * up, down.t())
            return descend(out, both, down)

        for name, change in {"PyTorch": lambda f: f, "PyTorch compiled": compiled}.items():
            state = [leaf.clone().requires_grad_() for leaf in leaves]
            yield name, partial(change(pytorch), tensor, *state)


def own_operation(rows: int, width: int) -> Ways:
    """x / (1 + e^-x), eight times, forward and back: built in, and one's own."""

    def way(silu):
        tape = Tape("float32")
        x = y = tape.parameter(np.random.default_rng(0).normal(size=(rows, width)))
        for _ in range(8):
            y = silu(tape, y)
        loss = tape.mean(y)

        def run():
            tape.forward()
            tape.backward(loss)
            return loss.value, x.grad

        return run

    own = elementwise(lambda x: x / (1 + (-x).exp()))
    yield OURS, way(lambda tape, y: own(y))
    yield "built in", way(lambda tape, y: tape.silu(y))
