"""Every operation of the tape once: how to record it, what it means in NumPy, which sizes hurt.

Read by the tests of values, gradients and divergence. A new operation is one entry of
CATALOGUE, and one of RESULT_WIDTHS if its result has several elements; without it tests fail.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import references
from counting_reference import counted_features
from numpy.typing import NDArray
from opcodes import SEVERAL, named

from tapegpt.counting import CountTable
from tapegpt.kernels.ops.array.pointwise import POINTWISE
from tapegpt.kernels.ops.scalar.switch import SCALAR_OPS
from tapegpt.kernels.registry import OPERATIONS, declared
from tapegpt.tape import Array, Tape

Floats = NDArray[np.float64]

# Around whole vectors of 2 to 16 lanes and rows of a tile, or too long for small strides.
SIZES = (*range(1, 38), 64, 65, 100, 129)
HEAD_DIMS = ((1, 2), (3, 4), (5, 6, 8), (12, 16), (24, 25, 32, 37))  # by squares of columns


def opcodes() -> dict[int, str]:
    """The package's operations by their codes: other tests add operations of their own."""
    own = {*SCALAR_OPS, *declared()}
    names = {code: known.name for code, known in enumerate(OPERATIONS) if known in own}
    return names | {named("attention", i): f"attention of {2**i} columns" for i in range(5)}


def recordable() -> set[int]:
    """Those that this host records in float64."""
    wider_than_vectors = {named("attention", i) for i in range(5) if 2**i > Tape().lanes}
    # A matrix unit's products are float32: test_array_operations.py has them follow float64.
    return set(opcodes()) - wider_than_vectors - {named("linear", 1)}


# Places in an operation's argument list whose product is the number of columns of its result, or
# of its results where they are scalars. The others have one.
RESULT_WIDTHS: dict[int, tuple[int, ...]] = {
    **dict.fromkeys(SEVERAL, (0,)),
    named("embed"): (1,),
    named("linear"): (2,),
    named("linear", 1): (2,),
    named("rmsnorm"): (1,),
    **{named("attention", i): (1, 2) for i in range(5)},
    named("streaming_attention"): (1, 2),
    named("array_softmax"): (1,),
    named("array_relu"): (1,),
    named("array_add"): (1,),
    named("array_scale"): (1,),
    named("sparse_linear"): (2,),
    named("dropout"): (1,),
    named("previous"): (1,),
    named("rotary"): (1,),
    named("head_norm"): (1, 2),
    **dict.fromkeys(map(named, ("relu_squared", "gelu", "swiglu", "softcap")), (1,)),
    named("counted_features"): (1,),
    named("gated_sum"): (1,),
    named("matmul"): (2,),
    named("column_sum"): (1,),
    **{named(operation.name): (1,) for operation in POINTWISE.values()},
    **{named(f"array_{name}"): (1,) for name in ("part", "join", "transpose")},
}
# Which choose numbers of an input, or end a stretch of records.
NO_RESULT = {named("topk"), named("carry")}


class Draw:
    """The random choices of one case. Lengths are `most` at most."""

    def __init__(self, seed: int, most: int = SIZES[-1]) -> None:
        self.rng = np.random.default_rng(seed)
        self.most = most

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def size(self) -> int:
        return int(self.pick([size for size in SIZES if size <= self.most]))

    def few(self) -> int:
        return self.whole(1, min(7, self.most))

    def several(self) -> int:
        return self.size() + 1

    def rows(self, count: int, below: int) -> list[int]:
        """Row numbers of a table."""
        return [int(i) for i in self.rng.integers(below, size=count)]

    def numbers(self, shape: tuple[int, ...], kind: str) -> Floats:
        """Numbers none of which is so close to 0 that a step would change its sign."""
        drawn = self.rng.normal(size=shape)
        if kind == "apart":  # from each other too, so that no step changes their order
            order = self.rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
            drawn = order - shape[-1] / 2 + self.rng.uniform(0.1, 0.4, shape)
            return np.asarray(0.3 * drawn)
        drawn += 1e-3 * np.copysign(1, drawn)
        return np.asarray(0.3 + np.abs(drawn) if kind == "positive" else drawn)


