"""Mutation testing: which small mistakes in the kernels do the tests notice?

    python tests/mutation.py [--kernels matmul,attention] [--sample N] [--seed S] [--only TEXT]

A mutant is the package with one change in one kernel: a + that is a -, a < that is a <=, a constant
one off, a statement left out. It lies in a private copy of the checkout, where the tests in TESTS
run until one fails; a crash and a hang are failures too. Mutants that Numba refuses to compile are
no mistakes that could lie hidden, and do not count. EQUIVALENT lists those that compute the same.

A mutant has all lines of the original, so compiled kernels that do not reach the changed function
come from the ordinary cache: a mutant compiles only what it changes.
"""

import argparse
import ast
import itertools
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ |= {"CI": "1", "OPENBLAS_NUM_THREADS": "1"}  # the same examples every time
sys.dont_write_bytecode = True  # times of files are too coarse to tell mutants apart

# Imported before every fork, to do it once.
import numba  # noqa: E402
import numpy  # noqa: E402, F401
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent

SIMD = [
    "test_simd.py test_simd_lists.py",
    "test_matmul.py test_lanes.py",
    "test_array_operations.py",
]

# For each kernel what pytest is called with, one call after the other, the most telling first.
TESTS = {
    "amx": ["test_matmul.py", "test_array_operations.py test_passes.py -k linear or wide"],
    "attention": [
        "test_array_operations.py -k attention",
        "test_attention.py",
        "test_batch.py test_sampling.py -k gradient_of_a_batch or every_width or plain_network",
    ],
    "batch": ["test_batch.py", "test_validation.py -k loss_of_all"],
    "cross_entropy": [
        "test_array_operations.py -k cross_entropy or extreme or nan",
        "test_batch.py test_gradients.py -k loss_of_a_batch or position or cross_entropy",
    ],
    "dropout": [
        "test_array_operations.py test_gradients.py -k dropout and not a_model",
        "test_training.py -k dropout",
        "test_batch.py",
    ],
    "elementwise": [
        "test_array_operations.py -k relu or add or scale or mean or several or dropout",
        "test_gradients.py -k array or mean",
        "test_batch.py test_recurrence.py",
    ],
    "embedding": ["test_array_operations.py test_gradients.py -k embed", "test_batch.py"],
    "sample": ["test_sampling.py"],
    "lane_batching": [
        "test_array_operations.py -k attention",
        "test_lanes.py",
        "test_attention.py",
        "test_sampling.py -k every_width or plain_network",
    ],
    "linear": [
        "test_array_operations.py test_gradients.py -k linear",
        "test_passes.py test_batch.py",
    ],
    "matmul": ["test_array_operations.py -k linear", "test_matmul.py"],
    "optimizers": ["test_optimizers.py", "test_threads.py", "test_divergence.py"],
    "dot": [
        "test_scalar_operations.py test_gradients.py -k dot",
        "test_scalar_operations.py test_tape.py",
    ],
    "recurrence": ["test_recurrence.py", "test_sampling.py -k plain_network"],
    "scalar/reduce": [
        "test_scalar_operations.py -k sum or max or edges",
        "test_scalar_operations.py test_gradients.py -k random or sum or max",
    ],
    "rmsnorm": ["test_array_operations.py test_gradients.py -k rmsnorm", "test_batch.py"],
    "layout": ["test_array_operations.py -k relu or mean", "test_batch.py"],
    "strided": [
        "test_runs.py",
        "test_scalar_operations.py test_gradients.py -k record or runs",
        "test_scalar_operations.py test_tape.py",
    ],
    "formulas": ["test_scalar_operations.py", "test_tape.py"],
    "schedules": ["test_schedules.py"],
    "softmax": [
        "test_array_operations.py -k softmax or cross_entropy or extreme or nan",
        "test_batch.py test_gradients.py -k loss_of_a_batch or position or softmax",
    ],
    "loops/train": ["test_batch.py", "test_threads.py", "test_training.py", "test_divergence.py"],
    "interpreter": [
        "test_scalar_operations.py",
        "test_batch.py",
        "test_recurrence.py",
        "test_tape.py",
    ],
    "thread_group": ["test_threads.py"],
    "topk": ["test_topk.py", "test_array_operations.py test_gradients.py -k gathered"],
    "validation": ["test_validation.py", "test_threads.py"],
    "simd/lanewise": SIMD,
    "simd/memory": SIMD,
    "simd/reduce": SIMD,
    "simd/tile": SIMD,
    "simd/tile_products": SIMD,
    "simd/tile_rows": SIMD,
    "simd/types": SIMD,
    "simd/math": [
        "test_vmath.py test_vmath_near.py",
        "test_scalar_operations.py -k edges or float32",
    ],
}

