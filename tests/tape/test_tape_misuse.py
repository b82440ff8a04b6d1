"""Any call of the tape's methods, with any arguments, in any order: it works, or is refused."""

import contextlib
import copy
import gc
import math
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tapegpt.counting.table import CountTable
from tapegpt.errors import TapegptError
from tapegpt.tape import Array, Input, Mark, Scalar, Tape, TapeError, storage

OPERATIONS = (
    *(
        "add",
        "mul",
        "sub",
        "div",
        "scale",
        "pow",
        "neg",
        "exp",
        "log",
        "relu",
        "tanh",
        "erf",
        "softplus",
    ),
    *("detach", "sum", "cos", "", None, 3),
)

# What every public method takes: the kinds of `Hostile.argument`.
METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "neg",
            "exp",
            "log",
            "sqrt",
            "sin",
            "cos",
            "abs",
            "sigmoid",
            "silu",
            "tanh",
            "erf",
            "softplus",
            "detach",
            "node",
        ),
        ("scalar",),
    ),
    **dict.fromkeys(("softmax", "mean", "view"), ("array",)),
    **dict.fromkeys(("relu_squared", "gelu"), ("array",)),
    **dict.fromkeys(("value", "grad", "shape", "relu"), ("either",)),
    **dict.fromkeys(("sub", "mul", "div"), ("scalar", "scalar")),
    **dict.fromkeys(("add",), ("array", "array")),
    **dict.fromkeys(("scale", "pow"), ("scalar", "number")),
    **dict.fromkeys(("rmsnorm",), ("array", "number")),
    **dict.fromkeys(("sum", "max"), ("list",)),
    **dict.fromkeys(("sums", "values_of", "grads_of"), ("ids",)),
    "set_values": ("ids", "floats"),
    "scan": ("function", "count"),
    **dict.fromkeys(("var", "constant"), ("number",)),
    **dict.fromkeys(("variables", "array", "parameter", "scalar_parameters"), ("floats",)),
    **dict.fromkeys(("forward", "mark", "records", "listing", "to_dot"), ()),
    **dict.fromkeys(("maximum", "minimum", "less", "at_most", "equal"), ("either", "either")),
    **dict.fromkeys(("transpose", "log_softmax", "layernorm"), ("array",)),
    "power": ("either", "either"),
    "where": ("either", "either", "either"),
    "matmul": ("array", "array"),
    "take": ("array", "input"),
    "concatenate": ("some arrays", "count"),
    "jvp": ("either", "list", "numbers"),
    "check": ("scalar", "list"),
    "grad_nodes": ("scalar", "list"),
    "hvp": ("scalar", "ids", "floats"),
    **dict.fromkeys(("sgd", "adam", "adamw", "muon"), ("list",)),
    "backward": ("scalar", "truth"),
    "dot": ("list", "list"),
    "dots": ("ids", "ids"),
    "multiply_adds": ("ids", "ids", "ids"),
    "elementwise": ("name", "ids", "more ids", "truth"),
    "embed": ("pair", "pair"),
    "linear": ("array", "array", "optional"),
    "attention": ("array", "array", "array", "count"),
    "rotary_tables": ("count", "count", "count", "number"),
    "rotary": ("array", "input", "tables"),
    "head_norm": ("array", "count", "number", "number"),
    "swiglu": ("array", "array"),
    "softcap": ("array", "number"),
    "cross_entropy": ("array", "input"),
    "topk": ("array", "count"),
    "sparse_linear": ("array", "input", "array", "optional"),
    "set_value": ("either", "floats"),
    "input": ("numbers", "count"),
    "set_input": ("input", "numbers"),
    "dropout": ("array", "number", "input", "optional"),
    "batch": ("count", "count"),
    "batch_input": ("count",),
    "set_lengths": ("numbers",),
    "reset": ("mark",),
    "counted_features": ("table", "some inputs"),
    "gated_sum": ("array", "array", "array", "array", "number"),
}

