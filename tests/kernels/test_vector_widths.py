"""The kernels as other x86 machines would have them: compiled for each, and run.

Two variables make Numba compile for another CPU, the name alone would keep this one's features.
They are read when Numba is imported, so every machine is a process of its own.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from llvmlite import binding

from tapegpt.kernels.simd import VECTOR_BYTES

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="these machines are x86"
)


@dataclass(frozen=True)
class Machine:
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    registers: str
    # Of the tests of operations those whose names say the other type are left out: these kernels
    # take long to compile, and another machine has as many lanes in a vector of that type.
    other_type: str = "float32"

    def environment(self, cache):
        return os.environ | {
            "NUMBA_CPU_NAME": self.cpu,
            "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in self.features),
            "NUMBA_CACHE_DIR": str(cache),
        }

    def runs_here(self):
        here = binding.get_host_cpu_features()
        return all(here.get(name, False) for name in self.features)


SSE = ("sse4.2",)
AVX2 = (*SSE, "avx", "avx2", "fma", "bmi", "bmi2")
AVX512 = (*AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
MACHINES = {
    "sse": Machine("nehalem", SSE, 16, "xmm"),
    "avx2": Machine("haswell", AVX2, 32, "ymm"),
    "avx512": Machine("skylake-avx512", AVX512, 64, "zmm", "float64"),
}

every_machine = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)

# Compiling does not run anything: a machine's code can be read on any other.
COMPILE = """
import json
from numba import types
from tapegpt.kernels.ops.product.lane_batching import LaneMatrix, lane_product
from tapegpt.kernels.ops.product.matmul import PANELS
from tapegpt.kernels.ops.product.matrix import Left, Result, Right, Shape
from tapegpt.kernels.simd import LANE_TILE, VECTOR_BYTES

kernels = []
for element in (types.float32, types.float64):
    floats, integer = types.Array(element, 1, "C"), types.int64
    a = types.NamedTuple([floats, *[integer] * 3], Left)
    b = types.NamedTuple([floats, integer, integer, types.boolean], Right)
    out = types.NamedTuple([floats, *[integer] * 4], Result)
    lanes = types.NamedTuple([floats, *[integer] * 3], LaneMatrix)
    shape = types.NamedUniTuple(integer, 3, Shape)
    signatures = [(panel, tile, (a, b, out, integer, integer)) for tile, panel in PANELS.items()]
    signatures.append((lane_product, LANE_TILE, (lanes, lanes, lanes, shape)))
    for kernel, tile, signature in signatures:
        kernel.compile(signature)
        kernels.append([str(element), tile, kernel.inspect_asm(signature)])
print(json.dumps([VECTOR_BYTES, kernels]))
"""


def kernel_body(assembly):
    """The instructions of the kernel itself, which comes before its wrappers for Python."""
    return assembly.split(".globl")[1].splitlines()


def innermost_loops(body):
    """The stretches of code that a jump goes back over and that hold no other such stretch."""
    labels = {line.split(":")[0]: i for i, line in enumerate(body) if line.startswith(".LBB")}
    jumps = [re.search(r"^\s+j\w+\s+(\.LBB\w+)$", line) for line in body]
    loops = [
        (labels[jump[1]], end) for end, jump in enumerate(jumps) if jump and labels[jump[1]] <= end
    ]
    return [
        body[begin : end + 1]
        for begin, end in loops
        if not any(begin <= b and e <= end for b, e in loops if (b, e) != (begin, end))
    ]


def count(instruction, register, loop):
    pattern = rf"\s{instruction}\s.*%{register}"
    return sum(re.search(pattern, line) is not None for line in loop)


@every_machine
def test_products_keep_to_the_registers_of_the_machine(machine, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=machine.environment(tmp_path) | {"NUMBA_BOUNDSCHECK": "0"},  # checks take registers
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    vector_bytes, kernels = json.loads(done.stdout)
    assert vector_bytes == machine.vector_bytes
    wider = [m.registers for m in MACHINES.values() if m.vector_bytes > vector_bytes]
    for element, (rows, columns), assembly in kernels:
        body = kernel_body(assembly)
        assert not [line for line in body if any(f"%{name}" in line for name in wider)]
        kind = "ps" if element == "float32" else "pd"
        steps = [rf"vfmadd\d+{kind}"] if "fma" in machine.features else [f"mul{kind}", f"add{kind}"]
        most = 0
        for loop in innermost_loops(body):
            sums = min(count(step, machine.registers, loop) for step in steps)
            most = max(most, sums)
            if sums > 0:
                # A library call for every lane, or a vector that does not fit the register file.
                assert not [line for line in loop if re.search(r"\scallq?\s", line)]
                assert not [line for line in loop if "mm" in line and "(%rsp" in line]
        assert most >= rows * columns


# Where the machine's code cannot run, its vectors can: LLVM takes them apart for this one's
# registers, once the code generator knows those and the kernels are told of others.
PRETEND = """
import sys
import pytest
from numba.core import config
from numba.core.registry import cpu_target

cpu_target.target_context.codegen()
own, config.CPU_FEATURES = config.CPU_FEATURES, sys.argv.pop(1)
import tapegpt.kernels.simd
config.CPU_FEATURES = own
sys.exit(pytest.main(sys.argv[1:]))
"""


def start_tests(machine, cache):
    """The numerical tests in a process of their own."""
    environment = machine.environment(cache)
    command = ["-m", "pytest"]
    if not machine.runs_here():
        command = ["-c", PRETEND, environment["NUMBA_CPU_FEATURES"]]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    names = [
        *(f"kernels/test_{name}.py" for name in ("simd", "vmath", "special", "trigonometric")),
        *(f"ops/test_{name}.py" for name in ("matmul", "lanes", "attention", "array_operations")),
        "ops/test_gradients.py::test_gradient_is_the_slope",
        "train/test_batch.py",
        # Of functions of arrays two that each have all their parts, for what they compile.
        "functions/test_row_function.py::test_black_scholes",
        "functions/test_row_function.py::test_gradients_are_added_to_arrays_that_overlap",
    ]
    return subprocess.Popen(
        [
            *(sys.executable, *command, "-q", "-p", "no:cacheprovider"),
            *("--hypothesis-profile", "other-machine", "-m", "not long and not any_machine"),
            *("-k", f"not (ops and {machine.other_type})"),
            *(str(TESTS / name) for name in names),
        ],
        env=environment,
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The tests as they run on every other machine, side by side."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, machine in MACHINES.items():
            if machine.vector_bytes != VECTOR_BYTES:
                process = stack.enter_context(start_tests(machine, tmp_path_factory.mktemp(name)))
                stack.callback(process.kill)
                processes[machine] = process
        yield processes


@every_machine
def test_kernels_give_the_same_results(machine, running):
    if machine not in running:
        pytest.skip("vectors have this width here: the other tests have run it")
    output, _ = running[machine].communicate()
    assert running[machine].returncode == 0, output