@dataclass
class Case:
    """An operation on arrays of these shapes.

    Scalar operations are given arrays of node ids, array operations the ids of array nodes.
    """

    shapes: list[tuple[int, ...]]
    record: Callable[..., Any]  # (tape, what stands for each array) -> ids of scalars, or an array
    reference: Callable[..., Any]  # (each array) -> the result
    scalars: bool = False
    kind: str = "any"  # of numbers, see Draw.numbers
    differentiable: bool = True


Make = Callable[[Draw], Case]


def of_scalars(
    record: Callable[..., Any],
    reference: Callable[..., Any],
    arrays: int = 1,
    kind: str = "any",
    length: Callable[[Draw], int] = Draw.few,
) -> Make:
    """An operation on rows of scalars, all of one length."""

    def make(draw: Draw) -> Case:
        return Case([(length(draw),)] * arrays, record, reference, True, kind)

    return make


def each(name: str, reference: Callable[..., Any], arrays: int = 1, kind: str = "any") -> Make:
    """An operation on one or two scalars, one record after the other."""

    def record(tape: Tape, *ids: Any) -> list[int]:
        return [getattr(tape, name)(*(int(i) for i in row)) for row in zip(*ids, strict=True)]

    return of_scalars(record, reference, arrays, kind)


def with_number(name: str, reference: Callable[..., Any], kind: str = "any") -> Make:
    """An operation on a scalar and a number that is not a node."""

    def make(draw: Draw) -> Case:
        number = draw.pick([-1.5, -0.5, 0.0, 1.0, 2.0, 3.0])
        return Case(
            [(draw.few(),)],
            lambda tape, ids: [getattr(tape, name)(int(i), number) for i in ids],
            lambda x: reference(x, number),
            scalars=True,
            kind=kind,
        )

    return make


def runs(name: str, reference: Callable[..., Any], arrays: int = 2, kind: str = "any") -> Make:
    """One record for nodes side by side."""
    return of_scalars(
        lambda tape, *ids: tape.elementwise(name, *ids), reference, arrays, kind, Draw.several
    )


def detach(draw: Draw) -> Case:
    return Case(
        [(draw.few(),)],
        lambda tape, ids: [tape.detach(int(i)) for i in ids],
        lambda x: x,
        scalars=True,
        differentiable=False,
    )


def lookup(draw: Draw) -> Case:
    rows, width = draw.few(), draw.few()
    which = draw.whole(0, rows - 1)
    return Case(
        [(rows, width)],
        lambda tape, ids: tape.take(ids[0], tape.input([which], rows), 0, width),
        lambda x: x[which],
        scalars=True,
    )


def largest(draw: Draw) -> Case:
    """The k largest, looked up where they stand."""
    count = draw.size()
    k = draw.whole(1, min(count, 9))

    def record(tape: Tape, ids: Any) -> list[int]:
        which = tape.topk(ids, k)
        return [int(tape.take(ids[:1], which, j, 1)[0]) for j in range(k)]

    return Case(
        [(count,)], record, lambda x: x[references.topk(x[None], k)[0]], scalars=True, kind="apart"
    )


def dots(by_rows: bool) -> Make:
    """Products of one vector and a matrix."""

    def make(draw: Draw) -> Case:
        rows, terms = draw.several(), draw.several()

        def record(tape: Tape, matrix: Any, vector: Any) -> Any:
            rows_of_ids = matrix if by_rows else matrix.T
            return tape.dots(rows_of_ids, np.broadcast_to(vector, rows_of_ids.shape))

        return Case(
            [(rows, terms), (terms if by_rows else rows,)],
            record,
            lambda matrix, vector: (matrix if by_rows else matrix.T) @ vector,
            scalars=True,
        )

    return make


def of_arrays(record: Callable[..., int], reference: Callable[..., Any], arrays: int = 1) -> Make:
    """An operation on arrays of one shape."""
    return lambda draw: Case([(draw.few(), draw.size())] * arrays, record, reference)