JUNK = [
    None,
    True,
    "1",
    1.5,
    1j,
    (),
    [],
    {},
    object(),
    b"1",
    math.nan,
    [[1], [1, 2]],
    Tape,
    slice(3),
]
FAR = [-1, -7, 2**20, 2**31, 2**32 - 1, 2**63 - 1, 2**63, -(2**63), 2**64, -(2**70)]
NUMBERS = [
    0,
    1,
    -2.5,
    -0.0,
    1e-310,
    1e300,
    math.inf,
    -math.inf,
    10**400,
    np.float32(3),
    np.int8(-1),
]
DTYPES = [
    "int8",
    "uint8",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    "object",
    "complex128",
]


def test_every_method_is_called() -> None:
    public = {name for name in dir(Tape) if not name.startswith("_")}
    assert public == set(METHODS) | {"function"}


class Hostile(RuleBasedStateMachine):
    """A tape, another one, and whatever they have ever returned."""

    @initialize(dtype=st.sampled_from(["float32", "float64"]), batch=st.booleans())
    def begin(self, dtype: str, batch: bool) -> None:
        self.largest, storage.LARGEST_TAPE = storage.LARGEST_TAPE, 2**18
        self.tape, self.other = Tape(dtype, capacity=1), Tape(dtype)
        self.inputs: list[Any] = [self.other.input([0, 1], 2)]
        self.marks: list[Any] = [self.other.mark(), Mark(3, 0, 0, 0)]
        self.handles: list[Any] = [self.other.var(1.0)]
        self.arrays = [self.tape.parameter(np.ones((4, 4))).id]
        self.tape.variables([1.0, 2.0, 3.0])
        if batch:
            self.tape.batch(2, 3)
            self.tape.set_lengths([3, 1])
            rows, targets = self.tape.batch_input(4), self.tape.batch_input(4)
            self.inputs += [rows, targets, self.tape.input([0], 2**30)]
            self.arrays.append(self.tape.embed((self.arrays[0], rows)).id)

    def teardown(self) -> None:
        if hasattr(self, "largest"):
            storage.LARGEST_TAPE = self.largest

    def argument(self, kind: str) -> Any:
        if self.rng.random() < 0.05:
            return self.rng.choice([*JUNK, *FAR, *self.inputs, *self.marks, self.tape])
        return getattr(self, kind.replace(" ", "_"))()

    def scalar(self) -> Any:
        return self.id_like(self.rng.randrange(len(self.tape) + 1))

    def array(self) -> Any:
        known = [node for node in self.arrays if node in self.tape._shapes]
        return self.id_like(self.rng.choice(known if self.rng.random() < 0.9 else self.arrays))

    def id_like(self, node: int) -> Any:
        """A node's id as one kind of integer or other, or another tape's."""
        kind = self.rng.choice([int] * 9 + [np.int64, np.uint64, np.array, Scalar])
        return self.rng.choice(self.handles) if kind is Scalar else kind(node)

    def either(self) -> Any:
        return self.scalar() if self.rng.random() < 0.5 else self.array()

    def tables(self) -> Any:
        return self.array(), self.array()

    def some_arrays(self) -> Any:
        return [self.array() for _ in range(self.rng.choice([1, 2, 3]))]

    def some_inputs(self) -> Any:
        return [self.rng.choice([[0, 1], self.rng.choice(self.inputs)]) for _ in range(2)]

    def table(self) -> Any:
        return CountTable([np.array([0, 1, 0, 1])], vocab_size=2, orders=2, before=2)

    def optional(self) -> Any:
        return None if self.rng.random() < 0.5 else self.array()

    def list(self) -> Any:
        return np.ravel(self.ids()).tolist()

    def ids(self) -> Any:
        """Consecutive ids or not, in rows, arrays that are views, of any type."""
        rows, columns = self.rng.choice([(1, 1), (2, 3), (3, 2), (1, 4), (3, 3), (0, 2), (2, 0)])
        end = len(self.tape) + (self.rng.random() < 0.05)
        first = self.rng.randrange(max(1, end - rows * columns + 1))
        ids = first + np.arange(rows * columns).reshape(rows, columns)
        change = self.rng.choice(["", "", "T", "row", "reversed", "every", "random", "same"])
        if change == "random":
            ids = np.random.default_rng(first).integers(0, max(1, end), ids.shape)
        ids = {"T": ids.T, "reversed": ids[:, ::-1], "every": ids[::2, ::2]}.get(change, ids)
        if change in ("row", "same") and rows:
            ids = ids[0] if change == "row" else np.broadcast_to(ids[0], ids.shape)
        with np.errstate(all="ignore"):
            return ids.astype(self.rng.choice(["int64"] * 20 + DTYPES))

    def more_ids(self) -> Any:
        return None if self.rng.random() < 0.5 else self.ids()

    def number(self) -> Any:
        return self.rng.choice(NUMBERS)

    def count(self) -> Any:
        return self.rng.choice([1, 2, 3, 4, np.int8(2), 1, 2, 3, 4, 5, 0, 1000])

    def truth(self) -> Any:
        return self.rng.random() < 0.5

    def function(self) -> Any:
        steps = [self.tape.relu, self.tape.rmsnorm, self.tape.mean, self.tape.exp, lambda h: h]
        return self.rng.choice([*steps, lambda h: self.tape.linear(h, self.array())])

    def name(self) -> Any:
        return self.rng.choice(OPERATIONS)

    def floats(self) -> Any:
        shapes = [(4, 4)] * 8 + [(), (3,), (4, 3), (3, 4), (1, 0), (2, 2, 2), (1, 17)]
        number = self.rng.choice([1.0, -0.5, 0.0, -3.0, math.nan, math.inf, 1e300])
        given = np.full(self.rng.choice(shapes), number)
        with np.errstate(all="ignore"):
            given = np.asarray(given.astype(self.rng.choice(["float64"] * 10 + DTYPES)))
        return self.rng.choice([given, given.T.copy().T, given.tolist(), given[..., None][..., 0]])

    def numbers(self) -> Any:
        count = self.rng.choice([1, 2, 3, 3, 3, 4])
        numbers = [self.rng.choice([0, 0, 1, 1, 2, 2, 3, -1, 2**63]) for _ in range(count)]
        return self.rng.choice([numbers, np.array(numbers, object), iter(numbers)])

    def input(self) -> Any:
        known = [which for which in self.inputs if which in self.tape._known_inputs.values()]
        which = self.rng.choice(known if known and self.rng.random() < 0.9 else self.inputs)
        if self.rng.random() < 0.3 or not isinstance(which, Input):
            return self.numbers()
        forged = self.rng.choice([""] * 12 + ["count", "below", "slot", "width"])
        return replace(which, **{forged: 50}) if forged else which

    def pair(self) -> Any:
        return self.array(), self.argument("input")

    def mark(self) -> Any:
        return self.rng.choice([None, *self.marks])

    # A seed for all arguments: ten times as fast as drawing each, and just as varied.
    @rule(name=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 2**32 - 1))
    def call(self, name: str, seed: int) -> None:
        self.rng = Random(seed)
        arguments = [self.argument(kind) for kind in METHODS[name]]
        before = self.everything()
        try:
            with np.errstate(all="ignore"):
                found = getattr(self.tape, name)(*arguments)
        except TapeError:
            assert self.everything() == before
            return
        if isinstance(found, Input):
            self.inputs.append(found)
        if isinstance(found, Mark):
            self.marks.append(found)
        if isinstance(found, Scalar):
            self.handles.append(found)
        if isinstance(found, Array):
            self.handles.append(found)
            self.arrays.append(found.id)

    def everything(self) -> tuple[Any, ...]:
        # Not the values, or what records choose: they may be computed at any time.
        tape, end = self.tape, len(self.tape)
        tape._hold()  # records that wait are appended
        tape._release()
        parts = tape.grads[:end], tape._records, tape._operands
        return end, tape.num_params, len(tape._inputs), *(part.tobytes() for part in parts)

    @rule(root=st.integers(0, 10**6))
    def sweep(self, root: int) -> None:
        self.tape.forward()
        with contextlib.suppress(TapeError):  # of an array
            self.tape.backward(root % max(1, len(self.tape)))

    @rule(how=st.sampled_from([copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]))
    def go_on_with_a_copy(self, how: Any) -> None:
        """What was recorded on the one is nothing to the other."""
        try:
            copied = how(self.tape)
        except TapegptError as error:
            assert "a table of counts cannot be pickled" in str(error)
            return
        self.other, self.tape = self.tape, copied
        before = self.everything()
        self.other.exp(self.other.var(1.0))
        self.other.forward()
        assert self.everything() == before
        self.sweep(0)


