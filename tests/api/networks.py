"""Networks of one's own, for tests."""

from tapegpt import Network, elementwise, operation


@elementwise
def gate(a, b):
    return a / (1 + (-b).exp())


@elementwise
def mix(i, g, f, c):
    """The cell of an LSTM: sigmoid(f) c + sigmoid(i) tanh(g)"""
    return c / (1 + (-f).exp()) + g.tanh() / (1 + (-i).exp())


@elementwise
def shown(o, c):
    return c.tanh() / (1 + (-o).exp())


@operation(shape=lambda x: (x[0], x[1] // 2), row_by_row=True)
def first_half(out, x):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[r, c]


@first_half.backward
def _(dout, out, x, dx):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c] += dout[r, c]


@operation(shape=lambda x: (x[0], x[1] // 2), row_by_row=True)
def second_half(out, x):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[r, c + out.shape[1]]


@second_half.backward
def _(dout, out, x, dx):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c + dout.shape[1]] += dout[r, c]


@operation(shape=lambda a, b: (a[0], a[1] + b[1]), row_by_row=True)
def joined(out, a, b):
    for r in range(out.shape[0]):
        for c in range(a.shape[1]):
            out[r, c] = a[r, c]
        for c in range(b.shape[1]):
            out[r, a.shape[1] + c] = b[r, c]


@joined.backward
def _(dout, out, a, b, da, db):
    for r in range(dout.shape[0]):
        for c in range(a.shape[1]):
            da[r, c] += dout[r, c]
        for c in range(b.shape[1]):
            db[r, c] += dout[r, a.shape[1] + c]


class Gated(Network):
    """Two gated layers on the characters before a position: no attention, no state."""

    name = "gated"
    settings = ("look_back",)

    def shapes(self, config, vocab_size):
        width = config.n_embd
        return {
            "wte": (vocab_size, width),
            "wpe": (config.block_size, width),
            **{f"back{i}": (vocab_size, width) for i in range(config.look_back)},
            "up": (2 * width, width),
            "gate": (2 * width, width),
            "lm_head": (vocab_size, 2 * width),
        }

    def logits(self, net, config):
        x = net.embed("wte", "wpe", *(f"back{i}" for i in range(config.look_back)))
        x = net.rmsnorm(x)
        return net.linear(net.apply(gate, net.linear(x, "up"), net.linear(x, "gate")), "lm_head")


class Lstm(Network):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; no biases."""

    name = "lstm"
    settings = ("n_state",)

    def shapes(self, config, vocab_size):
        width, state = config.n_embd, config.n_state
        gates = {f"x_{name}": (state, width) for name in "igfo"}
        gates |= {f"h_{name}": (state, state) for name in "igfo"}
        return {"wte": (vocab_size, width), **gates, "lm_head": (vocab_size, state)}

    def logits(self, net, config):
        x = net.embed_token("wte")
        inputs = {name: net.linear(x, f"x_{name}") for name in "igfo"}

        def step(before):
            h, c = net.apply(first_half, before), net.apply(second_half, before)
            i, g, f, o = (net.linear(h, f"h_{name}", residual=inputs[name]) for name in "igfo")
            c = net.apply(mix, i, g, f, c)
            return net.apply(joined, net.apply(shown, o, c), c)

        state = net.scan(step, 2 * config.n_state)
        return net.linear(net.apply(first_half, state), "lm_head")
