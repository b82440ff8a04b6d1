"""Any call of the tape's methods, with any arguments, in any order: it works, or is refused."""

import contextlib
import copy
import math
import pickle
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tapegpt.tape import Input, Mark, Node, Tape, TapeError, storage

OPERATIONS = (
    *("add", "mul", "sub", "div", "scale", "pow", "neg", "exp", "log", "relu", "tanh", "softplus"),
    *("detach", "sum", "cos", "", None, 3),
)

# What every public method takes: the kinds of `Hostile.argument`.
METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("neg", "exp", "log", "tanh", "softplus", "detach", "node"), ("scalar",)),
    **dict.fromkeys(("softmax", "mean", "carry", "relu_array", "view"), ("array",)),
    **dict.fromkeys(("value", "grad", "shape", "relu"), ("either",)),
    **dict.fromkeys(("sub", "mul", "div"), ("scalar", "scalar")),
    **dict.fromkeys(("add", "add_arrays"), ("array", "array")),
    **dict.fromkeys(("scale", "pow"), ("scalar", "number")),
    **dict.fromkeys(("scale_array", "rmsnorm"), ("array", "number")),
    **dict.fromkeys(("sum", "max", "softmax_of"), ("list",)),
    **dict.fromkeys(("sums", "softmaxes"), ("ids",)),
    **dict.fromkeys(("var", "constant"), ("number",)),
    **dict.fromkeys(("variables", "array", "parameter", "scalar_parameters"), ("floats",)),
    **dict.fromkeys(("forward", "machine", "mark", "end_parameters"), ()),
    **dict.fromkeys(("previous", "stride"), ("count",)),
    "backward": ("scalar", "truth"),
    "dot": ("list", "list"),
    "dots": ("ids", "ids"),
    "record": ("name", "ids", "more ids"),
    "runs": ("name", "ids", "more ids"),
    "lookup": ("ids", "input", "count", "count"),
    "largest": ("ids", "count"),
    "embed": ("pair", "pair"),
    "linear": ("array", "array", "optional"),
    "attention": ("array", "array", "array", "count"),
    "cross_entropy": ("array", "input"),
    "topk": ("array", "count"),
    "gathered_linear": ("array", "input", "array", "optional"),
    "set_value": ("either", "floats"),
    "input": ("numbers", "count"),
    "set_input": ("input", "numbers"),
    "dropout": ("array", "number", "input", "optional"),
    "batch": ("count", "count", "count", "count"),
    "reset": ("mark",),
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
    assert public == set(METHODS) | {"declared_batch"}


class Hostile(RuleBasedStateMachine):
    """A tape, another one, and whatever they have ever returned."""

    @initialize(dtype=st.sampled_from(["float32", "float64"]), batch=st.booleans())
    def begin(self, dtype: str, batch: bool) -> None:
        self.largest, storage.LARGEST_TAPE = storage.LARGEST_TAPE, 2**18
        self.tape, self.other = Tape(dtype, capacity=1), Tape(dtype)
        self.inputs: list[Any] = [self.other.input([0, 1], 2)]
        self.marks: list[Any] = [self.other.mark(), Mark(3, 0, 0, 0)]
        self.handles = [self.other.node(self.other.var(1.0))]
        self.arrays = [self.tape.parameter(np.ones((4, 4)))]
        self.tape.variables([1.0, 2.0, 3.0])
        if batch:
            rows = self.tape.batch(2, 3, 4, 1)
            self.inputs += [rows.tokens, rows.positions, rows.targets, *rows.earlier, rows.key]
            self.arrays.append(self.tape.embed((self.arrays[0], rows.tokens)))
            for place, first in enumerate((0, 2, 3, 4), rows.starts):
                self.tape._inputs[place] = first

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
        kind = self.rng.choice([int] * 9 + [np.int64, np.uint64, np.array, Node])
        return self.rng.choice(self.handles) if kind is Node else kind(node)

    def either(self) -> Any:
        return self.scalar() if self.rng.random() < 0.5 else self.array()

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
        known = [which for which in self.inputs if which in self.tape._known_inputs]
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
        if isinstance(found, Node):
            self.handles.append(found)
        if name == "batch":
            self.inputs += [found.tokens, found.positions, found.targets]
        if type(found) is int and name != "stride" and self.tape.shape(found) != ():
            self.arrays.append(found)

    def everything(self) -> tuple[Any, ...]:
        # Not the values, or what records choose: they may be computed at any time.
        tape, end = self.tape, len(self.tape)
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
        self.other, self.tape = self.tape, how(self.tape)
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
    "a name that has no hash": lambda t, x, s: t.record(["exp"], [s]),
    "a run's name that has no hash": lambda t, x, s: t.runs({}, [s]),
    "a stride of text": lambda t, x, s: t.stride("4"),
    "a stride of nothing": lambda t, x, s: t.stride(0),
    "a lookup with a huge stride": lambda t, x, s: t.lookup([s], t.input([0], 2), 0, 2**70),
    "a batch that looks back before its start": lambda t, x, s: t.batch(2, 3, 4, 3),
    "a batch that looks back for ever": lambda t, x, s: t.batch(2, 3, 4, 2**31),
    "a batch of more numbers than a tape": lambda t, x, s: t.batch(2**12, 2**12, 4, 2**12 - 1),
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
    w = np.array(tape.parameter([[1.0, 2.0], [3.0, 4.0]]))
    x = np.array(tape.array([[1.0, 1.0]]))
    assert tape.value(tape.linear(x, w)).tolist() == [[3, 7]]
    assert tape.view(x).tolist() == [[1, 1]]


def test_a_copy_is_a_tape_of_its_own() -> None:
    tape = Tape()
    a = tape.var(1.0)
    other = copy.copy(tape)
    b = other.exp(a)
    assert (len(tape), other.value(b)) == (1, math.e)
    c = tape.neg(a)
    assert (tape.value(c), other.value(b)) == (-1, math.e)


def test_a_handle_stands_for_its_value_not_its_id() -> None:
    tape = Tape()
    tape.var(1.0)
    handle = tape.node(tape.var(2.5))
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