# Mutants that compute the same, and why. " ... " stands for anything.
EQUIVALENT = {
    "Packing and the width of panels change the speed alone; there is always room for a panel.": [
        "matmul.matmul: packing = ... ",
        "matmul.matmul: if packing: -> if not (packing):",
        "matmul.matmul: if vectors < WIDE: -> if vectors <= WIDE:",
        "matmul.matmul: vectors = PAIR ... -> vectors = PAIR if vectors > PAIR else 1",
    ],
    "What is asked for ahead of time is there sooner, and changes nothing else.": [
        "matmul.make_panel: if columns == WIDE and ... ",
        "matmul.make_panel: for r in range(row + tile_rows ... ",
        "matmul.make_panel: for c in range(columns): ... ",
        "matmul.make_panel: prefetch( ... ",
    ],
    "A panel is deeper than 2: products of depth 1 and 2 take one round.": [
        "matmul.matmul: for k in ... -> for k in range(0, max(2, depth), PANEL_DEPTH):",
    ],
    "How often a thread that waits leaves the processor to others changes the speed alone.": [
        "thread_group.all_reduce_sum: looks = 0 -> ... ",
        "thread_group.all_reduce_sum: looks += 1 -> ... ",
        "thread_group.all_reduce_sum: if looks % LOOKS == 0: -> if ... :",
        "thread_group.all_reduce_sum: yield_processor() -> pass",
    ],
    "How far a tile reaches matters only where bounds are checked; more room than needed will do; "
    "rows after the last one are computed and left out.": [
        "amx.define_move: side, itemsize = ... -> ... (SIDE - (0), 4))",
        "amx.unit_room: tiles = ... -> tiles = -(-max(depth, PANEL_DEPTH) // DEPTH) * PARTS",
        "amx.pack_rows: at = ... -> at = a0 + min(row + r, rows + 1) * a_row + k",
    ],
    "Rows beyond the last one are the last one again: it is stored once more.": [
        "rmsnorm.rmsnorm_forward: tile_store( ... , last + r)",
    ],
    "Another key of the same seed and document is as good.": [
        "loops/train.train_steps: inputs[program.key] = ... = dropout_key(document, seed)",
    ],
    "The last of one is the first.": [
        "thread_group.arrive: at ... args[(-1)], one.type(0))",
        "thread_group.arrive: at ... sig.args[(-1)], args[0], one.type(0))",
        "thread_group.arrived: at ... args[(-1)], ir.IntType(64)(0))",
        "thread_group.arrived: at ... sig.args[(-1)], args[0], ir.IntType(64)(0))",
    ],
    "What is cleared once more, or copied onto itself, stays what it is.": [
        "loops/train.loss_and_gradient: grads[program.clear ... max(top, program.clear[i, 1])] = 0",
        "thread_group.broadcast_parameters: if thread > 0: -> if thread >= 0:",
    ],
    "An index of zero may have any type.": [
        "thread_group.arrived: at ... ir.IntType(65)(0))",
        "thread_group.arrived: at ... ir.IntType((63))(0))",
    ],
    "The difference is finite where the sum is.": [
        "optimizers.adam: total = total + moved -> total = total - moved",
        "optimizers.sgd: total = total + moved -> total = total - moved",
    ],
    "No norm is above infinity, and one that is the longest allowed is multiplied by 1.": [
        "optimizers.update: if ... -> if optimizer.clip_norm <= math.inf:",
        "optimizers.clip_gradient: if ... -> if longest <= norm < math.inf:",
    ],
    "Nobody reads the second column of the sums.": [
        "dot.dot_rows_forward: sums = ... -> sums = tile_zeros(values, width, 2)",
    ],
    "Pairs of operands: an end that is one less ends with the same pair.": [
        "embedding.embed_backward: for i in ... at + (2) + 2 * count, 2):",
    ],
    "A single row lies where it begins, whatever the distance of the next.": [
        "topk.gathered_product: one_row = ... -> one_row = row_offsets(0, 1, (-1), 1)",
        "matmul.few_rows: here, size = ... -> here, size = row_offsets(0, 1, (-1), 1), lanes(b)",
    ],
    "No row comes before the first position.": [
        "interpreter.reverse_sweep: if here[0] > window[0]: -> if here[0] >= window[0]:",
    ],
    "Where the rate has just risen it is the largest, with either formula.": [
        "schedules.scheduled_rate: if risen < 1: -> if risen <= 1:",
    ],
}

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