class TestMisuse(Hostile.TestCase):
    settings = settings(max_examples=15, stateful_step_count=40)


@pytest.mark.long
class TestMisuseAtLength(Hostile.TestCase):
    settings = settings(
        max_examples=10_000, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
    )


REFUSED = {
    "a name that has no hash": lambda t, x, s: t.elementwise(["exp"], [s], separate=True),
    "a run's name that has no hash": lambda t, x, s: t.elementwise({}, [s]),
    "a stride of text": lambda t, x, s: t._stride("4"),
    "a stride of nothing": lambda t, x, s: t._stride(0),
    "a lookup with a huge stride": lambda t, x, s: t.take([s], t.input([0], 2), 0, 2**70),
    "a batch of more numbers than a tape": lambda t, x, s: t.batch(2**22, 2**22),
    "an input of huge numbers": lambda t, x, s: t.input([2**64], 2**65),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_what_was_once_another_error(use: Any) -> None:
    tape = Tape()
    x, s = tape.array([[1.0, 2.0]]), tape.var(3.0)
    with pytest.raises(TapeError):
        use(tape, x, s)


def test_arrays_of_no_dimension_are_ids() -> None:
    tape = Tape()
    w = np.array(tape.parameter([[1.0, 2.0], [3.0, 4.0]]).id)
    x = np.array(tape.array([[1.0, 1.0]]).id)
    assert tape.value(tape.linear(x, w)).tolist() == [[3, 7]]
    assert tape.view(x).tolist() == [[1, 1]]


def test_a_copy_is_a_tape_of_its_own() -> None:
    tape = Tape()
    a = tape.var(1.0)
    other = copy.copy(tape)
    b = other.exp(a.id)
    assert (len(tape), other.value(b)) == (1, math.e)
    c = tape.neg(a)
    assert (tape.value(c), other.value(b)) == (-1, math.e)


def test_a_handle_stands_for_its_value_not_its_id() -> None:
    tape = Tape()
    tape.var(1.0)
    handle = tape.var(2.5)
    assert (float(handle), int(handle), f"{math.exp(0 * float(handle)):.0f}") == (2.5, 2, "1")
    assert math.floor(handle) == 2 and "%.1f" % handle == "2.5"  # noqa: UP031
    assert np.asarray(handle, float) == 2.5
    assert (np.float64(2) * handle).value == (handle * np.float32(2)).value == 5
    with pytest.raises(TypeError):
        [0, 1, 2][handle]  # type: ignore[call-overload]


def test_an_empty_tape_is_true() -> None:
    assert Tape()


def test_finite_numbers_beyond_float32_are_refused() -> None:
    tape = Tape("float32")
    node = tape.var(3.4028235e38)
    assert tape.value(tape.var(math.inf)) == math.inf
    for attempt in (
        lambda: tape.var(1e39),
        lambda: tape.scale(node, -1e39),
        lambda: tape.array([1.0, 1e39]),
        lambda: tape.variables([1e39]),
        lambda: tape.set_value(node, 1e39),
        lambda: tape.var(10**39),
        lambda: tape.var(np.array(-1e300)),
    ):
        with pytest.raises(TapeError, match="too large for float32"):
            attempt()


def together(threads: int, work: Callable[[int], None]) -> list[BaseException]:
    """Do the work in threads that take turns as often as possible; what they raised."""
    raised: list[BaseException] = []

    def run(which: int) -> None:
        try:
            work(which)
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=run, args=(which,)) for which in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return raised