def embed(draw: Draw) -> Case:
    rows, width = draw.few(), draw.size()
    heights = [draw.few() for _ in range(draw.whole(1, 3))]
    which = [draw.rows(rows, height) for height in heights]
    return Case(
        [(height, width) for height in heights],
        lambda tape, *tables: tape.embed(*zip(tables, which, strict=True)),
        lambda *tables: references.embed(tables, which),
    )


def linear(draw: Draw) -> Case:
    rows, n_in, n_out = draw.size(), draw.size(), draw.size()
    shapes = [(rows, n_in), (n_out, n_in), (rows, n_out)]
    return Case(shapes[: draw.whole(2, 3)], Tape.linear, references.linear)


def linear_of_itself(draw: Draw) -> Case:
    """x as rows, weights and what is added, all in one."""
    size = draw.size()
    return Case(
        [(size, size)],
        lambda tape, x: tape.linear(x, x, x),
        lambda x: references.linear(x, x, x),
    )


def rmsnorm(draw: Draw) -> Case:
    epsilon = draw.pick([1e-5, 0.3])
    return Case(
        [(draw.few(), draw.size())],
        lambda tape, x: tape.rmsnorm(x, epsilon),
        lambda x: references.rmsnorm(x, epsilon),
    )


def rotary(draw: Draw) -> Case:
    rows, n_head, positions = draw.few(), draw.whole(1, 3), draw.whole(1, 9)
    width, which = 2 * n_head * draw.size(), draw.rows(rows, positions)

    def record(tape: Tape, x: int) -> int:
        tables = tape.rotary_tables(positions, width, n_head, 30.0)
        return tape.rotary(x, tape.input(which, positions), tables)

    return Case([(rows, width)], record, lambda x: references.rotary(x, which, n_head, 30.0))


def head_norm(draw: Draw) -> Case:
    n_head, gain, epsilon = draw.whole(1, 5), draw.pick([1.0, 0.5, 1.2]), draw.pick([1e-5, 0.3])
    return Case(
        [(draw.few(), n_head * draw.size())],
        lambda tape, x: tape.head_norm(x, n_head, gain, epsilon),
        lambda x: references.head_norm(x, n_head, gain, epsilon),
    )


def softcap(draw: Draw) -> Case:
    cap = draw.pick([0.7, 3.0, 30.0])
    return Case(
        [(draw.few(), draw.size())],
        lambda tape, x: tape.softcap(x, cap),
        lambda x: cap * np.tanh(x / cap),
    )


def attention(*head_dims: int) -> Make:
    def make(draw: Draw) -> Case:
        # Up to 19 heads: some of them in more vectors than one.
        n_head, head_dim = draw.whole(1, draw.pick([4, 19])), draw.pick(head_dims)
        return Case(
            [(draw.few(), n_head * head_dim)] * 3,
            lambda tape, q, k, v: tape.attention(q, k, v, n_head),
            lambda q, k, v: references.attention(q, k, v, n_head),
        )

    return make


def streaming_attention(draw: Draw) -> Case:
    head_dim = draw.pick([1, 5, 16, 20])
    return Case(
        [(draw.pick([64, 65, 79, 100, 129]), head_dim)] * 3,
        lambda tape, q, k, v: tape.attention(q, k, v, 1),
        lambda q, k, v: references.attention(q, k, v, 1),
    )


def attention_to_itself(draw: Draw) -> Case:
    n_head = draw.whole(1, 3)
    return Case(
        [(draw.few(), n_head * draw.few())],
        lambda tape, x: tape.attention(x, x, x, n_head),
        lambda x: references.attention(x, x, x, n_head),
    )


def cross_entropy(draw: Draw) -> Case:
    rows, width = draw.few(), draw.size()
    targets = draw.rows(rows, width)
    return Case(
        [(rows, width)],
        lambda tape, logits: tape.cross_entropy(logits, targets),
        lambda logits: references.cross_entropy(logits, targets),
    )


def scale(draw: Draw) -> Case:
    factor = float(draw.rng.uniform(-3, 3))
    return Case(
        [(draw.few(), draw.size())],
        lambda tape, x: tape.scale(x, factor),
        lambda x: factor * x,
    )


