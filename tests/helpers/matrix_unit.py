"""A matrix unit without one: AMX's instructions as Intel's manual defines them.

Kernels call it in place of the instructions, so that their arithmetic is tested where there is no
such unit. Vectors must have 64 bytes, as where there is one.
"""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba import njit
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tapegpt.kernels import registry
from tapegpt.kernels.compile.jit import FLAGS
from tapegpt.kernels.ops import linear
from tapegpt.kernels.ops.product import amx
from tapegpt.tape import arrays

ROWS, ROW_BYTES, REGISTERS = 16, 64, 8  # the most that there are


@njit
def normal(x):
    """x, or 0 if it is subnormal."""
    return x if abs(x) >= np.float32(2.0**-126) or math.isnan(x) else np.float32(0)


@njit
def add_products(a, b, out):
    """Add sums of products to out: of the first of all pairs, and of the second, then of both.

    a: (rows, pairs, 2), b: (pairs, columns, 2), out: (rows, columns).
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            first = second = np.float32(0)
            for k in range(b.shape[0]):
                first = normal(first + normal(a[i, k, 0]) * normal(b[k, j, 0]))
                second = normal(second + normal(a[i, k, 1]) * normal(b[k, j, 1]))
            out[i, j] = normal(normal(out[i, j]) + normal(first + second))


def pairs(register: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The bfloat16 numbers of a register: (rows, pairs in a row, 2)."""
    halves = np.stack([register << np.uint32(16), register & np.uint32(0xFFFF0000)], axis=-1)
    return halves.view(np.float32)


class MatrixUnit:
    """The registers, and the instructions by LLVM's names for them."""

    def __init__(self) -> None:
        self.registers: list[NDArray[np.uint32]] | None = None  # unusable before ldtilecfg
        self._entries: dict[str, Any] = {}

    def call(self, builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
        """Generate a call of an instruction, as amx.call_amx does."""
        if name not in self._entries:
            types = [ctypes.c_int64] * len(arguments)
            self._entries[name] = ctypes.CFUNCTYPE(None, *types)(getattr(self, f"_{name}"))
        entry = ctypes.cast(self._entries[name], ctypes.c_void_p).value
        integer = ir.IntType(64)
        values = [
            integer(argument)
            if isinstance(argument, int)
            else builder.ptrtoint(argument, integer)
            if argument.type.is_pointer
            else argument
            for argument in arguments
        ]
        kind = ir.FunctionType(ir.VoidType(), [integer] * len(values))
        builder.call(builder.inttoptr(integer(entry), kind.as_pointer()), values)

    def _ldtilecfg(self, pointer: int) -> None:
        settings = ctypes.string_at(pointer, 64)
        palette, start_row, reserved = settings[0], settings[1], settings[2:16]
        row_bytes, rows = np.frombuffer(settings[16:48], "<u2"), settings[48:64]
        assert (palette, start_row, any(reserved)) == (1, 0, False)
        assert not row_bytes[REGISTERS:].any()
        assert not any(rows[REGISTERS:])
        sizes = list(zip(rows, row_bytes.tolist(), strict=True))[:REGISTERS]
        assert all(0 < r <= ROWS and 0 < b <= ROW_BYTES and b % 4 == 0 for r, b in sizes)
        self.registers = [np.zeros((r, b // 4), np.uint32) for r, b in sizes]

    def _tilerelease(self) -> None:
        self.registers = None

    def _tilezero(self, register: int) -> None:
        self._of(register)[:] = 0

    def _tileloadd64(self, register: int, pointer: int, stride: int) -> None:
        self._of(register)[:] = self._rows(register, pointer, stride)

    def _tilestored64(self, register: int, pointer: int, stride: int) -> None:
        self._rows(register, pointer, stride)[:] = self._of(register)

    def _rows(self, register: int, pointer: int, stride: int) -> NDArray[np.uint32]:
        """The memory that a register is loaded from or stored to."""
        rows, columns = self._of(register).shape
        size = ((rows - 1) * stride + 4 * columns) // 4
        memory = np.frombuffer((ctypes.c_uint32 * size).from_address(pointer), np.uint32)
        return as_strided(memory, (rows, columns), (stride, 4))

    def _tdpbf16ps(self, total: int, left: int, right: int) -> None:
        a, b, out = pairs(self._of(left)), pairs(self._of(right)), self._of(total)
        assert a.shape[:2] == (len(out), len(b))
        assert b.shape[1] == out.shape[1]
        add_products(a, b, out.view(np.float32))

    def _of(self, register: int) -> NDArray[np.uint32]:
        assert self.registers is not None, "no settings were loaded"
        return self.registers[register]


UNIT = MatrixUnit()


def uncached(kernel: Any) -> Any:
    """A kernel of its own: with addresses of this process in it, it must not be kept."""
    return njit(**FLAGS)(kernel.py_func)


AMX_MATMUL, LARGE_MATMUL = uncached(amx.amx_matmul), uncached(amx.large_matmul)
KERNELS = list(registry.KERNELS)
KERNELS[registry.opcode(linear.LINEAR, 1)] = tuple(map(uncached, linear.make_linear(LARGE_MATMUL)))


@contextmanager
def emulated() -> Iterator[None]:
    """In this context tapes record for a matrix unit, and kernels are compiled for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "MATRIX_UNIT", True)
        patch.setattr(amx, "call_amx", UNIT.call)
        patch.setattr(amx, "amx_matmul", AMX_MATMUL)
        patch.setattr(registry, "KERNELS", KERNELS)
        yield


def emulated_amx_matmul(*operands: Any) -> None:
    with emulated():
        AMX_MATMUL(*operands)


def emulated_large_matmul(*operands: Any) -> None:
    with emulated():
        LARGE_MATMUL(*operands)