RECORDED_BY_THREADS: dict[str, tuple[Callable[[Tape, int], Any], Callable[[float], float]]] = {
    "add": (lambda tape, x: tape.add(x, x), lambda x: 2 * x),
    "neg": (lambda tape, x: tape.neg(x), lambda x: -x),
    "scale": (lambda tape, x: tape.scale(x, 3.0), lambda x: 3 * x),
    "var": (lambda tape, x: tape.var(tape.value(x)), lambda x: x),
    "operators": (lambda tape, x: (tape.node(x) * 2 + 1).id, lambda x: 2 * x + 1),
    "sum": (lambda tape, x: tape.sum([x, x, x]), lambda x: 3 * x),
    "dot": (lambda tape, x: tape.dot([x], [x]), lambda x: x * x),
    "runs": (lambda tape, x: int(tape.elementwise("mul", [x, x], [x, x])[1]), lambda x: x * x),
    "sums": (lambda tape, x: int(tape.sums([[x, x], [x, x]])[1]), lambda x: 2 * x),
    "mean": (lambda tape, x: tape.mean(tape.array([[tape.value(x)]])), lambda x: x),
    "softmax": (lambda tape, x: tape.softmax([x, x])[1], lambda x: 0.5),
}


@pytest.mark.parametrize("name", RECORDED_BY_THREADS)
def test_threads_record_on_one_tape(name: str) -> None:
    record, formula = RECORDED_BY_THREADS[name]
    tape = Tape(capacity=1)
    inputs = [tape.var(float(k)) for k in range(1, 5)]
    tape.value(record(tape, inputs[0]))  # kernels are loaded
    made: list[list[int]] = [[] for _ in inputs]

    def work(which: int) -> None:
        for turn in range(200):
            node = record(tape, inputs[which])
            made[which].append(node)
            if turn % 10 == 0:
                assert tape.value(node) == formula(which + 1)

    assert together(len(inputs), work) == []
    assert len({node for nodes in made for node in nodes}) == 4 * 200
    for k, nodes in enumerate(made):
        assert {tape.value(node) for node in nodes} == {formula(k + 1)}