def sparse_linear(draw: Draw) -> Case:
    rows, n_in, n_out = draw.few(), draw.size(), draw.size()
    k = draw.whole(1, n_in)
    shapes = [(rows, n_in), (n_in, n_out), (rows, n_out)]
    return Case(
        shapes[: draw.whole(2, 3)],
        lambda tape, x, *more: tape.sparse_linear(x, tape.topk(x, k), *more),
        lambda x, *more: references.sparse_linear(x, references.topk(x, k), *more),
        kind="apart",
    )


def dropout(draw: Draw) -> Case:
    rate, key = draw.pick([0.0, 0.1, 0.5, 0.9, 0.999]), draw.pick([0, 1, draw.whole(0, 2**63 - 2)])

    def record(tape: Tape, x: int, *plus: int) -> int:
        keys = tape.input([0], 1)
        tape._inputs[keys.slot] = key  # beyond what is a row number, as in training
        return tape.dropout(x, rate, keys, *plus)

    return Case(
        [(draw.few(), draw.size())] * draw.whole(1, 2),
        record,
        lambda x, *plus: references.dropout(x, rate, key, 0, *plus),
    )


def gated_sum(draw: Draw) -> Case:
    rows, width, pieces, factor = draw.few(), draw.size(), draw.few(), draw.pick([1.0, 5.0])
    features = draw.rng.normal(size=(rows, pieces * width + draw.whole(0, 9)))

    def reference(x: Floats, gates: Floats, bias: Floats) -> Floats:
        f = features[:, : pieces * width].reshape(rows, pieces, width)
        return np.asarray(x + factor * (f[:, -1] + np.einsum("rj,rjc->rc", gates + bias, f)))

    return Case(
        [(rows, width), (rows, pieces), (1, pieces)],
        lambda tape, *given: tape.gated_sum(*given, tape.array(features), factor),
        reference,
    )


def counted(draw: Draw) -> Case:
    """What counts say, times an array."""
    rows, vocab_size, orders = draw.few(), draw.whole(1, 19), draw.whole(1, 4)
    texts = [np.array(draw.rows(draw.whole(0, 40), vocab_size), int) for _ in range(3)]
    tokens = np.array([draw.rows(rows, vocab_size + 1) for _ in range(orders)])
    left_out, width = draw.rows(rows, 4), orders * (vocab_size + 2)
    table = CountTable(texts, vocab_size, orders, vocab_size, range(3))
    expected = counted_features(texts, vocab_size, tokens, left_out)
    return Case(
        [(rows, width)],
        lambda tape, x: tape.mul(x, tape.counted_features(table, tokens.tolist(), left_out)),
        lambda x: x * expected,
    )


def recurrence(draw: Draw) -> Case:
    """h' = rmsnorm(relu(w h + x)), position by position, of documents of unequal lengths."""
    lengths = sorted((draw.few() for _ in range(draw.whole(1, 5))), reverse=True)
    alive = [sum(length > p for length in lengths) for p in range(lengths[0])]
    starts, width = np.cumsum([0, *alive]), draw.size()
    tokens = draw.rows(sum(lengths), 5)

    def record(tape: Tape, table: int, w: int) -> int:
        tape.batch(len(lengths), lengths[0])
        tape.set_lengths(lengths)
        row = tape.batch_input(5)
        tape.set_input(row, tokens)
        x = tape.embed((table, row))
        return tape.scan(lambda h: tape.rmsnorm(tape.relu(tape.linear(h, w, residual=x))), width)

    def reference(table: Floats, w: Floats) -> Floats:
        x, h, rows = table[tokens], np.zeros((len(lengths), width)), []
        for begin, count in zip(starts, alive, strict=False):
            h = references.linear(h[:count], w, x[begin : begin + count])
            h = references.rmsnorm(references.relu(h))
            rows.append(h)
        return np.concatenate(rows)

    return Case([(5, width), (width, width)], record, reference)


