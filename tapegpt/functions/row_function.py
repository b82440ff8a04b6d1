"""What `tape.function` gives: a function of arrays, a row for each evaluation of the graph."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegpt.functions.source import Graph, Wanted, source_of
from tapegpt.functions.steps import steps_between
from tapegpt.functions.windows import windows_of
from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit_source
from tapegpt.kernels.ops.scalar.of_vectors import MODULES
from tapegpt.kernels.simd import math as vmath
from tapegpt.tape.types import Floats, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

MOST_INPUTS = 1000  # that a function takes as arguments
KEPT = 2  # results of so many calls, see RowFunction._new

Columns = tuple[Floats, ...]


class RowFunction:
    """A recorded scalar graph, compiled for arrays: row by row the outputs, and the gradients.

    Takes an array for each input, all of one shape, or numbers that stand for every row. What it
    gives has that shape. Each of its forms is compiled when it is first called, and kept in the
    kernel cache. Calls from several threads at once are right.
    """

    def __init__(self, graph: Graph, dtype: np.dtype[Any], threads: int, single: bool) -> None:
        self.dtype = dtype
        self.threads = threads
        self._graph = graph
        self._single = single
        self._kernels: dict[Wanted, Any] = {}
        self._lock = threading.Lock()
        self._block = graph.vectors * simd.VECTOR_BYTES // dtype.itemsize  # rows
        self._results_before: list[Floats] = []

    def __repr__(self) -> str:
        inputs, outputs = len(self._graph.inputs), len(self._graph.outputs)
        return f"RowFunction({inputs} inputs, {outputs} outputs, {self.dtype})"

    def __call__(self, *x: ArrayLike, out: Sequence[Floats] | None = None) -> Any:
        """The outputs: an array, or a tuple of them where the function was made of a list.

        out: arrays to write them to, instead of new ones.
        """
        values, _ = self._run(Wanted(values=True, gradients=False), x, out=out)
        return self._outputs(values)

    def grad(self, *x: ArrayLike, out: Sequence[Floats] | None = None) -> Columns:
        """The gradient of the sum of the outputs with respect to each input."""
        _, gradients = self._run(Wanted(values=False, gradients=True), x, out=out)
        return gradients

    def value_and_grad(
        self, *x: ArrayLike, out: Sequence[Floats] | None = None
    ) -> tuple[Any, Columns]:
        """(outputs, gradients); out: arrays for the outputs and then the gradients."""
        values, gradients = self._run(Wanted(values=True, gradients=True), x, out=out)
        return self._outputs(values), gradients

    def vjp(self, seeds: ArrayLike | Sequence[ArrayLike], *x: ArrayLike) -> tuple[Any, Columns]:
        """(outputs, what seeds, an array for each output, pass back to each input)."""
        given: Any = [seeds] if self._single else seeds
        wanted = Wanted(values=True, gradients=True, seeded=True)
        values, gradients = self._run(wanted, x, seeds=given)
        return self._outputs(values), gradients

    def add_grad(self, *x: ArrayLike, to: Sequence[Floats]) -> None:
        """Add the gradient of each input to an array, on one thread.

        The arrays may overlap, as those of an input and its neighbour do:

            f.add_grad(x[:-1], x[1:], to=(g[:-1], g[1:]))
        """
        every = tuple(range(len(self._graph.inputs)))
        self._run(Wanted(values=False, gradients=True, added=every), x, out=to)

    def source(self, gradients: bool = True) -> str:
        """The function as it is compiled, to look at."""
        return source_of(self._graph, Wanted(values=True, gradients=gradients))

    def _outputs(self, values: Columns) -> Any:
        return values[0] if self._single else values

    def _run(
        self,
        wanted: Wanted,
        x: Sequence[ArrayLike],
        out: Sequence[Floats] | None = None,
        seeds: Sequence[ArrayLike] = (),
    ) -> tuple[Columns, Columns]:
        graph = self._graph
        if len(x) != len(graph.inputs):
            raise TapeError(f"the function takes {len(graph.inputs)} inputs, not {len(x)}")
        if wanted.seeded and len(seeds) != len(graph.outputs):
            raise TapeError(f"vjp wants {len(graph.outputs)} seeds, not {len(seeds)}")
        given = [self._floats(value) for value in (*x, *seeds)]
        shape = _common_shape(given)
        rows = int(np.prod(shape))
        values = len(graph.outputs) if wanted.values else 0
        count = values + (len(graph.inputs) if wanted.gradients else 0)
        results = self._results(out, count, shape)
        columns = [result.reshape(-1) for result in results]
        block = self._block
        steps = np.array([value.ndim > 0 for value in given[: len(x)]], np.int64)
        inputs = [
            value.reshape(-1) if value.ndim else np.full(block, value, self.dtype)
            for value in given[: len(x)]
        ]
        # A seed is read row by row, whatever its shape.
        passed = [
            np.ascontiguousarray(np.broadcast_to(s, shape)).reshape(-1) for s in given[len(x) :]
        ]
        kernel = self._kernel(wanted)
        whole = rows - rows % block
        threads = 1 if wanted.added else self.threads
        _in_parts(
            threads,
            whole,
            block,
            lambda begin, end: kernel(begin, end, steps, *inputs, *columns, *passed),
        )
        if whole < rows:
            added = [values + j for j in wanted.added]
            self._last_rows(kernel, whole, added, steps, inputs, columns, passed)
        return tuple(results[:values]), tuple(results[values:])

    def _last_rows(
        self,
        kernel: Any,
        first: int,
        added: Sequence[int],
        steps: NDArray[np.int64],
        inputs: Sequence[Floats],
        columns: Sequence[Floats],
        seeds: Sequence[Floats],
    ) -> None:
        """Compute the rows from `first` on, fewer than a block, as a whole one.

        added: the columns that results are added to, after the others have been written.
        """

        def whole(column: Floats) -> Floats:
            return np.resize(column[first:], self._block)

        padded = [
            whole(column) if step else column for column, step in zip(inputs, steps, strict=True)
        ]
        results = [np.zeros(self._block, self.dtype) for _ in columns]
        kernel(0, self._block, steps, *padded, *results, *map(whole, seeds))
        for place in sorted(range(len(columns)), key=lambda place: place in added):
            column, last = columns[place], results[place][: len(columns[place]) - first]
            column[first:] = column[first:] + last if place in added else last

    def _floats(self, value: ArrayLike) -> Floats:
        try:
            given = np.asarray(value)
            if given.dtype.kind not in "fiub":
                raise TypeError
            return np.asarray(given, self.dtype, order="C")
        except (TypeError, ValueError):
            raise TapeError(f"not an array of numbers: {value!r:.60}") from None

    def _results(
        self, out: Sequence[Floats] | None, count: int, shape: tuple[int, ...]
    ) -> list[Floats]:
        """Arrays to write to: those given, checked, or new ones."""
        if out is None:
            return self._new(count, shape)
        given = [out] if isinstance(out, np.ndarray) else list(out)
        if len(given) != count:
            raise TapeError(f"{count} arrays are wanted to write to, not {len(given)}")
        for array in given:
            if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
                raise TapeError(f"an array to write to is of {self.dtype}, not {array!r:.60}")
            if array.shape != shape or not (array.flags.c_contiguous and array.flags.writeable):
                raise TapeError(
                    f"an array to write to has the shape {shape}, without gaps, and can be written"
                    f" to: this one has the shape {array.shape}"
                )
        return given

    def _new(self, count: int, shape: tuple[int, ...]) -> list[Floats]:
        """New arrays, or what earlier results lay in that nobody has any more.

        The pages of new memory cost several times what computing a row does.
        """
        size = int(np.prod(shape))
        free: list[Floats] = []
        with self._lock:
            self._results_before = [a for a in self._results_before if a.size == size]
            for array in self._results_before:
                # The list, `array` and the argument: no result is a view of it.
                if sys.getrefcount(array) == 3 and len(free) < count:
                    free.append(array.reshape(shape))
            while len(free) < count:
                array = np.empty(size, self.dtype)
                free.append(array.reshape(shape))
                self._results_before.append(array)
            del self._results_before[: -KEPT * count]
        return free

    def _kernel(self, wanted: Wanted) -> Any:
        with self._lock:
            if wanted not in self._kernels:
                names = {**MODULES, "vmath": vmath}
                source = source_of(self._graph, wanted)
                self._kernels[wanted] = jit_source(source, "kernel", names)
            return self._kernels[wanted]


def row_function(
    tape: Tape, inputs: Any, outputs: Any, dtype: str | None = None, threads: int = 1
) -> RowFunction | SumFunction:
    """See `Tape.function`."""
    single = np.ndim(outputs) == 0
    given, wanted = (_nodes(tape, nodes) for nodes in (inputs, outputs))
    if len(set(given)) < len(given):
        raise TapeError("function: an input is named twice")
    if dtype not in (None, "float32", "float64"):
        raise TapeError(f"dtype {dtype!r} is neither 'float32' nor 'float64'")
    if threads < 1:
        raise TapeError(f"{threads} is not a number of threads: it is at least 1")
    kind = np.dtype(dtype or tape.dtype)
    if single and isinstance(inputs, np.ndarray) and len(given) > MOST_INPUTS:
        return sum_function(tape, given, wanted[0], kind, threads)
    steps, constants = steps_between(tape._replay_arrays(), given, wanted)
    numbers = {node: float(tape.value(node)) for node in constants}
    for node, number in numbers.items():
        if np.isnan(number):
            raise TapeError(f"function: node {node} is no input, and NaN")
    graph = Graph(given, wanted, tuple(steps), numbers)
    return RowFunction(graph, kind, threads, single)


def sum_function(
    tape: Tape, inputs: tuple[int, ...], output: int, dtype: np.dtype[Any], threads: int
) -> SumFunction:
    """The function of many inputs whose output is a sum of terms that are all alike."""
    windows = windows_of(tape, np.array(inputs), output)
    term = RowFunction(windows.term, dtype, threads, single=True)
    return SumFunction(term, windows.begins, windows.terms, len(inputs))


class SumFunction:
    """A sum of terms that are all alike, of an array that each of them reads from its place on.

    Such as Rosenbrock's function of a million numbers, recorded number by number. Takes one array,
    a number for each input.
    """

    def __init__(self, term: RowFunction, begins: tuple[int, ...], count: int, size: int) -> None:
        self.term = term
        self._begins, self._count, self._size = begins, count, size

    def __repr__(self) -> str:
        return f"SumFunction({self._size} inputs, {self._count} terms, {self.term.dtype})"

    def __call__(self, x: ArrayLike) -> float:
        """The output."""
        return float(self.term(*self._windows(self._array(x))).sum(dtype=np.float64))

    def grad(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """The gradient with respect to every input; out: an array for it, instead of a new one."""
        given = self._array(x)
        (gradient,) = self.term._results(None if out is None else [out], 1, given.shape)
        # What no window that is written reaches: before the last one begins, and after it ends.
        last = max(self._begins)
        gradient[:last] = 0
        gradient[last + self._count :] = 0
        place = self._begins.index(last)
        added = tuple(j for j in range(len(self._begins)) if j != place)
        wanted = Wanted(values=False, gradients=True, added=added)
        self.term._run(wanted, self._windows(given), out=self._windows(gradient))
        return gradient

    def value_and_grad(self, x: ArrayLike, out: Floats | None = None) -> tuple[float, Floats]:
        """(output, gradient)"""
        return self(x), self.grad(x, out)

    def _array(self, x: ArrayLike) -> Floats:
        given = self.term._floats(x)
        if given.shape != (self._size,):
            raise TapeError(
                f"the function takes an array of {self._size} numbers, not {given.shape}"
            )
        return given

    def _windows(self, array: Floats) -> list[Floats]:
        return [array[begin : begin + self._count] for begin in self._begins]


def _nodes(tape: Tape, nodes: Any) -> tuple[int, ...]:
    listed = nodes.ravel().tolist() if isinstance(nodes, np.ndarray) else nodes
    if not isinstance(listed, (list, tuple, range)):
        listed = [listed]
    if not listed:
        raise TapeError("function wants at least one input and one output")
    return tuple(tape._scalar(node) for node in listed)


def _common_shape(given: Sequence[Floats]) -> tuple[int, ...]:
    shapes = {array.shape for array in given if array.ndim > 0}
    if len(shapes) > 1:
        raise TapeError(
            f"the inputs have different shapes, {sorted(shapes)}: they must be the same"
        )
    return shapes.pop() if shapes else ()


def _in_parts(threads: int, rows: int, block: int, run: Any) -> None:
    """run(begin, end) for parts of the rows, in whole blocks, side by side."""
    part = -(-rows // (threads * block)) * block
    bounds = [(begin, min(begin + part, rows)) for begin in range(0, rows, max(part, 1))]
    if len(bounds) < 2:
        for begin, end in bounds:
            run(begin, end)
        return
    with ThreadPoolExecutor(len(bounds)) as pool:
        list(pool.map(lambda bound: run(*bound), bounds))