@dataclass(frozen=True)
class Mutant:
    kernel: str
    source: bytes
    lines: tuple[int, int]  # of the function that is changed, at the top of the module
    name: str


class Changes(ast.NodeVisitor):
    """Collects the changes of one function."""

    def __init__(self, source: bytes):
        self.source = source
        self.found: list[Change] = []
        self.assigned: set[str] = set()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: Any) -> tuple[int, int]:
        begin = self.starts[node.lineno - 1] + node.col_offset
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> bytes:
        begin, end = self.span(node)
        return self.source[begin:end]

    def replace(self, node: ast.AST, text: bytes) -> None:
        """The change of a whole node, which keeps the number of lines."""
        begin, end = self.span(node)
        lines = self.source.count(b"\n", begin, end) - text.count(b"\n")
        self.found.append(Change(begin, end, text + lines * b"\n"))

    def operator(self, left: ast.AST, kind: ast.AST, right: ast.AST) -> None:
        begin, end = self.span(left)[1], self.span(right)[0]
        if type(kind) in OPERATORS:
            sign, others = OPERATORS[type(kind)]
            at = self.source.index(sign.encode(), begin, end)
            for other in others:
                self.found.append(Change(at, at + len(sign), other.encode()))

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
        name = self.text(node.func).decode()
        if name in NAMES:
            self.replace(node.func, NAMES[name].encode())
        for i, (x, y) in enumerate(zip(node.args, node.args[1:], strict=False)):
            alike = type(x) is type(y) and isinstance(x, ast.Name | ast.BinOp | ast.Subscript)
            arrays = [self.text(z).decode() in ARRAYS for z in (x, y)]
            same = self.text(x) == self.text(y) or (i == 0 and name in SYMMETRIC)
            if alike and arrays[0] == arrays[1] and not same:
                begin, end = self.span(x)[0], self.span(y)[1]
                between = self.source[self.span(x)[1] : self.span(y)[0]]
                self.found.append(Change(begin, end, self.text(y) + between + self.text(x)))
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


def mutants_of(kernel: str) -> Iterator[Mutant]:
    source = file_of(ROOT, kernel).read_bytes()
    names: Counter[str] = Counter()
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        changes = Changes(source)
        changes.visit(function)
        for change in changes.found:
            changed = source[: change.begin] + change.text + source[change.end :]
            ends = [source.index(b"\n", change.end), changed.index(b"\n", change.begin)]
            ends[1] = changed.index(b"\n", change.begin + len(change.text.rstrip()))
            begin = source.rindex(b"\n", 0, change.begin)
            before, after = (
                " ".join(text[begin:end].decode().split())
                for text, end in zip((source, changed), ends, strict=True)
            )
            name = f"{kernel}.{function.name}: {before} -> {after}"
            names[name] += 1
            if names[name] > 1:
                name += f" ({names[name]})"
            first = min(x.lineno for x in (*function.decorator_list, function))
            yield Mutant(kernel, changed, (first, function.end_lineno or first), name)


def code_names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(code_names, inner))