def shared(draw: Draw) -> Case:
    """Results that are used twice, and weights that serve two operations."""
    n_head = draw.whole(1, 3)
    width = n_head * draw.few()
    root = np.sqrt(width)  # rows keep their size: larger scores would magnify rounding errors

    def record(tape: Tape, x: int, w: int, u: int) -> int:
        x = tape.scale(x, 1 / root)
        h = tape.linear(tape.rmsnorm(x), w)
        h = tape.linear(tape.attention(h, x, h, n_head), w, residual=h)
        return tape.add(tape.softmax(tape.linear(h, u)), tape.scale(tape.linear(x, u), 0.5))

    def reference(x: Floats, w: Floats, u: Floats) -> Floats:
        x = x / root
        h = references.linear(references.rmsnorm(x), w)
        h = references.linear(references.attention(h, x, h, n_head), w, h)
        return np.asarray(
            references.softmax(references.linear(h, u)) + 0.5 * references.linear(x, u)
        )

    return Case([(draw.few(), width), (width, width), (5, width)], record, reference)


def softmax_of_scalars(tape: Tape, ids: Any) -> list[int]:
    return list(tape.softmax(ids.tolist()))


def beside(name: str, reference: Callable[..., Any], kind: str = "any") -> Make:
    """An operation on an array and a whole one, a row, a column or a number beside it."""

    def make(draw: Draw) -> Case:
        rows, width = draw.few(), draw.size()
        other = draw.pick([(rows, width), (1, width), (rows, 1), (1, 1)])
        shapes = [(rows, width), other] if draw.whole(0, 1) else [other, (rows, width)]
        return Case(shapes, getattr(Tape, name), reference, kind=kind)

    return make


def of_each(name: str, reference: Callable[..., Any], kind: str = "any") -> Make:
    """An operation on every element of an array."""
    return lambda draw: Case(
        [(draw.few(), draw.size())],
        getattr(Tape, name),
        reference,
        kind=kind,
        differentiable=name != "detach",
    )


def compared(name: str, reference: Callable[..., Any], scalars: bool) -> Make:
    """A comparison, of numbers some of which are equal."""

    def make(draw: Draw) -> Case:
        shape = (draw.few(),) if scalars else (draw.few(), draw.size())

        def record(tape: Tape, a: Any) -> Any:
            if not scalars:
                return getattr(tape, name)(a, a) if which else getattr(tape, name)(a, a[:1])
            return [getattr(tape, name)(int(x), int(a[0])) for x in a]

        def expected(a: Floats) -> Floats:
            other = a[0] if scalars else a if which else a[:1]
            return np.asarray(reference(a, other), float)

        which = draw.whole(0, 1)
        return Case([shape], record, expected, scalars=scalars, differentiable=False)

    return make


def array_pow(draw: Draw) -> Case:
    number = draw.pick([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0])
    return Case(
        [(draw.few(), draw.size())],
        lambda tape, x: tape.pow(x, number),
        lambda x: x**number,
        kind="positive",
    )


def chosen(draw: Draw) -> Case:
    """Those of two arrays, by the signs of a third."""
    return Case(
        [(draw.few(), draw.size())] * 3,
        lambda tape, c, a, b: tape.where(tape.detach(tape.relu(c)), a, b),
        lambda c, a, b: np.where(c > 0, a, b),
    )


def matmul(draw: Draw) -> Case:
    rows, depth, columns = draw.size(), draw.size(), draw.size()
    return Case([(rows, depth), (depth, columns)], Tape.matmul, np.matmul)


def part(draw: Draw) -> Case:
    rows, width = draw.few(), draw.size()
    top, left = draw.whole(0, rows - 1), draw.whole(0, width - 1)
    bottom, right = draw.whole(top + 1, rows), draw.whole(left + 1, width)
    return Case(
        [(rows, width)],
        lambda tape, x: x[top:bottom, left:right],
        lambda x: x[top:bottom, left:right],
    )


def joined(axis: int) -> Make:
    def make(draw: Draw) -> Case:
        common = draw.few() if axis else draw.size()
        sizes = [draw.size() if axis else draw.few() for _ in range(draw.whole(2, 3))]
        return Case(
            [(common, size) if axis else (size, common) for size in sizes],
            lambda tape, *x: tape.concatenate(x, axis),
            lambda *x: np.concatenate(x, axis),
        )

    return make


