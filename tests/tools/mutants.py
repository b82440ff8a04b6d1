"""Small mistakes in the source of a kernel, one at a time."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

OPERATORS = {
    ast.Add: ("+", ["-"]), ast.Sub: ("-", ["+"]), ast.Mult: ("*", ["+"]), ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["*"]), ast.Mod: ("%", ["//"]), ast.Pow: ("**", ["*"]),
    ast.LShift: ("<<", [">>"]), ast.RShift: (">>", ["<<"]), ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]), ast.BitXor: ("^", ["|"]),
    ast.Lt: ("<", ["<=", ">"]), ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<"]), ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]), ast.NotEq: ("!=", ["=="]),
    ast.And: ("and", ["or"]), ast.Or: ("or", ["and"]),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "relu": "absolute", "maximum": "minimum"}
ARRAYS = {"values", "grads", "operands", "inputs", "records", "program", "schedule", "optimizer"}
# Functions whose first two arguments may change places.
SYMMETRIC = {"min", "max", "maximum", "fma"}


@dataclass(frozen=True)
class Change:
    """Bytes begin to end - 1 of a source become `text`."""

    begin: int
    end: int
    text: bytes
    place: str  # the function and what in it is assigned, called, returned, looped over or asked


@dataclass(frozen=True)
class Mutant:
    kernel: str
    source: bytes
    files: tuple[str, ...]  # names of those whose kernels change,
    lines: tuple[int, int]  # in these lines
    name: str
    line: int


class Changes(ast.NodeVisitor):
    """Collects the changes of one function, or of one expression that begins at `offset`."""

    def __init__(self, source: bytes, place: str, offset: int | None = None):
        self.source = source
        self.place = place
        self.offset = offset
        self.found: list[Change] = []
        self.assigned: set[str] = set()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: Any) -> tuple[int, int]:
        if self.offset is not None:
            return self.offset + node.col_offset, self.offset + node.end_col_offset
        begin = self.starts[node.lineno - 1] + node.col_offset
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> bytes:
        begin, end = self.span(node)
        return self.source[begin:end]

    def change(self, begin: int, end: int, text: bytes) -> None:
        self.found.append(Change(begin, end, text, self.place))

    def visit(self, node: ast.AST) -> Any:
        """Visit a node; changes in a statement or a function below it are named after it."""
        outer, here = self.place, subject(node)
        if isinstance(node, ast.FunctionDef):
            self.place = f"{outer}.{here}"
        elif here:
            self.place = f"{outer.split(',')[0]}, {here}"
        super().visit(node)
        self.place = outer

    def replace(self, node: ast.AST, text: bytes) -> None:
        """The change of a whole node, which keeps the number of lines."""
        begin, end = self.span(node)
        lines = self.source.count(b"\n", begin, end) - text.count(b"\n")
        self.change(begin, end, text + lines * b"\n")

    def operator(self, left: ast.AST, kind: ast.AST, right: ast.AST) -> None:
        begin, end = self.span(left)[1], self.span(right)[0]
        if type(kind) in OPERATORS:
            sign, others = OPERATORS[type(kind)]
            at = self.source.index(sign.encode(), begin, end)
            for other in others:
                self.change(at, at + len(sign), other.encode())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.assigned |= {argument.arg for argument in node.args.args}
        documented = ast.get_docstring(node) is not None
        for statement in node.body[documented:]:
            self.visit(statement)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.operator(node.left, node.op, node.right)
        # Which gradients are fresh.
        if isinstance(node.op, ast.BitAnd) and self.text(node.right) in (b"1", b"2"):
            self.replace(node.right, b"2" if self.text(node.right) == b"1" else b"1")
            self.visit(node.left)
        else:
            self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.operator(node.values[0], node.op, node.values[1])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.operator(node.left, node.ops[0], node.comparators[0])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            self.replace(node, b"(" + self.text(node.operand) + b")")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) in (int, float):
            self.replace(node, repr(node.value + 1).encode())
            self.replace(node, f"({node.value - 1})".encode())
        elif isinstance(node.value, bool):
            self.replace(node, repr(not node.value).encode())

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.slice, ast.Name | ast.Subscript):
            self.replace(node.slice, self.text(node.slice) + b" + 1")
        self.generic_visit(node)

    def condition(self, node: Any) -> None:
        if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            self.replace(node.test, b"not (" + self.text(node.test) + b")")
        self.generic_visit(node)

    # ast.NodeVisitor looks for these names, also below.
    visit_If = visit_While = visit_IfExp = condition  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        module, dot, name = self.text(node.func).decode().rpartition(".")
        if name in NAMES:
            self.replace(node.func, f"{module}{dot}{NAMES[name]}".encode())
        for i, (x, y) in enumerate(zip(node.args, node.args[1:], strict=False)):
            alike = type(x) is type(y) and isinstance(x, ast.Name | ast.BinOp | ast.Subscript)
            arrays = [self.text(z).decode() in ARRAYS for z in (x, y)]
            same = self.text(x) == self.text(y) or (i == 0 and name in SYMMETRIC)
            if alike and arrays[0] == arrays[1] and not same:
                begin, end = self.span(x)[0], self.span(y)[1]
                between = self.source[self.span(x)[1] : self.span(y)[0]]
                self.change(begin, end, self.text(y) + between + self.text(x))
        if name == "range" and len(node.args) < 3:
            self.replace(node.args[-1], self.text(node.args[-1]) + b" - 1")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.operator(node.target, node.op, node.value)
        self.left_out(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
        stored = isinstance(node.targets[0], ast.Subscript)
        # Without its first assignment a variable would be missing.
        if stored or names <= self.assigned:
            self.left_out(node)
        else:
            self.generic_visit(node)
        self.assigned |= names

    def left_out(self, node: ast.AST) -> None:
        self.replace(node, b"pass")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        self.left_out(node)

    visit_Break = visit_Continue = left_out  # noqa: N815

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.replace(node, b"pass")
        self.generic_visit(node)


def file_of(root: Path, kernel: str) -> Path:
    """The file of a kernel somewhere below root / kernels."""
    (file,) = (root / "kernels").rglob(f"{kernel}.py")
    return file


def name_of(target: ast.expr) -> str:
    """What is assigned: names, or the array."""
    return ast.unparse(target.value if isinstance(target, ast.Subscript) else target)


def subject(node: ast.AST) -> str:
    """What a statement is about: a function's name, what is assigned, called or asked first."""
    match node:
        case ast.FunctionDef():
            return node.name
        case ast.Assign():
            return name_of(node.targets[0])
        case ast.AugAssign():
            return name_of(node.target)
        case ast.For():
            return f"for {ast.unparse(node.target)}"
        case ast.If() | ast.While():
            names = [x for x in ast.walk(node.test) if isinstance(x, ast.Name)]
            kind = type(node).__name__.lower()
            return f"{kind} {min(names, key=lambda x: x.col_offset).id}" if names else kind
        case ast.Expr(ast.Call()):
            return ast.unparse(node.value.func).rpartition(".")[2]
        case ast.Return():
            return "return"
    return ""


