"""What machine this is, as far as figures depend on it."""

import platform
import time
from pathlib import Path

import numpy as np
from numba.core import config

from tapegpt.kernels.peak import multiply_add
from tapegpt.kernels.simd import VECTOR_BYTES

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
    target = f", compiled for {config.CPU_NAME}" if config.CPU_NAME else ""
    return f"{8 * VECTOR_BYTES} bit, {VECTOR_BYTES // 4} x float32{target}"


def peak_gflops() -> float:
    """float32 multiply-adds of one core, in GFLOP/s: the best of ten measurements."""
    array = np.full(1, 0.5, np.float32)
    multiply_add(array, 1)  # compiles
    rates: list[float] = []
    for _ in range(10):
        array[0] = 0.5
        begin = time.perf_counter()
        flops = multiply_add(array, ROUNDS)
        rates.append(flops / (time.perf_counter() - begin) / 1e9)
    return max(rates)
