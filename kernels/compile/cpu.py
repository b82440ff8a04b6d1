"""How wide vector registers are, and how many, on the machine that the kernels are compiled for.

The CPU's features tell it, except for SVE on AArch64, whose registers are as long as the machine
has them: 16 bytes on Neoverse N2 and V2, 32 on V1, 64 on A64FX. Also whether there is a matrix
unit, whose registers Linux lends to a process that asks for them.
"""

import ctypes
import sys

from llvmlite import binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features

# From Linux's <sys/prctl.h>.
PR_SVE_GET_VL, PR_SVE_VL_LEN_MASK = 51, 0xFFFF

# From its <asm/prctl.h>, <asm/unistd_64.h> and documentation of x86's xstate.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def sve_bytes() -> int:
    """Bytes in an SVE register, as Linux has set them for this process; 0 without SVE."""
    if sys.platform != "linux":
        return 0
    answer: int = ctypes.CDLL(None).prctl(PR_SVE_GET_VL)
    return answer & PR_SVE_VL_LEN_MASK if answer > 0 else 0


def enabled_features() -> set[str]:
    """Features of the machine that the kernels are compiled for, as LLVM names them."""
    features = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()
    return {name[1:] for name in features.split(",") if name.startswith("+")}


def host_vector_bytes() -> int:
    """Bytes in one vector register of the machine that the kernels are compiled for."""
    enabled = enabled_features()
    if "avx512f" in enabled:
        return 64
    if "avx" in enabled:
        return 32
    # Every CPU with SVE has NEON, whose 16 bytes do for any other length.
    if "sve" in enabled and sve_bytes() in (32, 64):
        return sve_bytes()
    return 16


def has_matrix_unit() -> bool:
    """Whether kernels may use AMX: the machine has it, and Linux lets this process use it."""
    if sys.platform != "linux" or not {"avx512f", "amx-tile", "amx-bf16"} <= enabled_features():
        return False
    request = ctypes.CDLL(None).syscall
    answer: int = request(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return answer == 0


VECTOR_BYTES = host_vector_bytes()
MATRIX_UNIT = has_matrix_unit()

# Vector registers: AVX-512 and AArch64 have twice as many as older x86.
AARCH64 = binding.get_process_triple().startswith(("aarch64", "arm64"))
VECTOR_REGISTERS = 32 if VECTOR_BYTES == 64 or AARCH64 else 16

if VECTOR_BYTES == sve_bytes() > 16:
    # LLVM puts vectors of a fixed length into SVE registers only if it is told theirs.
    for bound in ("min", "max"):
        binding.set_option("tapegpt", f"-aarch64-sve-vector-bits-{bound}={8 * VECTOR_BYTES}")
