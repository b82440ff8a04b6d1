"""The gradients of every operation and of every model against differences.

One check: the derivative along a random direction of a random projection of the result. The long
form counts its cases and checks and prints them:

    pytest -m long -s tests/test_gradients.py
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gradients import loss_and_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tapegpt.corpus import TokenizedCorpus
from tapegpt.kernels import op
from tapegpt.program import record
from tapegpt.settings import GRANULARITIES, ModelConfig
from tapegpt.tape import Tape

Floats = NDArray[np.float64]
Draw = Callable[..., Any]

DIRECTIONS = 2  # for each case
SHORT, LONG = 4, 200  # cases of an operation
STEPS = (1e-5, 1e-6, 1e-7)  # the first ones may cross the kink of a ReLU

sizes = st.integers(1, 21) | st.sampled_from([33, 64, 65])
several = sizes.map(lambda n: n + 1)
few = st.integers(1, 7)


@dataclass
class Case:
    """Arrays, an operation on them, and how their numbers are distributed.

    Scalar operations get arrays of node ids, array operations the ids of array nodes.
    """

    shapes: list[tuple[int, ...]]
    record: Callable[..., Any]  # (tape, what stands for each array) -> ids of scalars, or an array
    scalars: bool = True
    values: str = "any"


def of_scalars(
    function: Callable[..., Any], arrays: int = 1, values: str = "any", terms: Any = few
) -> Callable[[Draw], Case]:
    """An operation on rows of scalars, all of one length."""
    return lambda draw: Case([(draw(terms),)] * arrays, function, values=values)


def each(name: str, arrays: int = 1, values: str = "any") -> Callable[[Draw], Case]:
    """An operation on one or two scalars, one record after the other."""

    def record_each(tape: Tape, *ids: Any) -> list[int]:
        return [getattr(tape, name)(*(int(i) for i in row)) for row in zip(*ids, strict=True)]

    return of_scalars(record_each, arrays, values)


def with_number(name: str, values: str = "any") -> Callable[[Draw], Case]:
    """An operation on a scalar and a number that is not a node."""

    def make(draw: Draw) -> Case:
        number = draw(st.sampled_from([-1.5, -0.5, 0.0, 1.0, 2.0, 3.0]))
        count = draw(few)
        return Case(
            [(count,)], lambda t, a: [getattr(t, name)(int(i), number) for i in a], values=values
        )

    return make


def runs(name: str, arrays: int = 2, values: str = "any") -> Callable[[Draw], Case]:
    """One record for nodes side by side."""
    return of_scalars(lambda t, *ids: t.runs(name, *ids), arrays, values, several)


def dots(by_rows: bool) -> Callable[[Draw], Case]:
    """Products of one vector and a matrix."""

    def make(draw: Draw) -> Case:
        rows, terms = draw(st.integers(2, 21)), draw(st.integers(2, 21))

        def record_dots(tape: Tape, matrix: Any, vector: Any) -> Any:
            rows_of_ids = matrix if by_rows else matrix.T
            return tape.dots(rows_of_ids, np.broadcast_to(vector, rows_of_ids.shape))

        return Case([(rows, terms), (terms if by_rows else rows,)], record_dots)

    return make


def of_arrays(
    function: Callable[..., int], arrays: int = 1, values: str = "any"
) -> Callable[[Draw], Case]:
    """An operation on arrays of one shape."""
    return lambda draw: Case([(draw(few), draw(sizes))] * arrays, function, False, values)


def lookup(draw: Draw) -> Case:
    rows, width = draw(few), draw(few)
    which = draw(st.integers(0, rows - 1))
    return Case([(rows, width)], lambda t, a: t.lookup(a[0], t.input([which], rows), 0, width))


def largest(draw: Draw) -> Case:
    """The k largest, looked up where they stand."""
    count = draw(sizes)
    k = draw(st.integers(1, min(count, 9)))

    def record_largest(tape: Tape, a: Any) -> list[int]:
        which = tape.largest(a, k)
        return [int(tape.lookup(a[:1], which, j, 1)[0]) for j in range(k)]

    return Case([(count,)], record_largest, values="apart")


def embed(draw: Draw) -> Case:
    rows, width, heights = draw(few), draw(sizes), draw(st.lists(few, min_size=1, max_size=3))
    which = [draw(st.lists(st.integers(0, n - 1), min_size=rows, max_size=rows)) for n in heights]
    return Case(
        [(n, width) for n in heights],
        lambda t, *tables: t.embed(*zip(tables, which, strict=True)),
        scalars=False,
    )


def linear(draw: Draw) -> Case:
    rows, n_in, n_out = draw(sizes), draw(sizes), draw(sizes)
    shapes = [(rows, n_in), (n_out, n_in), (rows, n_out)]
    return Case(shapes[: draw(st.integers(2, 3))], Tape.linear, scalars=False)


def attention(head_dims: Any) -> Callable[[Draw], Case]:
    def make(draw: Draw) -> Case:
        n_head, rows = draw(st.integers(1, 9)), draw(few)
        shape = (rows, n_head * draw(head_dims))
        return Case([shape] * 3, lambda t, q, k, v: t.attention(q, k, v, n_head), scalars=False)

    return make


def cross_entropy(draw: Draw) -> Case:
    rows, width = draw(few), draw(sizes)
    targets = draw(st.lists(st.integers(0, width - 1), min_size=rows, max_size=rows))
    return Case([(rows, width)], lambda t, x: t.cross_entropy(x, targets), scalars=False)


def gathered_linear(draw: Draw) -> Case:
    rows, n_in, n_out = draw(few), draw(sizes), draw(sizes)
    k = draw(st.integers(1, n_in))
    shapes = [(rows, n_in), (n_in, n_out), (rows, n_out)]
    return Case(
        shapes[: draw(st.integers(2, 3))],
        lambda t, x, *more: t.gathered_linear(x, t.topk(x, k), *more),
        scalars=False,
        values="apart",
    )


def dropout(draw: Draw) -> Case:
    rate, key = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])), draw(st.integers(0, 9))
    return Case(
        [(draw(few), draw(sizes))] * draw(st.integers(1, 2)),
        lambda t, x, *plus: t.dropout(x, rate, t.input([key], 10), *plus),
        scalars=False,
    )


def recurrence(draw: Draw) -> Case:
    """h' = rmsnorm(relu(w h + x)), position by position, of documents of unequal lengths."""
    lengths = sorted(draw(st.lists(few, min_size=1, max_size=5)), reverse=True)
    alive = [sum(n > p for n in lengths) for p in range(lengths[0])]
    starts, width = np.cumsum([0, *alive]), draw(sizes)
    tokens = draw(st.lists(st.integers(0, 4), min_size=sum(lengths), max_size=sum(lengths)))

    def record_recurrence(tape: Tape, table: int, w: int) -> int:
        batch = tape.batch(len(lengths), lengths[0], 5)
        for slot, numbers in ((batch.starts, starts), (batch.tokens.slot, tokens)):
            for place, number in enumerate(numbers, slot):
                tape._inputs[place] = int(number)
        x = tape.embed((table, batch.tokens))
        h = tape.previous(width)
        return tape.carry(tape.rmsnorm(tape.relu(tape.linear(h, w, plus=x))))

    return Case([(5, width), (width, width)], record_recurrence, scalars=False)


