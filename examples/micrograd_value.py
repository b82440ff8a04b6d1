"""micrograd's Value on a tape: programs that were written for micrograd run as they are.

micrograd (Karpathy 2020) keeps a Python object with a closure for each number. Here a Value is the
handle of a node, and the tape has the graph. Each step begins with a reset to where the parameters
end, or memory would grow from step to step.

    python examples/micrograd_value.py [steps]
"""

import sys

from tapegpt import Scalar, Tape

tape = Tape()


class Value:
    """A number that knows how it was computed: `data`, and `grad` after `backward`."""

    __slots__ = ("node",)

    def __init__(self, data):
        self.node = data if isinstance(data, Scalar) else tape.var(data)

    @property
    def data(self):
        return self.node.value

    @data.setter
    def data(self, number):
        self.node.value = number

    @property
    def grad(self):
        return self.node.grad

    @grad.setter
    def grad(self, number):
        if number != 0:  # each backward begins with zeros by itself
            raise ValueError("a gradient can only be set to 0")

    def backward(self):
        self.node.backward()

    def relu(self):
        return Value(self.node.relu())

    def __add__(self, other):
        return Value(self.node + node_of(other))

    def __mul__(self, other):
        return Value(self.node * node_of(other))

    def __pow__(self, exponent):
        return Value(self.node**exponent)

    def __truediv__(self, other):
        return Value(self.node / node_of(other))

    def __rtruediv__(self, other):
        return Value(other / self.node)

    def __sub__(self, other):
        return Value(self.node - node_of(other))

    def __rsub__(self, other):
        return Value(other - self.node)

    def __neg__(self):
        return Value(-self.node)

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    __radd__, __rmul__ = __add__, __mul__


def node_of(other):
    return other.node if isinstance(other, Value) else other


def main(steps=60):
    """A bend, max(0, a x + b) + c, fitted to five points."""
    points = [(-1.0, 0.5), (0.0, 0.5), (1.0, 1.0), (2.0, 2.5), (3.0, 4.0)]
    a, b, c = parameters = [Value(1.0), Value(0.0), Value(0.0)]
    losses, mark = [], tape.mark()
    for _ in range(steps):
        tape.reset(mark)
        errors = [(a * x + b).relu() + c - y for x, y in points]
        loss = sum(error**2 for error in errors) / len(errors)
        loss.backward()
        losses.append(loss.data)
        for p in parameters:
            p.data -= 0.15 * p.grad
    found = [round(p.data, 2) for p in parameters]
    print(f"loss {losses[0]:.3f} to {losses[-1]:.6f}; a, b, c = {found}")
    return losses, [p.data for p in parameters]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
