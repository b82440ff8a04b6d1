"""Handles of array nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tapegpt.tape.handles.base import Handle, Operand
from tapegpt.tape.handles.scalar import Scalar
from tapegpt.tape.types import Floats, Number, TapeError


def _of_arrays(name: str, of_number: str = "") -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The operators of an array and what stands on its right, and on its left."""

    def operate(self: Array, other: Operand) -> Array:
        tape = self.generation.tape
        if isinstance(other, Number):
            return tape._with_number(of_number or name, self, other)  # type: ignore[no-any-return]
        return tape._binary(name, self, self._beside(other))  # type: ignore[no-any-return]

    def reflected(self: Array, other: Operand) -> Array:
        tape = self.generation.tape
        if isinstance(other, Number):
            how, first = (of_number, False) if of_number else (name, True)
            return tape._with_number(how, self, other, first)  # type: ignore[no-any-return]
        return tape._binary(name, self._beside(other), self)  # type: ignore[no-any-return]

    return operate, reflected


def _of_array(name: str, meaning: str) -> Callable[[Array], Array]:
    """The method that records an operation of one array."""

    def operate(self: Array) -> Array:
        return self.generation.tape._unary(name, self)  # type: ignore[no-any-return]

    operate.__name__, operate.__doc__ = name, meaning
    return operate


class Array(Handle):
    """An array node, (rows, width). `numpy.asarray` of it is its value."""

    __slots__ = ()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Floats:
        return np.array(self.value, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __float__(self) -> float:
        """The value, where there is one alone: a loss of (1, 1), say."""
        if self.value.size != 1:
            raise TapeError(f"an array of {self.shape} is no single number: index its .value")
        return float(self.value[0, 0])

    def __bool__(self) -> bool:
        raise TapeError("an array is neither true nor false: ask that of its values")

    def __iter__(self) -> Iterator[Array]:
        return (self[r : r + 1] for r in range(len(self)))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """A NumPy function of arrays of the tape, numbers and NumPy's arrays, as operators do."""
        operation = _OF_UFUNCS.get(ufunc.__name__)
        if operation is None or method != "__call__" or kwargs:
            return NotImplemented
        left, *right = inputs
        if not isinstance(left, Handle) and isinstance(left, np.ndarray):
            left = self.tape.array(left)
        return operation(left, *right)

    def __repr__(self) -> str:
        try:
            value = np.array2string(self.value, prefix="Array(", threshold=20)
        except TapeError:
            value = "forgotten"
        return f"Array({value}, id={self.id})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a batch array has the rows now loaded."""
        rows, width = self.generation.tape.shape(self)
        return rows, width

    @property
    def value(self) -> Floats:
        """A copy of the values, (rows, width). To set it is `set_value`, of a leaf."""
        return self.generation.tape.value(self)

    @value.setter
    def value(self, values: Any) -> None:
        self.generation.tape.set_value(self, values)

    @property
    def grad(self) -> Floats:
        """The gradient of the last backward's root with respect to this array, in its shape."""
        return self.generation.tape.grad(self)

    @property
    def T(self) -> Array:  # noqa: N802
        """The array with rows as columns."""
        return self.tape.transpose(self)

    def __getitem__(self, part: Any) -> Array:
        """Rows, or rows and columns, by numbers and by slices of step 1: always an array."""
        return self.tape._part(self, part)

    def __neg__(self) -> Array:
        return self.tape.neg(self)

    def __abs__(self) -> Array:
        return self.tape.abs(self)

    def __matmul__(self, other: Array | ArrayLike) -> Array:
        return self.tape.matmul(self, self._beside(other))

    def __rmatmul__(self, other: ArrayLike) -> Array:
        return self.tape.matmul(self._beside(other), self)

    def __pow__(self, exponent: Operand) -> Array:
        if isinstance(exponent, Number):
            return self.tape.pow(self, exponent)
        return self.tape._binary("power", self, self._beside(exponent))  # type: ignore[no-any-return]

    __add__, __radd__ = _of_arrays("add")
    __sub__, __rsub__ = _of_arrays("sub")
    __mul__, __rmul__ = _of_arrays("mul", "scale")
    __truediv__, __rtruediv__ = _of_arrays("div")
    _, __rpow__ = _of_arrays("power")
    __lt__, __gt__ = _of_arrays("less")
    __le__, __ge__ = _of_arrays("at_most")
    exp = _of_array("exp", "e ** self, element by element.")
    log = _of_array("log", "ln self, element by element.")
    sqrt = _of_array("sqrt", "The square root, element by element.")
    sin = _of_array("sin", "The sine, element by element.")
    cos = _of_array("cos", "The cosine, element by element.")
    relu = _of_array("relu", "max(0, self), element by element.")
    tanh = _of_array("tanh", "tanh self, element by element.")
    sigmoid = _of_array("sigmoid", "1 / (1 + e ** -self), element by element.")
    silu = _of_array("silu", "self / (1 + e ** -self), element by element.")
    erf = _of_array("erf", "The error function, element by element.")
    softplus = _of_array("softplus", "ln(1 + e ** self), element by element.")

    @overload
    def sum(self, axis: None = None) -> Scalar: ...
    @overload
    def sum(self, axis: int) -> Array: ...
    def sum(self, axis: int | None = None) -> Scalar | Array:
        """The sum of all elements, or of every column (axis 0) or row (axis 1)."""
        total: Scalar | Array = self.tape._sum_array(self, axis)
        return total

    @overload
    def mean(self, axis: None = None) -> Scalar: ...
    @overload
    def mean(self, axis: int) -> Array: ...
    def mean(self, axis: int | None = None) -> Scalar | Array:
        """The mean of all elements, or of every column (axis 0) or row (axis 1)."""
        return self.tape.mean(self, axis)

    def max(self, axis: int) -> Array:
        """The largest of every column (axis 0) or row (axis 1)."""
        return self.tape._max_array(self, axis)

    def _beside(self, other: Any) -> Handle:
        """An operand as a node: what is no handle becomes an array, or a constant."""
        if isinstance(other, Handle):
            return other
        self.tape._plain(self)  # checked first: a constant that nothing uses would stay
        if isinstance(other, Number):
            return self.tape.constant(other)
        return self.tape.array(other)


_OF_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "matmul": operator.matmul,
    "negative": operator.neg,
    "absolute": operator.abs,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    **{name: operator.methodcaller(name) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh")},
}