def changes_of(source: bytes, kernel: str) -> Iterator[tuple[Change, tuple[int, int] | None]]:
    """The changes of a module, and the lines of the function; none for those of a formula."""
    stem = kernel.split("/")[-1]
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            changes = Changes(source, stem)
            changes.visit(node)
            first = min(x.lineno for x in (*node.decorator_list, node))
            yield from ((change, (first, node.end_lineno or first)) for change in changes.found)
            continue
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Formula":
                yield from ((change, None) for change in changes_of_formula(source, stem, call))


def changes_of_formula(source: bytes, stem: str, call: ast.Call) -> Iterator[Change]:
    """Those of the expressions of a row of the table of scalar operations."""
    fields = dict(zip(("name", "out", "da", "db"), call.args, strict=False))
    fields |= {word.arg: word.value for word in call.keywords if word.arg}
    name = ast.literal_eval(fields.pop("name"))
    for field, node in fields.items():
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        whole = Changes(source, f"{stem}.{name}, {field}")
        begin = whole.span(node)[0] + 1
        changes = Changes(source, whole.place, begin)
        changes.visit(ast.parse(node.value, mode="eval"))
        yield from changes.found


def mutants_of(kernel: str) -> Iterator[Mutant]:
    """All mutants of a file in kernels/."""
    file = file_of(ROOT, kernel)
    source = file.read_bytes()
    names: Counter[str] = Counter()
    for change, lines in changes_of(source, kernel):
        changed = source[: change.begin] + change.text + source[change.end :]
        before, after = (
            " ".join(text.decode().split())
            for text in (source[change.begin : change.end], change.text)
        )
        name = f"{change.place}: {before} -> {after}"
        names[name] += 1
        if names[name] > 1:
            name += f" ({names[name]})"
        # The switches of scalar operations are generated from formulas.
        files = (str(file.name),) if lines else ("switch.py", "strided.py")
        line = source.count(b"\n", 0, change.begin) + 1
        yield Mutant(kernel, changed, files, lines or (1, 10**6), name, line)