def over(name: str, axis: int | None, kind: str = "any") -> Make:
    """A sum, a mean or the largest, over all elements or along an axis."""
    return lambda draw: Case(
        [(draw.few(), draw.size())],
        lambda tape, x: getattr(x, name)(axis) if name == "max" else getattr(tape, name)(x, axis),
        lambda x: getattr(x, name)(axis, keepdims=axis is not None),
        kind=kind,
    )


def layernorm(draw: Draw) -> Case:
    width = draw.several()

    def reference(x: Floats, gain: Floats, bias: Floats) -> Floats:
        centred = x - x.mean(1, keepdims=True)
        return np.asarray(gain * centred / np.sqrt(x.var(1, keepdims=True) + 0.3) + bias)

    return Case(
        [(draw.few(), width), (1, width), (1, width)],
        lambda tape, x, gain, bias: tape.layernorm(x, gain, bias, 0.3),
        reference,
    )


def log_softmax(draw: Draw) -> Case:
    return Case(
        [(draw.few(), draw.size())],
        Tape.log_softmax,
        lambda x: np.log(references.softmax(x)),
        kind="apart",
    )


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


# Of the same name for scalars and arrays.
OF_ONE: dict[str, tuple[Callable[..., Any], str]] = {
    "sqrt": (np.sqrt, "positive"),
    "sin": (np.sin, "any"),
    "cos": (np.cos, "any"),
    "abs": (np.abs, "any"),
    "sigmoid": (sigmoid, "any"),
    "silu": (lambda x: x * sigmoid(x), "any"),
}
OF_TWO: dict[str, tuple[Callable[..., Any], str]] = {
    "maximum": (np.maximum, "any"),
    "minimum": (np.minimum, "any"),
    "power": (np.power, "positive"),
}
COMPARISONS = {"less": np.less, "at_most": np.less_equal, "equal": np.equal}


SCALAR_OPERATIONS: dict[str, Make] = {
    "add": each("add", np.add, 2),
    "sub": each("sub", np.subtract, 2),
    "mul": each("mul", np.multiply, 2),
    "div": each("div", np.divide, 2, kind="positive"),
    "multiply_adds": of_scalars(
        lambda t, s, a, b: t.multiply_adds(s, a, b), lambda s, a, b: s + a * b, 3
    ),
    "neg": each("neg", np.negative),
    "scale": with_number("scale", np.multiply),
    "pow": with_number("pow", np.power, kind="positive"),
    "exp": each("exp", np.exp),
    "log": each("log", np.log, kind="positive"),
    "relu": each("relu", references.relu),
    "tanh": each("tanh", np.tanh),
    "erf": each("erf", np.vectorize(math.erf)),
    "softplus": each("softplus", lambda x: np.logaddexp(0, x)),
    "detach": detach,
    **{name: each(name, reference, 1, kind) for name, (reference, kind) in OF_ONE.items()},
    **{name: each(name, reference, 2, kind) for name, (reference, kind) in OF_TWO.items()},
    **{name: compared(name, reference, True) for name, reference in COMPARISONS.items()},
    "where_true": of_scalars(lambda t, c, a: t.elementwise("where_true", c, a), lambda c, a: a, 2),
    "where_false": of_scalars(
        lambda t, c, a: t.elementwise("where_false", c, a),
        lambda c, a: np.zeros_like(a),
        2,
    ),
    "lookup": lookup,
    "largest": largest,
    "sum": of_scalars(lambda t, a: t.sum(a.tolist()), np.sum, length=Draw.size),
    "max": of_scalars(lambda t, a: t.max(a.tolist()), np.max, kind="apart", length=Draw.size),
    "dot": of_scalars(
        lambda t, a, b: t.dot(a[::-1].tolist(), b.tolist()),
        lambda a, b: a[::-1] @ b,
        2,
        length=Draw.several,
    ),
    "dot of runs": of_scalars(
        lambda t, a, b: t.dot(a.tolist(), b.tolist()), np.dot, 2, length=Draw.size
    ),
    "softmax of scalars": of_scalars(softmax_of_scalars, references.softmax, length=Draw.size),
    "sums": of_scalars(
        lambda t, a: t.sums(np.stack([a, a[::-1]])), lambda a: [a.sum()] * 2, length=Draw.size
    ),
    "softmax of rows of scalars": of_scalars(
        lambda t, a: t.softmax(np.stack([a, a[::-1]])),
        lambda a: references.softmax(np.stack([a, a[::-1]])),
        length=Draw.size,
    ),
    "runs of add": runs("add", np.add),
    "runs of sub": runs("sub", np.subtract),
    "runs of mul": runs("mul", np.multiply),
    "runs of div": runs("div", np.divide, kind="positive"),
    "runs of scale": of_scalars(
        lambda t, a: t.elementwise("scale", a, np.full(len(a), t.constant(-0.75))),
        lambda a: -0.75 * a,
        length=Draw.several,
    ),
    "runs of exp": runs("exp", np.exp, 1),
    "runs of relu": runs("relu", references.relu, 1),
    "dots by rows": dots(True),
    "dots by columns": dots(False),
}

