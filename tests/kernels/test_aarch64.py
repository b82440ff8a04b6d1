"""The kernels as AArch64 machines would have them: compiled for each, and their assembly read.

Numba makes code for the machine it runs on. A process that hears another triple from LLVM makes
that machine's instead, by the very steps it would take there; such code cannot run here.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba.core import config
from numba.core.registry import cpu_target

from tapegpt.kernels.compile import kernel_cache
from tapegpt.kernels.compile.cpu import host_vector_bytes
from tapegpt.kernels.ops.rmsnorm import rmsnorm_forward

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked about SVE")

COMPILE = """
import ctypes
import json
import sys
from types import SimpleNamespace
from llvmlite import binding

binding.initialize_all_targets()
binding.initialize_all_asmprinters()
for module in (binding, binding.targets):
    module.get_default_triple = module.get_process_triple = lambda: "aarch64-unknown-linux-gnu"

from numba import types
own, ctypes.CDLL = ctypes.CDLL, lambda name: SimpleNamespace(prctl=lambda option: int(sys.argv[1]))
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
ctypes.CDLL = own
from tapegpt.kernels.compile.indirect_call import backward_signature, forward_signature, kernel_type
from tapegpt.kernels.registry import KERNELS, OPERATIONS

assembly = {}
dtype, *names = sys.argv[2:]
floats = kernel_type(types.Array(getattr(types, dtype), 1, "C"))
for opcode in [[x.name for x in OPERATIONS].index(name) for name in names]:
    signatures = forward_signature(floats), backward_signature(floats)
    for kernel, signature in zip(KERNELS[opcode], signatures, strict=True):
        kernel.compile(signature.args)
        assembly[kernel.__name__] = kernel.inspect_asm(signature.args)
print(json.dumps([VECTOR_BYTES, assembly]))
"""


@dataclass(frozen=True)
class Machine:
    """`sve` is Linux's answer to how long an SVE register is: -1, an error, without SVE."""

    features: str
    sve: int
    vector_bytes: int
    fma: str
    # The type of attention, which takes long to compile. With SVE it is float64: LLVM aborts where
    # it is to store a masked vector of one double, as heads one column wide would have it.
    attention: str = ""


NEON_FMA = r"\sfml[as]\s+v\d+\.(?:4s|2d)"
SVE_FMA = r"\sfn?m(?:la|ls|ad|sb)\s+z\d+\.[sd]"
SCALAR_FMA = r"\sfn?m(?:add|sub)\s"
MACHINES = {
    "neoverse-n1": Machine("+neon", -1, 16, NEON_FMA, "float32"),
    "neoverse-v1": Machine("+neon,+sve", 32, 32, SVE_FMA),
    "a64fx": Machine("+neon,+sve", 64, 64, SVE_FMA, "float64"),
}


def compiled(cpu, machine, cache, dtype, *operations):
    """The assembly of these operations' kernels for one machine, by name."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(machine.sve), dtype, *operations],
        env=os.environ
        | {
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": machine.features,
            "NUMBA_CACHE_DIR": str(cache),
            "NUMBA_BOUNDSCHECK": "0",  # checks take registers
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    vector_bytes, assembly = json.loads(done.stdout)
    assert vector_bytes == machine.vector_bytes
    return assembly


def functions(assembly):
    """The kernel and the kernels that are linked into it, by name, without wrappers for Python."""
    return dict(re.findall(r"^(_ZN7tapegpt\S+):\n(.*?)^\.Lfunc_end", assembly, re.M | re.S))


def innermost_loops(body):
    """The stretches of code that a jump goes back over and that hold no other such stretch."""
    lines = body.splitlines()
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    loops = []
    for end, line in enumerate(lines):
        jump = re.search(r"^\s+(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$", line)
        if jump and labels[jump[1]] <= end:
            loops.append(range(labels[jump[1]], end + 1))
    return [
        "\n".join(lines[loop.start : loop.stop])
        for loop in loops
        if not any(
            inner != loop and loop.start <= inner.start and inner.stop <= loop.stop
            for inner in loops
        )
    ]


@pytest.mark.parametrize("cpu", MACHINES)
def test_inner_loops_multiply_and_add_vectors(cpu, tmp_path):
    machine = MACHINES[cpu]
    kernels = compiled(cpu, machine, tmp_path, "float32", "linear", "rmsnorm")
    assert len(kernels) == 4
    if machine.attention:
        kernels |= compiled(cpu, machine, tmp_path, machine.attention, "attention")
        assert len(kernels) == 6
    for name, assembly in kernels.items():
        bodies = functions(assembly)
        assert any(name in function for function in bodies)
        loops = [loop for body in bodies.values() for loop in innermost_loops(body)]
        sums = {loop: len(re.findall(machine.fma, loop)) for loop in loops}
        assert max(sums.values()) > 0, name
        others = {NEON_FMA, SVE_FMA, SCALAR_FMA} - {machine.fma}
        assert not [loop for loop in loops for other in others if re.search(other, loop)], name
        # A library call for every lane.
        called = re.findall(r"\sbl\s+(\S+)", "".join(bodies.values()))
        assert set(called) <= {*bodies, "memcpy", "memmove", "memset"}, name
        if name.startswith("linear"):
            # Enough sums at a time to cover the latency, all of them in registers.
            widest = max(sums, key=sums.__getitem__)
            assert sums[widest] >= 8
            assert not re.search(r"\s[vqdsz]\d+.*\[sp", widest), name


# What Linux answers for a length may carry flags in the upper bits, here PR_SVE_VL_INHERIT.
SVE_LENGTHS = [
    ("+neon,-sve", -1, 16),
    ("+neon,+sve", -1, 16),
    ("+neon,+sve", 16, 16),
    ("+neon,+sve", 32, 32),
    ("+neon,+sve", 32 | 1 << 17, 32),
    ("+neon,+sve", 48, 16),
    ("+neon,+sve", 64, 64),
    ("+neon,+sve", 256, 16),
    ("+neon,-sve", 64, 16),
]


@pytest.mark.parametrize(("features", "sve", "expected"), SVE_LENGTHS)
def test_vectors_are_as_wide_as_sve_registers_of_32_or_64_bytes(
    monkeypatch, features, sve, expected
):
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda option: sve))
    assert host_vector_bytes() == expected


def test_the_cache_tells_code_for_registers_of_different_lengths_apart(monkeypatch):
    paths = set()
    for width in (16, 32, 64):
        monkeypatch.setattr(kernel_cache, "VECTOR_BYTES", width)
        path, _ = rmsnorm_forward._cache._path_and_key((), cpu_target.target_context)
        paths.add(path)
    assert len(paths) == 3
