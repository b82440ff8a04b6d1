"""Scalar operations: out from one node or two, and what they pass back, side by side.

In an expression a and b are the values of the operands, c that of a constant one, s that of a sum
that goes on, out the result; dout is the gradient of out. What da and db give is added to the
gradients of a and b, and dout to that of s. Both switches of the interpreter and the strided
kernels are generated from these rows.
"""

import ast
import math
from dataclasses import dataclass
from functools import cache

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.simd.math import NEAR, exp_near, softplus_near


# ln(1 + e^x)
@inlined
def softplus(values, x):
    if abs(x) < NEAR:
        y = simd.first_lane(softplus_near(simd.one_lane(values, x)))
    else:
        y = (x if x > 0 else values.dtype.type(0)) + math.exp(-abs(x))
    return y


# 1 / (1 + e^-x), whose logarithm is x - softplus(x)
@inlined
def logistic(values, x, softplus_of_x):
    logarithm = x - softplus_of_x
    if abs(logarithm) < NEAR:
        y = simd.first_lane(exp_near(simd.one_lane(values, logarithm)))
    else:  # infinity, or so negative that softplus(x) is e^x
        y = values.dtype.type(1) if x > 0 else softplus_of_x
    return y


# What the names in a formula are, of numbers.
SCOPE = {
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "power": math.pow,
    "abs": abs,
    "erf": math.erf,
    "softplus": softplus,
    "logistic": logistic,
}

NOTHING = ""  # no gradient passes


@cache
def names_in(expression: str) -> frozenset[str]:
    """The names in an expression, which may be empty."""
    nodes = ast.walk(ast.parse(expression))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name))


@dataclass(frozen=True)
class Formula:
    """One scalar operation."""

    name: str
    out: str
    da: str
    db: str = NOTHING
    # Gradients pass only where this holds, where the formula would give 0 times infinity.
    when: str = ""
    # Most of a scalar program, in long runs: staying with them takes half the time per record.
    adjacent: bool = False
    # dout is added as it is: there is no use in looking whether it is worth passing on.
    plain: bool = False
    # Also for vectors of nodes side by side, see strided.py.
    strided: bool = False
    several = False  # results

    def __post_init__(self) -> None:
        """Refuse an incomplete row at import."""
        operands = {"a", "b", "c", "s", "zero", "one", "values", *SCOPE}
        gradients = operands | {"out", "dout"}
        for expression, known in (
            (self.out, operands),
            (self.when, operands),
            (self.da, gradients),
            (self.db, gradients | {"da"}),
        ):
            if unknown := names_in(expression) - known:
                raise ValueError(f"{self.name}: {expression} has unknown names, {unknown}")
        if "a" not in names_in(self.out):
            raise ValueError(f"{self.name}: out does not depend on a")
        if self.da and (self.second == "b") != bool(self.db):
            raise ValueError(f"{self.name}: the operand b and its gradient db belong together")

    @property
    def goes_on(self) -> bool:
        """Whether it adds to a sum: its record says how far back that lies, see layout.py."""
        return "s" in names_in(self.out)

    @property
    def second(self) -> str:
        """The name of the second operand: b, c for a constant, or nothing."""
        return next((name for name in ("b", "c") if name in names_in(self.out)), "")


FORMULAS = (
    Formula("add", "a + b", "dout", "dout", adjacent=True, plain=True, strided=True),
    Formula("mul", "a * b", "b * dout", "a * dout", adjacent=True, strided=True),
    Formula("multiply_add", "s + a * b", "b * dout", "a * dout", adjacent=True),
    Formula("sub", "a - b", "dout", "-dout", strided=True),
    Formula("div", "a / b", "dout / b", "-out * da", strided=True),
    Formula("scale", "a * c", "c * dout", strided=True),
    Formula("exp", "exp(a)", "out * dout", strided=True),
    Formula("relu", "zero if a < zero else a", "dout", when="a > zero", strided=True),
    Formula("neg", "-a", "-dout"),
    Formula("pow", "a ** c", "c * a ** (c - one) * dout", when="c != zero"),
    Formula("log", "log(a)", "dout / a"),
    Formula("tanh", "tanh(a)", "(one - out * out) * dout"),
    # 2 / sqrt(pi) e^(-a^2)
    Formula("erf", "erf(a)", "1.1283791670955126 * exp(-(a * a)) * dout"),
    Formula("softplus", "softplus(values, a)", "logistic(values, a, out) * dout"),
    Formula("detach", "a", NOTHING),
    Formula("sqrt", "sqrt(a)", "dout / (out + out)"),
    Formula("sin", "sin(a)", "cos(a) * dout"),
    Formula("cos", "cos(a)", "-(sin(a) * dout)"),
    Formula("abs", "abs(a)", "dout if a > zero else -dout", when="a != zero"),
    Formula("sigmoid", "one / (one + exp(-a))", "out * (one - out) * dout"),
    # With s = sigmoid(a): s + out (1 - s)
    Formula("silu", "a / (one + exp(-a))", "(out + (one - out) / (one + exp(-a))) * dout"),
    # Of equals the first counts, as for max.
    Formula("maximum", "b if a < b else a", "zero if a < b else dout", "dout if a < b else zero"),
    Formula("minimum", "b if b < a else a", "zero if b < a else dout", "dout if b < a else zero"),
    Formula(
        "power",
        "power(a, b)",
        "b * power(a, b - one) * dout",
        "out * log(a) * dout if a > zero else zero",
    ),
    Formula("less", "one if a < b else zero", NOTHING),
    Formula("at_most", "one if a <= b else zero", NOTHING),
    Formula("equal", "one if a == b else zero", NOTHING),
    # The two parts of a choice between numbers by a mask.
    Formula("where_true", "b if a != zero else zero", NOTHING, "dout if a != zero else zero"),
    Formula("where_false", "zero if a != zero else b", NOTHING, "zero if a != zero else dout"),
)