ARRAY_OPERATIONS: dict[str, Make] = {
    "embed": embed,
    "linear": linear,
    "linear of itself": linear_of_itself,
    "rmsnorm": rmsnorm,
    **{f"attention, heads of up to {sizes[-1]}": attention(*sizes) for sizes in HEAD_DIMS},
    "attention to itself": attention_to_itself,
    "streaming attention": streaming_attention,
    "cross_entropy": cross_entropy,
    "softmax, array": of_arrays(Tape.softmax, references.softmax),
    "relu, array": of_arrays(Tape.relu, references.relu),
    "add, array": of_arrays(Tape.add, np.add, 2),
    "add to itself, array": of_arrays(lambda t, x: t.add(x, x), lambda x: x + x),
    "scale, array": scale,
    "mean": of_arrays(Tape.mean, np.mean),
    "sparse_linear": sparse_linear,
    "rotary": rotary,
    "head_norm": head_norm,
    "relu_squared": of_arrays(Tape.relu_squared, lambda x: references.relu(x) ** 2),
    "gelu": of_arrays(Tape.gelu, references.gelu),
    "swiglu": of_arrays(Tape.swiglu, references.swiglu, 2),
    "swiglu of itself": of_arrays(lambda t, x: t.swiglu(x, x), lambda x: references.swiglu(x, x)),
    "softcap": softcap,
    **{
        f"{name}, array": of_each(name, reference, kind)
        for name, (reference, kind) in {
            **OF_ONE,
            "neg": (np.negative, "any"),
            "exp": (np.exp, "any"),
            "log": (np.log, "positive"),
            "tanh": (np.tanh, "any"),
            "erf": (np.vectorize(math.erf, [float]), "any"),
            "softplus": (lambda x: np.logaddexp(0, x), "any"),
            "detach": (lambda x: x, "any"),
        }.items()
    },
    **{
        f"{name}, array": beside(name, reference, kind)
        for name, (reference, kind) in {
            **OF_TWO,
            "add": (np.add, "any"),
            "sub": (np.subtract, "any"),
            "mul": (np.multiply, "any"),
            "div": (np.divide, "positive"),
        }.items()
        if name != "add"
    },
    "add beside": beside("add", np.add),
    "mul of itself, array": of_arrays(lambda t, x: t.mul(x, x), lambda x: x * x),
    **{
        f"{name}, array": compared(name, reference, False)
        for name, reference in COMPARISONS.items()
    },
    "pow, array": array_pow,
    "where, array": chosen,
    "matmul": matmul,
    "matmul of itself": lambda draw: Case(
        [(draw.most, draw.most) if draw.most < 9 else (9, 9)], lambda t, x: x @ x, lambda x: x @ x
    ),
    "transpose": of_arrays(lambda t, x: x.T, lambda x: x.T),
    "part": part,
    "concatenate rows": joined(0),
    "concatenate columns": joined(1),
    **{
        f"{name} over {axis}": over(name, axis, kind)
        for name, axis, kind in (
            *(("sum", axis, "any") for axis in (None, 0, 1)),
            *(("mean", axis, "any") for axis in (0, 1)),
            *(("max", axis, "apart") for axis in (0, 1)),
        )
    },
    "log_softmax": log_softmax,
    "layernorm": layernorm,
    "dropout": dropout,
    "recurrence": recurrence,
    "gated_sum": gated_sum,
    "counted_features": counted,
    "several, shared": shared,
}

