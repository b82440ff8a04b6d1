"""The op registry: every operation has an opcode, and kernels that a program can load.

Opcodes mean nothing but identity. Those of the switch of scalar operations come first, then those
of the other operations in kernels/ops/, file by file. Files are found by looking: a new one needs
no entry anywhere.
"""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import walk_packages

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from tapegpt.errors import TapegptError
from tapegpt.kernels import ops
from tapegpt.kernels.compile.indirect_call import (
    backward_signature,
    forward_signature,
    kernel_type,
    scalars_signature,
)
from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.op import ArrayOp, ListOp
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.ops.scalar.switch import (
    COMMON,
    SCALAR_OPS,
    common_backward,
    common_forward,
    scalars_backward,
    scalars_forward,
)

Operation = Formula | ListOp | ArrayOp


def declared() -> list[ListOp | ArrayOp]:
    """The operations in kernels/ops/ whose kernels are called by address, in order of files."""
    found: list[ListOp | ArrayOp] = []
    for module in sorted(info.name for info in walk_packages(ops.__path__, f"{ops.__name__}.")):
        for value in vars(import_module(module)).values():
            for operation in value.values() if isinstance(value, dict) else (value,):
                if isinstance(operation, (ListOp, ArrayOp)) and operation not in (
                    *SCALAR_OPS,
                    *found,
                ):
                    found.append(operation)
    return found


# Every opcode's operation. From FIRST_CALLED on kernels are called by address, one by one.
OPERATIONS: list[Operation] = list(SCALAR_OPS)
FIRST_CALLED = len(OPERATIONS)
KERNELS: list[tuple[object, object]] = [(None, None)] * FIRST_CALLED
CODES: dict[Operation, int] = {operation: code for code, operation in enumerate(OPERATIONS)}


def register(operation: ListOp | ArrayOp) -> None:
    """Give an operation its opcodes, one for each of its variants.

    Raises TapegptError where no more fit in a record.
    """
    variants = operation.variants if isinstance(operation, ArrayOp) else ()
    if len(OPERATIONS) + len(variants) > OPCODE:
        raise TapegptError(f"a process has room for {OPCODE + 1} operations: start another")
    CODES[operation] = len(OPERATIONS)
    for pair in ((operation.forward, operation.backward), *variants):
        OPERATIONS.append(operation)
        KERNELS.append(pair)


# The row of the table of addresses for stretches of scalar records; and that of a switch for the
# common operations alone, which serves there until a program has others.
SCALARS, COMMON_SCALARS = 0, 1
KERNELS[SCALARS] = (scalars_forward, scalars_backward)
KERNELS[COMMON_SCALARS] = (common_forward, common_backward)
for operation in declared():
    register(operation)


def opcode(operation: ListOp | ArrayOp, variant: int = 0) -> int:
    """The opcode of an operation."""
    return CODES[operation] + variant


def opcodes(operation: ArrayOp) -> range:
    """The opcodes of all variants of an operation."""
    first = opcode(operation)
    return range(first, first + 1 + len(operation.variants))


def array_op(code: int) -> ArrayOp | None:
    """The operation of an opcode, if its records have a list for the reverse sweep."""
    operation = OPERATIONS[code]
    return operation if isinstance(operation, ArrayOp) and operation.backward else None


def address(kernel, signature):
    """Where the compiled code of a kernel for this signature lies."""
    kernel.compile(signature.args)
    compiled = kernel.overloads[signature.args]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def kernels_of(records: NDArray[np.uint32]) -> list[int]:
    """The kernels that a program of these records needs, as rows of the table of addresses."""
    codes = np.flatnonzero(np.bincount(records[:, 0] & OPCODE)).tolist()
    called = [code for code in codes if code >= FIRST_CALLED]
    if len(called) == len(codes):
        return called
    is_common = COMMON.issuperset(codes[: len(codes) - len(called)])
    return [*called, COMMON_SCALARS if is_common else SCALARS]


def new_table() -> NDArray[np.int64]:
    """Room for the addresses of all kernels: (opcodes, 2), forward and backward, 0 at first."""
    return np.zeros((len(OPERATIONS), 2), np.int64)


def load_kernels(
    table: NDArray[np.int64], dtype: np.dtype[np.floating], kernels: Iterable[int], direction: int
) -> None:
    """Fill in table[kernel, direction] for these kernels, where it is still 0.

    table: int64 (opcodes, 2), addresses. Its row SCALARS has the switch in use: that of all
    operations replaces that of the common ones.
    """
    floats = kernel_type(types.Array(from_dtype(dtype), 1, "C"))
    called = (forward_signature, backward_signature)[direction](floats)
    for row in kernels:
        kernel = KERNELS[row][direction]
        if kernel is None:
            continue
        if row in (SCALARS, COMMON_SCALARS):
            used = table[SCALARS, direction]
            if used == 0 or (row == SCALARS and used == table[COMMON_SCALARS, direction]):
                table[[SCALARS, row], direction] = address(kernel, scalars_signature(floats))
        elif table[row, direction] == 0:
            table[row, direction] = address(kernel, called)
