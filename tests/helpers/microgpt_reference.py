"""microgpt in pure Python, one number at a time: an oracle that shares no code with tapegpt.

A GPT with RMSNorm (no gain), ReLU, no biases and untied output weights, trained on one document
a step by Adam with a learning rate that falls linearly to zero. Random numbers come from one
`random.Random`: it shuffles the documents, then draws the weights, then the samples.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Matrix = list[list[float]]
Weights = dict[str, Matrix]
Nodes = list[int]
Cache = dict[tuple[str, int], list[Nodes]]


class Graph:
    """Numbers, each with its partial derivatives by the numbers that it was computed from.

    A number is known by its place in `values`; operands come before what is made of them, so that
    one walk from the back is all of backpropagation.
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.partials: list[list[tuple[int, float]]] = []

    def node(self, value: float, partials: Iterable[tuple[int, float]] = ()) -> int:
        self.values.append(value)
        self.partials.append(list(partials))
        return len(self.values) - 1

    def gradients(self, root: int) -> list[float]:
        """The derivatives of one number by all the others."""
        result = [0.0] * len(self.values)
        result[root] = 1.0
        for node in range(root, -1, -1):
            for operand, partial in self.partials[node]:
                result[operand] += partial * result[node]
        return result

    def sum(self, terms: Sequence[int]) -> int:
        return self.node(math.fsum(self.values[t] for t in terms), [(t, 1.0) for t in terms])

    def dot(self, a: Sequence[int], b: Sequence[int]) -> int:
        u, v = [self.values[i] for i in a], [self.values[i] for i in b]
        total = math.fsum(x * y for x, y in zip(u, v, strict=True))
        return self.node(total, [*zip(a, v, strict=True), *zip(b, u, strict=True)])

    def times(self, a: int, b: int) -> int:
        return self.node(
            self.values[a] * self.values[b], [(a, self.values[b]), (b, self.values[a])]
        )

    def affine(self, a: int, factor: float, offset: float = 0.0) -> int:
        return self.node(self.values[a] * factor + offset, [(a, factor)])

    def power(self, a: int, exponent: float) -> int:
        x = self.values[a]
        return self.node(x**exponent, [(a, exponent * x ** (exponent - 1))])

    def relu(self, a: int) -> int:
        positive = self.values[a] > 0
        return self.node(self.values[a] if positive else 0.0, [(a, float(positive))])

    def log(self, a: int) -> int:
        return self.node(math.log(self.values[a]), [(a, 1 / self.values[a])])

    def softmax(self, row: Nodes) -> Nodes:
        """e^x / sum(e^x), with the Jacobian p_i (delta_ij - p_j) written down at once."""
        largest = max(self.values[i] for i in row)
        powers = [math.exp(self.values[i] - largest) for i in row]
        shares = [power / math.fsum(powers) for power in powers]
        return [
            self.node(p, [(j, p * ((i == j) - q)) for j, q in zip(row, shares, strict=True)])
            for i, p in zip(row, shares, strict=True)
        ]


@dataclass(frozen=True)
class Sizes:
    n_layer: int = 1
    n_embd: int = 16
    n_head: int = 4
    block_size: int = 16