CATALOGUE = SCALAR_OPERATIONS | ARRAY_OPERATIONS

# Operations that one template makes of formulas, all but those that show what it does: the others
# call other functions of vectors, which have tests of their own for each type and machine.
FORMULAS = {
    f"{name}, array"
    for name in {*POINTWISE, "where"} - {"exp", "log", "pow", "power", "div", "less"}
}
FORMULAS = FORMULAS - {"add, array"} | {"add beside", "mul of itself, array"}
# Nor need other machines run what is composed of others, and attention, which has its own tests.
ALIKE = FORMULAS | {"log_softmax", "layernorm", "several, shared"}
ALIKE |= {name for name in CATALOGUE if "attention" in name}
# In float32 other machines run these alone: they choose lanes. Others that do are in the models of
# test_batch.py.
OF_LANES = {"dropout", "sparse_linear", "rotary", "head_norm", "swiglu"}


def by_name(names: Iterable[str], left_out: Iterable[str] = ALIKE) -> list[Any]:
    """Parameters; some are left out where tests run as another machine."""
    marks = [pytest.mark.any_machine]
    return [pytest.param(name, marks=marks * (name in left_out)) for name in names]


class Recorded:
    """A case on a tape, as the random projection of its result.

    There is a guard array before, between and after. `given` stands for the case's own numbers.
    """

    def __init__(
        self, case: Case, draw: Draw, dtype: str = "float64", given: list[Floats] | None = None
    ) -> None:
        self.tape = tape = Tape(dtype)
        self.arrays = given or [draw.numbers(shape, case.kind) for shape in case.shapes]
        self.guards = [self._guard()]
        leaves = [tape.variables(a) if case.scalars else tape.array(a) for a in self.arrays]
        self.places = [leaf if case.scalars else self.elements(leaf) for leaf in leaves]
        self.guards.append(self._guard())
        begin = self._ends()
        result = case.record(tape, *leaves)
        self.extent = begin, self._ends()
        self.guards.append(self._guard())
        scalar = case.scalars or tape.shape(result) == ()
        self.result = tape._ids(result) if scalar else self.elements(result)
        # The same whatever the dtype.
        rng = np.random.default_rng(self.result.size)
        weights = tape.variables(rng.normal(size=(1, self.result.size)))
        self.root = int(tape.dots(self.result.reshape(1, -1), weights)[0])
        tape.backward(self.root)

    def _guard(self) -> int:
        return self.tape.array(np.full((1, self.tape.lanes), 7.0)).id

    def _ends(self) -> tuple[int, int]:
        """How many records there are, and arguments of them."""
        tape_arrays = self.tape._replay_arrays()
        return len(tape_arrays.records), len(tape_arrays.operands)

    def elements(self, node: Array | int) -> NDArray[np.int64]:
        """The ids of an array's elements."""
        rows, width = self.tape.shape(node)
        row_starts = self.tape.node(node).id + self.tape._stride(width) * np.arange(rows)
        return np.add.outer(row_starts, np.arange(width))

    @property
    def value(self) -> NDArray[np.floating]:
        return np.asarray(self.tape.values[self.result])

    def gradients(self) -> list[NDArray[np.floating]]:
        return [self.tape.grads[places] for places in self.places]

    def moved(self, direction: list[Floats], distance: float) -> float:
        """The projection at another place."""
        return self.at(
            [x + distance * speed for x, speed in zip(self.arrays, direction, strict=True)]
        )

    def at(self, arrays: list[Floats]) -> float:
        """The projection of the result for other arrays."""
        for places, array in zip(self.places, arrays, strict=True):
            self.tape.values[places] = array
        self.tape.forward()
        return float(self.tape.value(self.root))

    def records(self) -> NDArray[np.uint32]:
        """Those of the operation alone."""
        (begin, _), (end, _) = self.extent
        return self.tape._replay_arrays().records[begin:end]