def reaches(function: Any, file: Path, lines: tuple[int, int], seen: set[int]) -> bool:
    """Whether a kernel, or what it calls, lies in these lines."""
    function = getattr(function, "py_func", getattr(function, "_defn", function))
    if not isinstance(function, FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    code = function.__code__
    if Path(code.co_filename) == file and lines[0] <= code.co_firstlineno <= lines[1]:
        return True
    used = [function.__globals__.get(name) for name in code_names(code)]
    used += [cell.cell_contents for cell in function.__closure__ or ()]
    return any(reaches(value, file, lines, seen) for value in used)


def share_cache(ordinary: Path, file: Path, lines: tuple[int, int]) -> None:
    """Have kernels that do not reach the mutant use the cache of the unchanged package."""
    from tapegpt.kernels.compile.kernel_cache import KernelCache

    path_and_key: Callable[..., Any] = KernelCache._path_and_key

    def shared(self: Any, *args: Any) -> Any:
        path, key = path_and_key(self, *args)
        if reaches(self._function, file, lines, set()):
            return path, key
        return ordinary / path.name, key

    KernelCache._path_and_key = shared


class FirstFailure:
    """A plugin of pytest: Hypothesis does not look for a simpler example of a failure."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("ci", settings.get_profile("ci"), phases=phases)
        settings.load_profile("ci")


def run_tests(copy: Path, call: str, cpu_seconds: float, mutant: Mutant | None, cache: Path) -> str:
    """Run pytest in a fork: "", or what failed. The unchanged package has the cache `cache`."""
    log = copy / "log"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(copy)
        sys.path[:1] = [str(copy)]
        os.environ["PYTHONPATH"] = str(copy)
        if mutant:
            private = str(copy / "cache")
            os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = private
            share_cache(cache, file_of(copy / "tapegpt", mutant.kernel), mutant.lines)
        file_name, *options = re.split(r" -k ", call)
        arguments = [f"tests/{name}" for name in file_name.split()]
        arguments += [f"-k{option}" for option in options]
        code = 1
        try:
            arguments = ["-x", "-q", "-p", "no:cacheprovider", *arguments]
            code = int(pytest.main(arguments, plugins=[FirstFailure()]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = log.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    if "numba.core.errors" in text:
        return "does not compile"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    return failed[1] if failed else f"exit status {code}: {text[-2000:]}"


def is_equivalent(mutant: Mutant) -> bool:
    for entry in itertools.chain(*EQUIVALENT.values()):
        begin, dots, end = entry.partition(" ... ")
        if mutant.name == entry or (
            dots and mutant.name.startswith(begin) and mutant.name.endswith(end)
        ):
            return True
    return False


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def verdict(copy: Path, mutant: Mutant, usual: dict[str, float], cache: Path) -> tuple[str, str]:
    """noticed, survived or invalid, and by what it was noticed."""
    file = file_of(copy, mutant.kernel)
    original = file.read_bytes()
    file.write_bytes(mutant.source)
    try:
        for call in TESTS[mutant.kernel]:
            if call not in usual:
                usual[call] = unchanged(copy, file, original, call, cache)
                file.write_bytes(mutant.source)
            # A few times as long, and time to compile.
            failed = run_tests(copy, call, 5 * usual[call] + 45, mutant, cache)
            if failed == "does not compile":
                return "invalid", ""
            if failed:
                return "noticed", failed
    finally:
        file.write_bytes(original)
        shutil.rmtree(copy / "cache", ignore_errors=True)
    return "survived", ""


def unchanged(copy: Path, file: Path, original: bytes, call: str, cache: Path) -> float:
    """The CPU time of tests that must pass without a mutant."""
    file.write_bytes(original)
    before = cpu_of_children()
    if failed := run_tests(copy, call, 3600, None, cache):
        sys.exit(f"{call} fails without a mutant: {failed}")
    return cpu_of_children() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default=",".join(TESTS), help="files in kernels/")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    arguments = parser.parse_args()

    mutants = [
        mutant
        for kernel in arguments.kernels.split(",")
        for mutant in mutants_of(kernel)
        if arguments.only in mutant.name
    ]
    print(f"{len(mutants)} mutants", flush=True)
    random.Random(arguments.seed).shuffle(mutants)
    code = "from tapegpt.kernels.compile.kernel_cache import cache_directory as c; print(c())"
    cache = Path(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    results: dict[str, Counter[str]] = {}
    usual: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "tapegpt"
        copy.mkdir()
        for name in ("tapegpt", "kernels", "tests", "data"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        shutil.copy(ROOT / "pyproject.toml", copy)
        try:
            for mutant in mutants[: arguments.sample]:
                if is_equivalent(mutant):
                    result, by = "equivalent", ""
                else:
                    result, by = verdict(copy, mutant, usual, cache)
                results.setdefault(mutant.kernel, Counter())[result] += 1
                print(f"{result:10} {mutant.name}  {by}", flush=True)
        except KeyboardInterrupt:
            pass
    print_table(results)


def print_table(results: dict[str, Counter[str]]) -> None:
    columns = ("noticed", "survived", "equivalent", "invalid")
    print("\n" + "".join(f"{column:>15}" for column in ("kernel", *columns)))
    total = sum(results.values(), Counter())
    for kernel, counts in [*sorted(results.items()), ("all", total)]:
        print(f"{kernel:>15}" + "".join(f"{counts[column]:15}" for column in columns))
    counted = total["noticed"] + total["survived"]
    if counted:
        print(f"\n{total['noticed'] / counted:.1%} of {counted} mutants are noticed")


if __name__ == "__main__":
    main()
