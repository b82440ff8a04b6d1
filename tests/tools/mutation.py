"""Mutation testing: which small mistakes in the kernels do the tests notice?

    python tests/tools/mutation.py [--kernels matmul,topk] [--sample N] [--seed S] [--only TEXT]

A mutant is the package with one change in one kernel: a + that is a -, a < that is a <=, a constant
one off, a statement left out (mutants.py). It lies in a private copy of the checkout, where the
kernel's tests run until one fails; a crash and a hang are failures too. Mutants that Numba refuses
to compile are no mistakes that could lie hidden, and do not count. Which tests are a kernel's, and
which mutants compute the same: mutation_targets.py.

A mutant has all lines of the original, so compiled kernels that do not reach the changed function
come from the ordinary cache: a mutant compiles only what it changes.
"""

import argparse
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
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

os.environ |= {"CI": "1", "OPENBLAS_NUM_THREADS": "1"}  # the same examples every time
sys.dont_write_bytecode = True  # times of files are too coarse to tell mutants apart

# Imported before every fork, to do it once.
import numba  # noqa: E402
import numpy  # noqa: E402, F401
import pytest  # noqa: E402
from mutants import ROOT, Mutant, file_of, mutants_of  # noqa: E402
from mutation_targets import EQUIVALENT, TESTS  # noqa: E402


def code_names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(code_names, inner))


def reaches(function: Any, mutant: Mutant, seen: set[int]) -> bool:
    """Whether a kernel, or what it calls, is changed."""
    function = getattr(function, "py_func", getattr(function, "_defn", function))
    if not isinstance(function, FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    code = function.__code__
    first, last = mutant.lines
    if Path(code.co_filename).name in mutant.files and first <= code.co_firstlineno <= last:
        return True
    names = code_names(code)
    used = [function.__globals__.get(name) for name in names]
    for module in [value for value in used if isinstance(value, ModuleType)]:
        used += [getattr(module, name, None) for name in names]
    used += [cell.cell_contents for cell in function.__closure__ or ()]
    return any(reaches(value, mutant, seen) for value in used)


def share_cache(ordinary: Path, mutant: Mutant) -> None:
    """Have kernels that do not reach the mutant use the cache of the unchanged package."""
    from tapegpt.kernels.compile.kernel_cache import KernelCache

    path_and_key: Callable[..., Any] = KernelCache._path_and_key

    def shared(self: Any, *args: Any) -> Any:
        path, key = path_and_key(self, *args)
        if reaches(self._function, mutant, set()):
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
            share_cache(cache, mutant)
        file_name, *options = re.split(r" -k ", call)
        arguments = [str(path) for name in file_name.split() for path in Path("tests").rglob(name)]
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
    """Whether it, or all mutants in its place, are listed as computing the same."""
    listed = set(itertools.chain(*EQUIVALENT.values()))
    return not listed.isdisjoint({mutant.name, mutant.name.split(":")[0]})


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
                print(f"{result:10} {mutant.name} (line {mutant.line})  {by}", flush=True)
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