def test_threads_compute_one_tape() -> None:
    tape = Tape()
    x = tape.var(3.0)
    y = tape.mul(x, x)

    def work(which: int) -> None:
        for turn in range(100):
            if which == 0:
                tape.add(y, x)
            elif which == 1:
                tape.backward(y)
                assert tape.grad(x) == 6
            elif which == 2:
                tape.forward()
            else:
                tape.set_value(x, 3.0)
                assert len(tape._replay_arrays().records) >= turn // 100
            assert tape.value(y) == 9

    assert together(4, work) == []


def test_a_tape_is_copied_while_a_thread_records() -> None:
    tape = Tape(capacity=1)
    x = tape.var(1.0)

    def work(which: int) -> None:
        for _ in range(100):
            if which == 0:
                tape.relu(tape.array([[1.0]]))
                tape.add(x, x)
            else:
                other = copy.deepcopy(tape)
                y = other.node(x.id)
                other.backward(y + y)
                assert y.grad == 2

    assert together(2, work) == []


def test_a_tape_goes_from_thread_to_thread() -> None:
    tape = Tape()
    x = tape.var(3.0)
    nodes = [tape.mul(x, x)]
    for _ in range(3):
        assert together(1, lambda _: nodes.append(tape.add(nodes[-1], x))) == []
    assert together(1, lambda _: tape.backward(nodes[-1])) == []
    assert (tape.value(nodes[-1]), tape.grad(x)) == (18, 9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda tape: pickle.loads(pickle.dumps(tape))]
)
def test_copies_begin_on_a_cache_line(copied: Callable[[Tape], Tape], dtype: str) -> None:
    tape = Tape(dtype, capacity=7)
    x = tape.array(np.arange(15.0).reshape(3, 5))
    total = tape.mean(x)
    tape.backward(total)
    kept = []
    for size in range(40):
        other = copied(tape)
        kept.append((bytearray(17 * size + 1), other))
        assert other.values.ctypes.data % 64 == other.grads.ctypes.data % 64 == 0
        assert np.array_equal(other.grad(x.id), tape.grad(x))
        other.set_value(x.id, np.ones((3, 5)))
        assert (other.value(total.id), tape.value(total)) == (1, 7)


def calls_of(function: Callable[[], object]) -> int:
    """How many functions it calls, whoever wrote them, but for those that collect garbage."""
    count = 0

    def tick(frame: Any, event: str, what: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(tick)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_what_a_reset_costs_does_not_grow_with_what_it_keeps() -> None:
    costs = []
    for older in (10, 2000):
        tape = Tape()
        for _ in range(older):
            tape.array([[1.0]])
            tape.input([0], 1)
            tape.mark()
        mark = tape.mark()
        tape.relu(tape.array([[1.0]]))
        tape.mark()
        costs.append(calls_of(tape.mark) + calls_of(lambda tape=tape, mark=mark: tape.reset(mark)))
    assert costs[0] == costs[1]
