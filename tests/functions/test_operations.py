"""Operations that users add: formulas element by element, and functions over rows and columns."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tapegpt import Tape, TapeError, elementwise, operation, simd, vmath
from tapegpt.functions.fingerprint import fingerprint
from tapegpt.kernels.compile.kernel_cache import cache_directory


@elementwise
def swish(a, beta):
    return a / (1 + (-(a * beta)).exp())


def swish_and_slopes(a, beta):
    s = 1 / (1 + np.exp(-a * beta))
    return a * s, s + a * beta * s * (1 - s), a * a * s * (1 - s)


def arrays(*shapes, dtype="float64"):
    rng = np.random.default_rng(0)
    tape = Tape(dtype)
    values = [rng.normal(size=shape) for shape in shapes]
    return tape, [tape.parameter(value) for value in values], values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 64)])
def test_a_formula_and_the_gradient_that_follows_from_it(dtype, shape):
    tape, (a, b), (x, beta) = arrays(shape, shape, dtype=dtype)
    loss = tape.mean(swish(tape, a, b))
    tape.backward(loss)
    value, dx, dbeta = swish_and_slopes(x, beta)
    error = {"float32": 2e-6, "float64": 1e-14}[dtype]
    assert tape.value(loss) == pytest.approx(value.mean(), abs=error)
    np.testing.assert_allclose(tape.grad(a), dx / x.size, atol=error)
    np.testing.assert_allclose(tape.grad(b), dbeta / x.size, atol=error)


def padding(tape, node, source):
    shape = tape._shapes[node]
    run = source[node : node + shape.rows * shape.stride].reshape(shape.rows, shape.stride)
    return run[:, shape.width :]


def test_padding_stays_0_where_a_formula_of_0_is_not():
    shifted = elementwise(lambda a: (a * a).log() + 3.0)
    tape, (x,), (value,) = arrays((3, 5))
    y = tape._any(shifted(tape, x))
    loss = tape.mean(y)
    tape.backward(loss)
    assert not padding(tape, y, tape.values).any()
    assert not padding(tape, tape._any(x), tape.grads).any()
    np.testing.assert_allclose(tape.grad(x), 2 / value / value.size, rtol=1e-14)


def test_a_formula_on_scalars_records_it():
    tape = Tape()
    a, beta = tape.var(0.5), tape.var(2.0)
    tape.backward(swish(tape, a, beta))
    _, da, dbeta = swish_and_slopes(0.5, 2.0)
    assert tape.grad(a) == pytest.approx(da)
    assert tape.grad(beta) == pytest.approx(dbeta)


def test_handles_name_the_tape():
    tape = Tape()
    a, beta = tape.node(tape.var(0.5)), tape.node(tape.var(2.0))
    assert float(swish(a, beta)) == pytest.approx(swish_and_slopes(0.5, 2.0)[0])


def straight_through():
    @elementwise
    def clipped(a):
        return a.relu()

    @clipped.derivative
    def _(a, out):
        return 1 + out * 0.5

    return clipped


def test_a_derivative_of_ones_own():
    clipped = straight_through()
    tape, (x,), (value,) = arrays((4, 5))
    tape.backward(tape.mean(clipped(tape, x)))
    np.testing.assert_allclose(tape.grad(x), (1 + np.maximum(value, 0) / 2) / 20)
    tape = Tape()
    for start, slope in ((2.0, 2.0), (-2.0, 1.0)):
        a = tape.var(start)
        y = clipped(tape, a)
        assert float(y) == max(start, 0)
        tape.backward(y.id)
        assert tape.grad(a) == slope
    with pytest.raises(TapeError, match="wrong"):
        clipped.check(value)
    with pytest.raises(TapeError, match="before its first use"):
        clipped.derivative(lambda a, out: 1)


@operation
def add_bias(out, x, b):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[r, c] + b[0, c]


@add_bias.backward
def _(dout, out, x, b, dx, db):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c] += dout[r, c]
            db[0, c] += dout[r, c]


@operation(shape=lambda x: (x[1], x[0]), check=True)
def transpose(out, x):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[c, r]


@transpose.backward
def _(dout, out, x, dx):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[c, r] += dout[r, c]


@operation
def exponentials(out, x):
    """e^x, a vector at a time; what lies after the last column stays 0."""
    lanes = simd.lanes(x)
    for r in range(out.shape[0]):
        row, into = x[r], out[r]
        for c in range(0, out.shape[1], lanes):
            count = out.shape[1] - c
            simd.store_part(into, c, vmath.exp(simd.load_first(row, c, count)), count)


@exponentials.backward
def _(dout, out, x, dx):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c] += dout[r, c] * out[r, c]


def test_functions_over_rows_and_columns():
    tape, (x, b), (value, bias) = arrays((5, 7), (1, 7))
    y = transpose(tape, exponentials(tape, add_bias(tape, x, b)))
    assert tape.shape(y) == (7, 5)
    loss = tape.mean(y)
    tape.backward(loss)
    exact = np.exp(value + bias)
    np.testing.assert_allclose(tape.value(y), exact.T, rtol=1e-14)
    np.testing.assert_allclose(tape.grad(x), exact / 35, rtol=1e-13)
    np.testing.assert_allclose(tape.grad(b), exact.sum(axis=0, keepdims=True) / 35, rtol=1e-13)
    for used, operands in ((add_bias, (value, bias)), (exponentials, (value,))):
        used.check(*operands)


def test_a_batch_passes_its_rows():
    tape = Tape()
    table, b = tape.parameter(np.arange(12.0).reshape(4, 3)), tape.parameter(np.ones((1, 3)))
    tape._end_parameters()
    tape.batch(2, 2)
    y = add_bias(tape, tape.embed((table, tape.batch_input(4))), b)
    assert tape.shape(y) == tape.shape(tape.relu(y))


def test_a_tape_that_is_older_than_the_operation():
    tape = Tape()
    x = tape.parameter(np.ones((2, 3)))
    before = tape.mean(x)
    tape.value(before)
    twice = elementwise(lambda a: a * 2)
    loss = tape.mean(twice(tape, x))
    tape.backward(loss)
    assert tape.value(loss) == 2
    np.testing.assert_allclose(tape.grad(x), np.full((2, 3), 1 / 3))


def test_a_wrong_gradient_is_found():
    @operation(check=True)
    def wrong(out, x, y):
        for r in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[r, c] = x[r, c] * y[r, c]

    @wrong.backward
    def _(dout, out, x, y, dx, dy):
        for r in range(dout.shape[0]):
            for c in range(dout.shape[1]):
                dx[r, c] += dout[r, c] * y[r, c]
                dy[r, c] += dout[r, c] * y[r, c]

    tape, nodes, _ = arrays((3, 4), (3, 4))
    for _ in range(2):
        with pytest.raises(TapeError, match="wrong: the gradient for operand 2"):
            wrong(tape, *nodes)


def test_misuse():
    tape, (x, y), _ = arrays((2, 3), (3, 2))
    scalar = tape.var(1.0)
    with pytest.raises(TapeError, match="one operand or more"):
        operation(lambda out: None)
    with pytest.raises(TapeError, match="by its place"):
        elementwise(lambda *a: a[0])
    with pytest.raises(TapeError, match="does not do the same"):
        elementwise(lambda a: a * 2 if a.value > 0 else a)(tape, x)
    with pytest.raises(TapeError, match="1 results"):
        elementwise(lambda a: (a, a))(tape, x)

    @operation(shape=lambda x: "large")
    def unfinished(out, x):
        pass

    with pytest.raises(TapeError, match=r"@unfinished\.backward"):
        unfinished(tape, x)
    with pytest.raises(TapeError, match=r"\(dout, out, x, dx\), not 2"):
        unfinished.backward(lambda dout, dx: None)

    @unfinished.backward
    def _(dout, out, x, dx):
        pass

    for use, said in [
        (lambda: unfinished(tape, x), "'large' is no shape"),
        (lambda: swish(tape, x), "2 operands, not 1"),
        (lambda: swish(x, y), "handles of nodes, or a tape"),
        (lambda: swish(tape, x, y), "one shape"),
        (lambda: swish(tape, x, scalar), "is no array"),
        (lambda: add_bias(tape, x, scalar), "is no array"),
    ]:
        if said.startswith("handles") and hasattr(x, "tape"):
            continue
        with pytest.raises(TapeError, match=said):
            use()
    assert "swish" in repr(swish) and "add_bias(x, b)" in repr(add_bias)


FACTOR = 2.0


def helper(x):
    return x * FACTOR


def test_fingerprints_tell_functions_apart():
    def made(constant, inner=helper, array=np.ones(2)):  # noqa: B008
        def function(out, x):
            out[0, 0] = inner(x[0, 0]) + constant + math.exp(array[0]) + np.exp(len(out))

        return function

    assert fingerprint(made(1)) == fingerprint(made(1)) is not None
    others = [made(2), made(1, lambda x: x), made(1, array=np.zeros(2)), made(1, math.sin)]
    assert len({fingerprint(made(1)), *map(fingerprint, others)}) == 5
    assert fingerprint(made(object())) is None
    assert fingerprint(made(os)) is None

    def recursive(x):
        return recursive(x - 1) if x else 0

    assert fingerprint(recursive) is not None


SCRIPT = """
import numpy as np
from tapegpt import Tape, elementwise, operation
FACTOR = {}
@operation
def scaled(out, x):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[r, c] * FACTOR
@scaled.backward
def _(dout, out, x, dx):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c] += dout[r, c] * FACTOR
tape = Tape()
x = tape.parameter(np.ones((2, 3)))
loss = tape.mean(elementwise(lambda a: a * a)(tape, scaled(tape, x)))
tape.backward(loss)
print(tape.value(loss), tape.grad(x)[0, 0] * 6)
"""


def test_compiled_code_is_kept_and_never_that_of_another_function(tmp_path):
    ours = cache_directory()  # with what is not asked about here
    if ours.exists():
        shutil.copytree(ours, tmp_path / ours.parent.name / ours.name)
    copied = set(tmp_path.rglob("*.nbc"))

    def run(factor):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT.format(factor)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return [round(float(number), 9) for number in done.stdout.split()]

    def files():
        return {path.name for path in set(tmp_path.rglob("*.nbc")) - copied}

    assert run(3.0) == [9, 18]
    first = files()
    assert sum(name.startswith("scaled_") for name in first) == 2
    assert run(3.0) == [9, 18]
    assert files() == first
    assert run(5.0) == [25, 50]
    assert sum(name.startswith("scaled_") for name in files()) == 4