class MicroGPT:
    """A model, its corpus and its optimizer's state."""

    def __init__(self, documents: Sequence[str], sizes: Sizes, steps: int, seed: int = 42) -> None:
        self.sizes, self.steps, self.step = sizes, steps, 0
        self.rng = random.Random(seed)
        self.documents = list(documents)
        self.rng.shuffle(self.documents)
        self.alphabet = sorted({letter for text in documents for letter in text})
        self.delimiter = len(self.alphabet)
        self.weights: Weights = {}
        vocab, width, hidden = self.delimiter + 1, sizes.n_embd, 4 * sizes.n_embd
        for name, rows in (("wte", vocab), ("wpe", sizes.block_size), ("lm_head", vocab)):
            self._draw(name, rows, width)
        for layer in range(sizes.n_layer):
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                self._draw(f"layer{layer}.{name}", width, width)
            self._draw(f"layer{layer}.mlp_fc1", hidden, width)
            self._draw(f"layer{layer}.mlp_fc2", width, hidden)
        self._moments = {
            name: [[(0.0, 0.0)] * len(row) for row in rows] for name, rows in self.weights.items()
        }

    def _draw(self, name: str, rows: int, columns: int) -> None:
        self.weights[name] = [
            [self.rng.gauss(0, 0.08) for _ in range(columns)] for _ in range(rows)
        ]

    def train(self) -> tuple[float, Weights]:
        """Do one step; returns its loss and the gradients it took."""
        text = self.documents[self.step % len(self.documents)]
        loss, gradients = self.loss(text)
        self.step += 1
        rate = 0.01 * (1 - (self.step - 1) / self.steps)
        for name, rows in self.weights.items():
            for r, row in enumerate(rows):
                for c, g in enumerate(gradients[name][r]):
                    mean, square = self._moments[name][r][c]
                    mean, square = 0.85 * mean + 0.15 * g, 0.99 * square + 0.01 * g * g
                    self._moments[name][r][c] = mean, square
                    unbiased = mean / (1 - 0.85**self.step), square / (1 - 0.99**self.step)
                    row[c] -= rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        return loss, gradients

    def loss(self, text: str) -> tuple[float, Weights]:
        """Mean cross-entropy of one document, cut to the block, and its gradients by name."""
        graph = Graph()
        weights = self._leaves(graph)
        tokens = [self.delimiter, *map(self.alphabet.index, text), self.delimiter]
        cache: Cache = {}
        losses = []
        for position in range(min(self.sizes.block_size, len(tokens) - 1)):
            logits = self._logits(graph, weights, tokens[position], position, cache)
            target = graph.softmax(logits)[tokens[position + 1]]
            losses.append(graph.affine(graph.log(target), -1.0))
        mean = graph.affine(graph.sum(losses), 1 / len(losses))
        gradients = graph.gradients(mean)
        by_name = {
            name: [[gradients[node] for node in row] for row in rows]
            for name, rows in weights.items()
        }
        return graph.values[mean], by_name

    def sample(self, temperature: float) -> str:
        graph = Graph()
        weights = self._leaves(graph)
        cache: Cache = {}
        token, text = self.delimiter, ""
        for position in range(self.sizes.block_size):
            logits = self._logits(graph, weights, token, position, cache)
            shares = graph.softmax([graph.affine(node, 1 / temperature) for node in logits])
            likelihoods = [graph.values[node] for node in shares]
            (token,) = self.rng.choices(range(len(logits)), likelihoods)
            if token == self.delimiter:
                break
            text += self.alphabet[token]
        return text

    def _leaves(self, graph: Graph) -> dict[str, list[Nodes]]:
        return {
            name: [[graph.node(weight) for weight in row] for row in rows]
            for name, rows in self.weights.items()
        }

    def _logits(
        self, graph: Graph, weights: dict[str, list[Nodes]], token: int, position: int, cache: Cache
    ) -> Nodes:
        """Logits of the token that follows; `cache` holds the keys and values so far."""

        def normalize(row: Nodes) -> Nodes:
            mean_square = graph.affine(graph.dot(row, row), 1 / len(row), 1e-5)
            factor = graph.power(mean_square, -0.5)
            return [graph.times(node, factor) for node in row]

        def multiply(name: str, row: Nodes) -> Nodes:
            return [graph.dot(outgoing, row) for outgoing in weights[name]]

        def add(a: Nodes, b: Nodes) -> Nodes:
            return [graph.sum(pair) for pair in zip(a, b, strict=True)]

        x = normalize(add(weights["wte"][token], weights["wpe"][position]))
        for layer in range(self.sizes.n_layer):
            prefix = f"layer{layer}."
            h = normalize(x)
            query = multiply(prefix + "attn_wq", h)
            keys = cache.setdefault(("keys", layer), [])
            values = cache.setdefault(("values", layer), [])
            keys.append(multiply(prefix + "attn_wk", h))
            values.append(multiply(prefix + "attn_wv", h))
            mixed: Nodes = []
            size = self.sizes.n_embd // self.sizes.n_head
            for start in range(0, self.sizes.n_embd, size):
                head = slice(start, start + size)
                scores = [graph.dot(query[head], key[head]) for key in keys]
                shares = graph.softmax([graph.affine(s, 1 / math.sqrt(size)) for s in scores])
                columns = zip(*(value[head] for value in values), strict=True)
                mixed += [graph.dot(shares, column) for column in columns]
            x = add(x, multiply(prefix + "attn_wo", mixed))
            hidden = [graph.relu(node) for node in multiply(prefix + "mlp_fc1", normalize(x))]
            x = add(x, multiply(prefix + "mlp_fc2", hidden))
        return multiply("lm_head", x)
