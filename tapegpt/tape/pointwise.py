"""The vocabulary for scalars and arrays alike: one number at a time, or element by element."""

from typing import Any

from tapegpt.kernels.ops import elementwise
from tapegpt.tape.handles import BINARY, UNARY, Array, H, Node, Scalar, new
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.storage import all_or_nothing
from tapegpt.tape.types import Number, TapeError

ADD, SUB, MUL, DIV, SCALE, POW = (
    BINARY[name] for name in ("add", "sub", "mul", "div", "scale", "pow")
)
EXACT = 2**53  # whole numbers below it are floats too


class Pointwise(Leaves):
    """Operations that are one formula for each element."""

    def add(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a + b, of two scalars or of two arrays of one shape."""
        return self._binary(ADD, a, b)  # type: ignore[no-any-return]

    def sub(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a - b, of two scalars."""
        return self._binary(SUB, a, b)  # type: ignore[no-any-return]

    def mul(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a b, of two scalars."""
        return self._binary(MUL, a, b)  # type: ignore[no-any-return]

    def div(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a / b, of two scalars."""
        return self._binary(DIV, a, b)  # type: ignore[no-any-return]

    def scale(self, a: H | int, factor: Number) -> H:
        """factor a, for a number that is not a node."""
        return self._with_number(SCALE, a, factor)  # type: ignore[no-any-return]

    def pow(self, a: Scalar | int, exponent: Number) -> Scalar:
        """a ** exponent, for an exponent that is not a node."""
        return self._with_number(POW, a, exponent)  # type: ignore[no-any-return]

    def neg(self, a: H | int) -> H:
        """-a"""
        return self._unary("neg", a)  # type: ignore[no-any-return]

    def exp(self, a: H | int) -> H:
        """e ** a"""
        return self._unary("exp", a)  # type: ignore[no-any-return]

    def log(self, a: H | int) -> H:
        """ln a"""
        return self._unary("log", a)  # type: ignore[no-any-return]

    def relu(self, a: H | int) -> H:
        """max(0, a)"""
        return self._unary("relu", a)  # type: ignore[no-any-return]

    def tanh(self, a: H | int) -> H:
        """tanh a"""
        return self._unary("tanh", a)  # type: ignore[no-any-return]

    def erf(self, a: H | int) -> H:
        """2 / sqrt(pi) times the integral of e ** -t**2 from 0 to a."""
        return self._unary("erf", a)  # type: ignore[no-any-return]

    def softplus(self, a: H | int) -> H:
        """ln(1 + e ** a)"""
        return self._unary("softplus", a)  # type: ignore[no-any-return]

    def detach(self, a: H | int) -> H:
        """a, through which no gradient passes."""
        return self._unary("detach", a)  # type: ignore[no-any-return]

    def _binary(self, code: int, a: Node, b: Node) -> Any:
        # As operators do, see handles.py.
        generation = self.generation
        if (
            type(a) is type(b) is Scalar
            and a.generation is b.generation is generation
            and not self._held
            and (out := self._size) < self._room
        ):
            self._size = out + 1
            pending = self._pending
            pending += (code, out, a.id, b.id)
            result = new(Scalar)
            result.generation = generation
            result.id = out
            return result
        if type(a) is Scalar or self._any(a) not in self._shapes:
            return self._record_scalar(code, a, b)
        if code != ADD:
            self._scalar(a)
        return self._add_arrays(a, b)

    def _unary(self, name: str, a: Node) -> Any:
        if type(a) is Scalar or self._any(a) not in self._shapes:
            return self._record_scalar(UNARY[name], a, a)
        if name != "relu":
            self._scalar(a)
        return self._relu_array(a)

    def _record_scalar(self, code: int, a: Node, b: Node) -> Scalar:
        self._hold()
        try:
            left, right = self._scalar(a), self._scalar(b)
            out = self._allocate(1)
            self._records.extend((code, out, left, right))
            return self._scalar_handle(out)
        finally:
            self._release()

    def _with_number(self, code: int, a: Node, given: Number, number_first: bool = False) -> Any:
        """Record an operation of a node and of a number, which becomes a constant node."""
        generation = self.generation
        number = float(given) if type(given) is int and abs(given) < EXACT else given
        # As operators do, see handles.py.
        if type(number) is float and -self._limit <= number <= self._limit and type(a) is Scalar:
            constant = self._size
            out = constant + 1
            if out < self._room and not self._held and a.generation is generation:
                self._size = out + 1
                self.values[constant] = number
                pending = self._pending
                if number_first:
                    pending += (code, out, constant, a.id)
                else:
                    pending += (code, out, a.id, constant)
                result = new(Scalar)
                result.generation = generation
                result.id = out
                return result
        self._hold()
        try:
            value, node = self._number(given), self._any(a)
            if node in self._shapes:
                if code != SCALE:
                    self._scalar(node)
                return self._scale_array(node, given)
            constant = self._allocate(2)
            self.values[constant] = value
            left, right = (constant, node) if number_first else (node, constant)
            self._records.extend((code, constant + 1, left, right))
            return self._scalar_handle(constant + 1)
        finally:
            self._release()

    @all_or_nothing
    def _add_arrays(self, x: Node, y: Node) -> Array:
        """x + y, of arrays of one shape."""
        (x, shape), (y, other) = self._given(x), self._given(y)
        if shape != other:
            raise TapeError(f"add: the shapes {self.shape(x)} and {self.shape(y)} differ")
        arguments = elementwise.AddArgs(shape.rows, shape.width, x, y)
        return self._record_array(elementwise.ADD, shape, arguments)

    @all_or_nothing
    def _scale_array(self, x: Node, factor: Number) -> Array:
        """factor x, for a number that is not a node."""
        x, shape = self._given(x)
        arguments = elementwise.ScaleArgs(shape.rows, shape.width, x, self.constant(factor).id)
        return self._record_array(elementwise.SCALE, shape, arguments)

    @all_or_nothing
    def _relu_array(self, x: Node) -> Array:
        """max(0, x), element by element."""
        x, shape = self._given(x)
        arguments = elementwise.UnaryArgs(shape.rows, shape.width, x)
        return self._record_array(elementwise.RELU, shape, arguments)
