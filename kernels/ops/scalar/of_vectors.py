"""A scalar formula written for vectors: choices lane by lane, and functions of whole vectors."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from tapegpt.kernels import simd
from tapegpt.kernels.simd import special, trigonometric

# The functions in formulas, of vectors. They know the type by themselves: `values` is left out.
MODULES = {"simd": simd, "special": special, "trigonometric": trigonometric}
FUNCTIONS = {
    "exp": "special.exp_any",
    "log": "special.log",
    "tanh": "special.tanh",
    "sqrt": "special.sqrt",
    "sin": "trigonometric.sin",
    "cos": "trigonometric.cos",
    "power": "special.library_power",
    "softplus": "special.softplus",
    "abs": "simd.absolute",
    "max": "simd.maximum",
}
# The comparisons, and whether the sides change places.
CHOICES: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Lt: ("less", False),
    ast.Gt: ("less", True),
    ast.LtE: ("at_most", False),
    ast.GtE: ("at_most", True),
    ast.Eq: ("equal", False),
    ast.NotEq: ("unequal", False),
}
LARGEST_WHOLE_POWER = 64  # that is multiplied out


def vector_expression(expression: str, names: Mapping[str, str]) -> str:
    """The expression on vectors; `names` are those of the operands, or numbers.

    Raises ValueError for what is not known of vectors.
    """
    return ast.unparse(_OnVectors(names).visit(ast.parse(expression, mode="eval").body))


def chosen_where(test: str, names: Mapping[str, str], expression: str) -> str:
    """The expression in the lanes where a test holds, else 0; nothing where it never holds."""
    condition = _OnVectors(names).visit(ast.parse(test, mode="eval").body)
    if _is_constant(condition):
        return expression if _number(condition) else ""
    return ast.unparse(_choice(condition, _parse(expression), ast.Constant(0.0)))


class _OnVectors(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {"zero": "0.0", "one": "1.0", **names}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self._names:
            raise ValueError(f"{node.id!r} is not known of vectors")
        return _parse(self._names[node.id])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        operands = [a for a in node.args if not (isinstance(a, ast.Name) and a.id == "values")]
        given = [self.visit(operand) for operand in operands]
        if node.func.id == "logistic":  # of a, whose softplus is out: e^(a - softplus(a))
            return _call("special.exp_any", ast.BinOp(given[0], ast.Sub(), given[1]))
        if node.func.id == "erf":  # whose derivative is made of the same exponential
            (a,) = given
            exponential = _call(
                "special.exp_any", _parse(f"-({ast.unparse(a)} * {ast.unparse(a)})")
            )
            return _call("special.erf_given", a, exponential)
        if node.func.id not in FUNCTIONS:
            raise ValueError(f"{node.func.id!r} is not known of vectors")
        return _call(FUNCTIONS[node.func.id], *given)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        made = ast.BinOp(left, node.op, right)
        if _is_constant(left) and _is_constant(right):
            return ast.Constant(_number(made))
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        return made

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        return _choice(self.visit(node.test), self.visit(node.body), self.visit(node.orelse))


def _choice(test: ast.expr, x: ast.expr, y: ast.expr) -> ast.expr:
    """x in the lanes where the test holds, else y."""
    if _is_constant(test):
        return x if _number(test) else y
    if isinstance(test, ast.BoolOp):
        for part in reversed(test.values):
            chosen = _choice(part, x, y)
            x, y = (chosen, y) if isinstance(test.op, ast.And) else (x, chosen)
        return chosen
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        raise ValueError(f"{ast.unparse(test)!r} is not known of vectors")
    name, swapped = CHOICES[type(test.ops[0])]
    sides = (test.left, test.comparators[0])
    a, b = sides[::-1] if swapped else sides
    return _call(f"special.where_{name}", a, b, x, y)


def _power(base: ast.expr, exponent: ast.expr) -> ast.expr:
    if not _is_constant(exponent):
        return _call("special.power", base, exponent)
    number = _number(exponent)
    whole, half = divmod(number, 1)
    if abs(number) > LARGEST_WHOLE_POWER or half not in (0, 0.5):
        return _call("special.power", base, exponent)
    root = _call("special.sqrt", base)
    if half == 0:
        return _call("special.whole_power", base, ast.Constant(int(whole)))
    if number == 0.5:
        return root
    if number == -0.5:
        return ast.BinOp(ast.Constant(1.0), ast.Div(), root)
    whole_part = _call("special.whole_power", base, ast.Constant(int(whole)))
    return ast.BinOp(whole_part, ast.Mult(), root)


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(_parse(name), list(arguments), [])


def _parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _is_constant(node: ast.expr) -> bool:
    return not any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node))


def _number(node: ast.expr) -> Any:
    """The value of an expression of numbers alone."""
    return eval(compile(ast.fix_missing_locations(ast.Expression(node)), "constant", "eval"), {})
