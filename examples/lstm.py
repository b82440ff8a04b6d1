"""A network of one's own: an LSTM, which trains, samples and saves as the package's models do.

Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; no biases.

    python examples/lstm.py [steps]
    python -m tapegpt train --model examples.lstm:Lstm --n-state 64
"""

import sys

from tapegpt import Corpus, LanguageModel, Network, elementwise, operation, train


@elementwise
def new_cell(i, g, f, c):
    """sigmoid(f) c + sigmoid(i) tanh(g)"""
    return c / (1 + (-f).exp()) + g.tanh() / (1 + (-i).exp())


@elementwise
def shown(o, c):
    """sigmoid(o) tanh(c)"""
    return c.tanh() / (1 + (-o).exp())


def part(second):
    """The first or the second half of the columns."""

    @operation(shape=lambda x: (x[0], x[1] // 2), row_by_row=True)
    def half(out, x):
        for r in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[r, c] = x[r, c + second * out.shape[1]]

    @half.backward
    def _(dout, out, x, dx):
        for r in range(dout.shape[0]):
            for c in range(dout.shape[1]):
                dx[r, c + second * dout.shape[1]] += dout[r, c]

    return half


first, last = part(0), part(1)


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


class Lstm(Network):
    """The state is what it shows and its cells, side by side."""

    name = "lstm"
    settings = ("n_state",)

    def shapes(self, config, vocab_size):
        width, state = config.n_embd, config.n_state
        gates = {f"x_{gate}": (state, width) for gate in "igfo"}
        gates |= {f"h_{gate}": (state, state) for gate in "igfo"}
        return {"wte": (vocab_size, width), **gates, "lm_head": (vocab_size, state)}

    def logits(self, net, config):
        x = net.embed_token("wte")
        given = {gate: net.linear(x, f"x_{gate}") for gate in "igfo"}

        def step(before):
            h, c = net.apply(first, before), net.apply(last, before)
            i, g, f, o = (net.linear(h, f"h_{gate}", residual=given[gate]) for gate in "igfo")
            c = net.apply(new_cell, i, g, f, c)
            return net.apply(joined, net.apply(shown, o, c), c)

        state = net.scan(step, 2 * config.n_state)
        return net.linear(net.apply(first, state), "lm_head")


def main(steps=2000):
    corpus = Corpus.names()
    model = LanguageModel(Lstm(), corpus, n_embd=16, n_state=32, block_size=12)
    result = train(model, corpus, steps=steps, batch_size=16)
    print(
        f"loss {result.losses[:10].mean():.3f} at first, {result.losses[-10:].mean():.3f} at last"
    )
    print("new names:", *model.sample(5, seed=1))
    return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
