"""The machine that this runs on: its processor, its speed, its memory.

What is not about kernels is there before Numba is.
"""

import math
import os
import platform
import time
from pathlib import Path

import numpy as np

SHORTEST = 1e-9  # seconds: a clock may stand still
ROUNDS = 1_000_000  # multiply-adds on every register: some 10 ms


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def vector_name() -> str:
    """The vectors that kernels are compiled for."""
    from numba.core import config

    from tapegpt.kernels.compile.cpu import MATRIX_UNIT, VECTOR_BYTES

    unit = ", AMX for products" if MATRIX_UNIT else ""
    target = f", compiled for {config.CPU_NAME}" if config.CPU_NAME else ""
    return f"{8 * VECTOR_BYTES} bit, {VECTOR_BYTES // 4} x float32{unit}{target}"


def lanes() -> int:
    """float32 numbers in one vector."""
    from tapegpt.kernels.compile.cpu import VECTOR_BYTES

    return VECTOR_BYTES // 4


def vector_features() -> list[str]:
    """The vector instructions that kernels may use, as LLVM names them."""
    from numba.core import config
    from numba.core.codegen import get_host_cpu_features

    features = config.CPU_FEATURES or get_host_cpu_features()
    names = (name[1:] for name in features.split(",") if name.startswith("+"))
    families = ("sse4", "avx", "fma", "amx", "neon", "sve")
    return sorted(name for name in names if name.startswith(families))


def llvm_version() -> str:
    """The LLVM that Numba compiles kernels with."""
    from llvmlite.binding import llvm_version_info

    return ".".join(map(str, llvm_version_info))


def load_peak() -> None:
    """Load, or compile, what `peak_gflops` calls."""
    from tapegpt.kernels.peak import multiply_add

    multiply_add(np.full(1, 0.5, np.float32), 1)


def peak_gflops() -> float:
    """float32 multiply-adds of one core, in GFLOP/s: the best of ten measurements."""
    from tapegpt.kernels.peak import multiply_add

    load_peak()
    array = np.full(1, 0.5, np.float32)
    rates: list[float] = []
    for _ in range(10):
        array[0] = 0.5
        begin = time.perf_counter()
        flops = multiply_add(array, ROUNDS)
        seconds = max(time.perf_counter() - begin, SHORTEST)
        rates.append(flops / seconds / 1e9)
    return max(rates)


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bytes_available() -> float:
    """This machine's memory; infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
