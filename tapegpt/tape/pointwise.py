"""The vocabulary for scalars and arrays alike: one number at a time, or element by element.

Of two operands one may be an array and the other a row, a column or a single number, which then
stands beside every row, column or element, as in NumPy. A tape's arrays have rows and columns and
no more: of further dimensions make rows, as a GPT does of documents and positions.
"""

from typing import Any, NamedTuple

from tapegpt.kernels.ops import elementwise
from tapegpt.kernels.ops.array.pointwise import POINTWISE, BinaryArgs
from tapegpt.tape.guards import all_or_nothing
from tapegpt.tape.handles import BINARY, UNARY, Array, H, Node, Scalar, new
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Number, Shape, TapeError

EXACT = 2**53  # whole numbers below it are floats too


class Side(NamedTuple):
    """An operand beside another: nodes from row to row, and from column to column."""

    node: int
    row: int
    step: int


class Pointwise(Leaves):
    """Operations that are one formula for each element."""

    def add(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a + b"""
        return self._binary("add", a, b)  # type: ignore[no-any-return]

    def sub(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a - b"""
        return self._binary("sub", a, b)  # type: ignore[no-any-return]

    def mul(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a b"""
        return self._binary("mul", a, b)  # type: ignore[no-any-return]

    def div(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a / b"""
        return self._binary("div", a, b)  # type: ignore[no-any-return]

    def power(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a ** b, for a base above 0 where the gradient of b is wanted"""
        return self._binary("power", a, b)  # type: ignore[no-any-return]

    def maximum(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """The larger of the two; of equals the gradient goes to a."""
        return self._binary("maximum", a, b)  # type: ignore[no-any-return]

    def minimum(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """The smaller of the two; of equals the gradient goes to a."""
        return self._binary("minimum", a, b)  # type: ignore[no-any-return]

    def less(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """1 where a < b, else 0; no gradient passes."""
        return self._binary("less", a, b)  # type: ignore[no-any-return]

    def at_most(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """1 where a <= b, else 0; no gradient passes."""
        return self._binary("at_most", a, b)  # type: ignore[no-any-return]

    def equal(self, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """1 where the values of a and b are equal, else 0; no gradient passes."""
        return self._binary("equal", a, b)  # type: ignore[no-any-return]

    @all_or_nothing
    def where(self, condition: H | Scalar | int, a: H | Scalar | int, b: H | Scalar | int) -> H:
        """a where the condition is not 0, else b; what is not chosen counts for nothing."""
        chosen: Any = self._binary("where_true", condition, a)
        other: Any = self._binary("where_false", condition, b)
        return self._binary("add", chosen, other)  # type: ignore[no-any-return]

    def scale(self, a: H | int, factor: Number) -> H:
        """factor a, for a number that is not a node."""
        return self._with_number("scale", a, factor)  # type: ignore[no-any-return]

    def pow(self, a: H | int, exponent: Number) -> H:
        """a ** exponent, for an exponent that is not a node."""
        return self._with_number("pow", a, exponent)  # type: ignore[no-any-return]

    def neg(self, a: H | int) -> H:
        """-a"""
        return self._unary("neg", a)  # type: ignore[no-any-return]

    def exp(self, a: H | int) -> H:
        """e ** a"""
        return self._unary("exp", a)  # type: ignore[no-any-return]

    def log(self, a: H | int) -> H:
        """ln a"""
        return self._unary("log", a)  # type: ignore[no-any-return]

    def sqrt(self, a: H | int) -> H:
        """The square root of a."""
        return self._unary("sqrt", a)  # type: ignore[no-any-return]

    def abs(self, a: H | int) -> H:
        """|a|; at 0 no gradient passes."""
        return self._unary("abs", a)  # type: ignore[no-any-return]

    def sin(self, a: H | int) -> H:
        """The sine of a, in radians."""
        return self._unary("sin", a)  # type: ignore[no-any-return]

    def cos(self, a: H | int) -> H:
        """The cosine of a, in radians."""
        return self._unary("cos", a)  # type: ignore[no-any-return]

    def relu(self, a: H | int) -> H:
        """max(0, a)"""
        return self._unary("relu", a)  # type: ignore[no-any-return]

    def tanh(self, a: H | int) -> H:
        """tanh a"""
        return self._unary("tanh", a)  # type: ignore[no-any-return]

    def sigmoid(self, a: H | int) -> H:
        """1 / (1 + e ** -a)"""
        return self._unary("sigmoid", a)  # type: ignore[no-any-return]

    def silu(self, a: H | int) -> H:
        """a / (1 + e ** -a)  (Elfwing et al. 2018)"""
        return self._unary("silu", a)  # type: ignore[no-any-return]

    def erf(self, a: H | int) -> H:
        """2 / sqrt(pi) times the integral of e ** -t**2 from 0 to a."""
        return self._unary("erf", a)  # type: ignore[no-any-return]

    def softplus(self, a: H | int) -> H:
        """ln(1 + e ** a)"""
        return self._unary("softplus", a)  # type: ignore[no-any-return]

    def detach(self, a: H | int) -> H:
        """a, through which no gradient passes."""
        return self._unary("detach", a)  # type: ignore[no-any-return]

    def _binary(self, name: str, a: Node, b: Node) -> Any:
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
            pending += (BINARY[name], out, a.id, b.id)
            result = new(Scalar)
            result.generation = generation
            result.id = out
            return result
        left, right, shapes = self._any(a), self._any(b), self._shapes
        if left not in shapes and right not in shapes:
            return self._record_scalar(BINARY[name], left, right)
        return self._binary_of_arrays(name, left, right)

    def _unary(self, name: str, a: Node) -> Any:
        node = self._any(a)
        if node not in self._shapes:
            return self._record_scalar(UNARY[name], node, node)
        return self._unary_of_array(name, node)

    def _record_scalar(self, code: int, a: Node, b: Node) -> Scalar:
        self._hold()
        try:
            left, right = self._scalar(a), self._scalar(b)
            out = self._allocate(1)
            self._records.extend((code, out, left, right))
            return self._scalar_handle(out)
        finally:
            self._release()

    def _with_number(self, name: str, a: Node, given: Number, number_first: bool = False) -> Any:
        """Record an operation of a node and of a number, which becomes a constant node."""
        generation, code = self.generation, BINARY[name]
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
                return self._number_beside_array(name, node, given, number_first)
            constant = self._allocate(2)
            self.values[constant] = value
            left, right = (constant, node) if number_first else (node, constant)
            self._records.extend((code, constant + 1, left, right))
            return self._scalar_handle(constant + 1)
        finally:
            self._release()

    @all_or_nothing
    def _number_beside_array(
        self, name: str, node: int, number: Number, number_first: bool
    ) -> Array:
        constant = self.constant(number).id
        if name not in ("scale", "pow"):
            pair = (constant, node) if number_first else (node, constant)
            return self._binary_of_arrays(name, *pair)
        shape = self._shapes[node]
        operation = elementwise.SCALE if name == "scale" else POINTWISE[name]
        arguments = elementwise.ScaleArgs(shape.rows, shape.width, node, constant)
        return self._record_array(operation, shape, arguments)

    @all_or_nothing
    def _unary_of_array(self, name: str, node: int) -> Array:
        shape = self._shapes[node]
        operation = elementwise.RELU if name == "relu" else POINTWISE[name]
        arguments = elementwise.UnaryArgs(shape.rows, shape.width, node)
        return self._record_array(operation, shape, arguments)

    @all_or_nothing
    def _binary_of_arrays(self, name: str, a: int, b: int) -> Array:
        left, right = self._shapes.get(a), self._shapes.get(b)
        if name == "add" and left is not None and left == right:
            arguments = elementwise.AddArgs(left.rows, left.width, a, b)
            return self._record_array(elementwise.ADD, left, arguments)
        shape = self._common_shape(name, a, b)
        x, y, room = _side(a, left, shape), _side(b, right, shape), 2 * self._vectors(shape.width)
        given = BinaryArgs(shape.rows, shape.width, *x, *y, room)
        return self._record_array(POINTWISE[name], shape, given)

    def _common_shape(self, name: str, a: int, b: int) -> Shape:
        shapes = [self._shapes[node] for node in (a, b) if node in self._shapes]
        rows = {shape.rows for shape in shapes} - {1} or {1}
        widths = {shape.width for shape in shapes} - {1} or {1}
        if len(rows) > 1 or len(widths) > 1:
            raise TapeError(f"{name}: the shapes {self.shape(a)} and {self.shape(b)} do not match")
        width = widths.pop()
        return Shape(rows.pop(), width, self._stride(width))

    def _vectors(self, width: int) -> int:
        """Elements of as many whole vectors as hold a row."""
        return -(-width // self.lanes) * self.lanes


def _side(node: int, shape: Shape | None, result: Shape) -> Side:
    """How an operand of this shape, or a scalar, lies beside a result."""
    if shape is None:
        return Side(node, 0, 0)
    row = shape.stride if shape.rows == result.rows else 0
    return Side(node, row, int(shape.width == result.width))