# A new operation is one entry: how a case of it is drawn.
OPERATIONS: dict[str, Callable[[Draw], Case]] = {
    "add": each("add", 2),
    "sub": each("sub", 2),
    "mul": each("mul", 2),
    "div": each("div", 2, values="positive"),
    "neg": each("neg"),
    "scale": with_number("scale"),
    "pow": with_number("pow", values="positive"),
    "exp": each("exp"),
    "log": each("log", values="positive"),
    "relu": each("relu"),
    "tanh": each("tanh"),
    "softplus": each("softplus"),
    "detach": of_scalars(
        lambda t, a: t.record("add", a, t.record("detach", [t.constant(3)] * len(a)))
    ),
    "lookup": lookup,
    "largest": largest,
    "sum": of_scalars(lambda t, a: t.sum(a.tolist()), terms=sizes),
    "max": of_scalars(lambda t, a: t.max(a.tolist()), values="apart", terms=sizes),
    "dot": of_scalars(lambda t, a, b: t.dot(a[::-1].tolist(), b.tolist()), 2, terms=several),
    "dot of runs": of_scalars(lambda t, a, b: t.dot(a.tolist(), b.tolist()), 2, terms=sizes),
    "softmax_of": of_scalars(lambda t, a: list(t.softmax_of(a.tolist())), terms=sizes),
    "sums": of_scalars(lambda t, a: t.sums(np.stack([a, a[::-1]])), terms=sizes),
    "softmaxes": of_scalars(lambda t, a: t.softmaxes(np.stack([a, a[::-1]])), terms=sizes),
    **{f"runs of {name}": runs(name) for name in ("add", "sub", "mul")},
    "runs of div": runs("div", values="positive"),
    "runs of scale": of_scalars(
        lambda t, a: t.runs("scale", a, np.full(len(a), t.constant(-0.7))), terms=several
    ),
    **{f"runs of {name}": runs(name, 1) for name in ("exp", "relu")},
    "dots by rows": dots(True),
    "dots by columns": dots(False),
    "embed": embed,
    "linear": linear,
    "rmsnorm": of_arrays(lambda t, x: t.rmsnorm(x)),
    **{
        f"attention, heads of up to {size}": attention(st.integers(size // 2 + 1, size))
        for size in (1, 2, 4, 8, 16, 37)
    },
    "cross_entropy": cross_entropy,
    "softmax, array": of_arrays(Tape.softmax),
    "relu, array": of_arrays(Tape.relu),
    "add, arrays": of_arrays(Tape.add, 2),
    "scale, array": of_arrays(lambda t, x: t.scale(x, -1.7)),
    "mean": of_arrays(Tape.mean),
    "gathered_linear": gathered_linear,
    "dropout": dropout,
    "recurrence": recurrence,
}


def numbers(rng: np.random.Generator, shape: tuple[int, ...], values: str) -> Floats:
    """Random numbers, none so close to 0 that a step would change its sign."""
    drawn = rng.normal(size=shape)
    if values == "apart":  # from each other too, so that no step changes their order
        order = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        drawn = order - shape[-1] / 2 + rng.uniform(0.1, 0.4, shape)
        return np.asarray(0.3 * drawn)
    drawn += 1e-3 * np.copysign(1, drawn)
    return np.asarray(0.3 + np.abs(drawn) if values == "positive" else drawn)


class Recorded:
    """A case on a tape, as the random projection of its result."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        self.tape = tape = Tape()
        given, self.places = [], []
        for shape in case.shapes:
            values = numbers(rng, shape, case.values)
            if case.scalars:
                given.append(tape.variables(values))
                self.places.append(given[-1])
            else:
                given.append(tape.array(values))
                self.places.append(self.elements(given[-1]))
        result = case.record(tape, *given)
        scalar = case.scalars or tape.shape(result) == ()
        ids = np.ravel(result if scalar else self.elements(result))
        weights = tape.variables(rng.normal(size=(1, ids.size)))
        self.root = int(tape.dots(ids[None], weights)[0])
        tape.backward(self.root)
        self.gradients = [tape.grads[places] for places in self.places]
        self.start = [tape.values[places] for places in self.places]

    def elements(self, node: int) -> NDArray[np.int64]:
        """The ids of an array's elements."""
        rows, width = self.tape.shape(node)
        row_starts = node + self.tape.stride(width) * np.arange(rows)
        return np.add.outer(row_starts, np.arange(width))

    def moved(self, direction: list[Floats], distance: float) -> float:
        for places, start, speed in zip(self.places, self.start, direction, strict=True):
            self.tape.values[places] = start + distance * speed
        self.tape.forward()
        return float(self.tape.value(self.root))


def check_slope(
    moved: Callable[[float], float], gradients: list[Floats], direction: list[Floats]
) -> None:
    """The derivative along a direction is the difference's, for one of the steps at least."""
    terms = np.concatenate([(g * d).ravel() for g, d in zip(gradients, direction, strict=True)])
    found = []
    for step in STEPS:
        forward, backward = moved(step), moved(-step)
        found.append((forward - backward) / (2 * step))
        rounding = 1e-15 * max(1, abs(forward)) * len(terms) ** 0.5 / step
        if abs(found[-1] - terms.sum()) <= 1e-6 * np.linalg.norm(terms) + rounding:
            return
    raise AssertionError(f"the slope is {found}, the gradient says {terms.sum()}")


def check_operation(name: str, draw: Draw, counts: Counter[str]) -> set[int]:
    """Returns the opcodes that are recorded."""
    case, rng = OPERATIONS[name](draw), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    recorded = Recorded(case, rng)
    for _ in range(DIRECTIONS):
        direction = [rng.normal(size=start.shape) for start in recorded.start]
        check_slope(
            lambda distance, d=direction: recorded.moved(d, distance), recorded.gradients, direction
        )
        counts["checks"] += 1
    counts["cases"] += 1
    return set(recorded.tape.machine().records[:, 0].tolist())


@pytest.fixture(scope="module")
def totals() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    print(f"\n{counts['cases']} cases, {counts['checks']} directional checks in all")


few_examples = settings(max_examples=SHORT)
many_examples = settings(max_examples=LONG, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
@few_examples
def test_gradient_is_the_slope(name: str, data: Any) -> None:
    check_operation(name, data.draw, Counter())


@given(data=st.data())
@settings(max_examples=1)
def test_every_operation_is_among_them(data: Any) -> None:
    recorded = {code for name in OPERATIONS for code in check_operation(name, data.draw, Counter())}
    squares = [op.ATTENTION + i for i in range(5) if 2**i > Tape().lanes]  # wider than a vector
    # A matrix unit's products are float32, and follow float64: test_array_operations.py.
    assert recorded == {*range(op.SCALARS)} - {*squares, op.UNIT_LINEAR}


@pytest.mark.long
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_is_the_slope_in_many_cases(name: str, totals: Counter[str]) -> None:
    counts: Counter[str] = Counter()

    @many_examples
    @given(data=st.data())
    def check(data: Any) -> None:
        check_operation(name, data.draw, counts)

    check()
    assert counts["cases"] >= LONG
    totals.update(counts)
    print(f"{name}: {counts['cases']} cases, {counts['checks']} checks")


def draw_model(draw: Draw, kind: str, granularity: str) -> ModelConfig:
    block = draw(st.integers(1, 5))
    if kind == "gpt":
        n_head, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 5))
        n_layer = draw(st.integers(1, 2))
        return ModelConfig(
            n_layer=n_layer,
            n_embd=n_head * head_dim,
            n_head=n_head,
            block_size=block,
            look_back=draw(st.integers(0, min(2, block - 1))),
            ensemble=draw(st.integers(1, 2)),
            dropout=draw(st.sampled_from([0.0, 0.25])) if granularity == "vector" else 0.0,
        )
    n_state = draw(st.integers(1, 17))
    n_att = draw(st.integers(1, n_state))
    n_embd = draw(st.integers(1, 9))
    return ModelConfig(model=kind, n_embd=n_embd, n_state=n_state, n_att=n_att, block_size=block)


def check_model(kind: str, granularity: str, draw: Draw, counts: Counter[str]) -> None:
    """Along a direction for each parameter, and for all of them together."""
    model, vocab_size = draw_model(draw, kind, granularity), draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    delimiter = vocab_size - 1
    documents = [[delimiter, *rng.integers(0, delimiter, n), delimiter] for n in lengths]
    corpus = TokenizedCorpus(
        np.concatenate(documents).astype(np.int32), np.cumsum([0, *map(len, documents)])
    )
    recording = record(model, vocab_size, granularity, "float64", len(documents))
    recording.program.machine.inputs[recording.program.key] = 3
    weights = recording.weights
    for matrix in weights.values():
        matrix[:] = rng.normal(0, matrix.shape[1] ** -0.5, matrix.shape)
    start = {name: matrix.copy() for name, matrix in weights.items()}
    _, gradients = loss_and_gradients(recording, corpus, 0, len(documents))
    for chosen in [[name] for name in weights] + [list(weights)]:
        direction = {name: rng.normal(size=weights[name].shape) for name in chosen}

        def moved(distance: float, direction: dict[str, Floats] = direction) -> float:
            for name, speed in direction.items():
                weights[name][:] = start[name] + distance * speed
            loss, _ = loss_and_gradients(recording, corpus, 0, len(documents))
            for name in direction:
                weights[name][:] = start[name]
            return loss

        check_slope(moved, [gradients[name] for name in chosen], list(direction.values()))
        counts["checks"] += 1
    counts["cases"] += 1


every_model = pytest.mark.parametrize(
    ("kind", "granularity"),
    [(kind, granularity) for kind in ("gpt", "rnn", "rnn-att") for granularity in GRANULARITIES],
)


@every_model
@given(data=st.data())
@few_examples
def test_gradient_of_a_model_is_the_slope(kind: str, granularity: str, data: Any) -> None:
    check_model(kind, granularity, data.draw, Counter())


@pytest.mark.long
@every_model
def test_gradient_of_a_model_is_the_slope_in_many_cases(
    kind: str, granularity: str, totals: Counter[str]
) -> None:
    counts: Counter[str] = Counter()

    @many_examples
    @given(data=st.data())
    def check(data: Any) -> None:
        check_model(kind, granularity, data.draw, counts)

    check()
    assert counts["cases"] >= LONG
    totals.update(counts)
    print(f"{kind}, {granularity}: {counts['cases']} cases, {counts['checks']} checks")
