"""A GPT in plain Python, number by number, and the same lines of it on a tape.

The network is that of microgpt (Karpathy 2026): RMSNorm, one layer of attention, ReLU, no biases.
`loss_of` is written once. With `Value`, a scalar autograd of forty lines, every step goes through
Python; on a tape it is recorded once, and replayed.

    python examples/microgpt_side_by_side.py
"""

import math
import random
import time
from itertools import pairwise

from tapegpt import Tape

N_EMBD, N_HEAD = 8, 2


class Value:
    """A number that remembers what it was made of."""

    def __init__(self, value, parents=(), slopes=()):
        self.value, self.grad = value, 0.0
        self.parents, self.slopes = parents, slopes

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.value * other.value, (self, other), (other.value, self.value))

    def __pow__(self, exponent):
        slope = exponent * self.value ** (exponent - 1)
        return Value(self.value**exponent, (self,), (slope,))

    def __neg__(self):
        return self * -1.0

    def exp(self):
        e = math.exp(self.value)
        return Value(e, (self,), (e,))

    def log(self):
        return Value(math.log(self.value), (self,), (1 / self.value,))

    def relu(self):
        return Value(max(0.0, self.value), (self,), (float(self.value > 0),))

    def backward(self):
        order, seen = [], set()

        def visit(node):
            if node not in seen:
                seen.add(node)
                for parent in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.grad = 1.0
        for node in reversed(order):
            for parent, slope in zip(node.parents, node.slopes, strict=True):
                parent.grad += slope * node.grad


def total(numbers):
    result = numbers[0]
    for number in numbers[1:]:
        result = result + number
    return result


def dot(a, b):
    return total([x * y for x, y in zip(a, b, strict=True)])


def linear(x, matrix):
    return [dot(row, x) for row in matrix]


def rmsnorm(x):
    scale = (dot(x, x) * (1 / len(x)) + 1e-5) ** -0.5
    return [number * scale for number in x]


def softmax(x):
    powers = [number.exp() for number in x]
    inverse = total(powers) ** -1
    return [power * inverse for power in powers]


def loss_of(tokens, w):
    """The mean loss of a document, tokens at both ends included."""
    keys, values, losses = [], [], []
    for position, (token, target) in enumerate(pairwise(tokens)):
        x = [a + b for a, b in zip(w["wte"][token], w["wpe"][position], strict=True)]
        x = rmsnorm(x)
        h = rmsnorm(x)
        q = linear(h, w["wq"])
        keys.append(linear(h, w["wk"]))
        values.append(linear(h, w["wv"]))
        heads = []
        for head in range(N_HEAD):
            part = slice(head * N_EMBD // N_HEAD, (head + 1) * N_EMBD // N_HEAD)
            scale = (N_EMBD // N_HEAD) ** -0.5
            scores = softmax([dot(q[part], key[part]) * scale for key in keys])
            columns = zip(*(value[part] for value in values), strict=True)
            heads += [dot(scores, column) for column in columns]
        x = [a + b for a, b in zip(x, linear(heads, w["wo"]), strict=True)]
        hidden = [number.relu() for number in linear(rmsnorm(x), w["fc1"])]
        x = [a + b for a, b in zip(x, linear(hidden, w["fc2"]), strict=True)]
        losses.append(-softmax(linear(x, w["lm_head"]))[target].log())
    return total(losses) * (1 / len(losses))


def main(word="emma"):
    characters = sorted(set(word))
    tokens = [len(characters), *map(characters.index, word), len(characters)]
    vocabulary, rng = len(characters) + 1, random.Random(42)
    shapes = {
        "wte": (vocabulary, N_EMBD),
        "wpe": (len(tokens), N_EMBD),
        **{name: (N_EMBD, N_EMBD) for name in ("wq", "wk", "wv", "wo")},
        "fc1": (4 * N_EMBD, N_EMBD),
        "fc2": (N_EMBD, 4 * N_EMBD),
        "lm_head": (vocabulary, N_EMBD),
    }
    numbers = {
        name: [[rng.gauss(0, 0.2) for _ in range(columns)] for _ in range(rows)]
        for name, (rows, columns) in shapes.items()
    }

    begin = time.perf_counter()
    plain = {n: [[Value(x) for x in row] for row in matrix] for n, matrix in numbers.items()}
    loss = loss_of(tokens, plain)
    loss.backward()
    in_python = time.perf_counter() - begin

    tape = Tape()
    taped = {n: [[tape.var(x) for x in row] for row in matrix] for n, matrix in numbers.items()}
    root = loss_of(tokens, taped)
    tape.backward(root)  # compiles, where the cache has not got it yet
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        tape.forward()
        tape.backward(root)
        times.append(time.perf_counter() - begin)

    pairs = [
        (value.grad, tape.grad(node))
        for name in shapes
        for row, nodes in zip(plain[name], taped[name], strict=True)
        for value, node in zip(row, nodes, strict=True)
    ]
    worst = max(abs(a - b) for a, b in pairs)
    print(f"loss {loss.value:.15f} in plain Python, {tape.value(root):.15f} on the tape")
    print(f"{len(pairs)} gradients, which differ by {worst:.1e} at most")
    print(f"{in_python * 1e3:.1f} ms in plain Python, {min(times) * 1e3:.3f} ms replayed")
    return loss.value, tape.value(root), worst


if __name__ == "__main__":
    main()
