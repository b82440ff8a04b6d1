"""The opcode table: which kernels run an operation that is called by address."""

from collections.abc import Iterable

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from tapegpt.kernels import op
from tapegpt.kernels.compile.indirect_call import (
    backward_signature,
    forward_signature,
    handed,
    scalars_signature,
)
from tapegpt.kernels.interpreter import scalars_backward, scalars_forward
from tapegpt.kernels.ops.attention import make_attention
from tapegpt.kernels.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from tapegpt.kernels.ops.dropout import dropout_backward, dropout_forward
from tapegpt.kernels.ops.elementwise import (
    array_add_backward,
    array_add_forward,
    array_mean_backward,
    array_mean_forward,
    array_relu_backward,
    array_relu_forward,
    array_scale_backward,
    array_scale_forward,
)
from tapegpt.kernels.ops.embedding import embed_backward, embed_forward
from tapegpt.kernels.ops.linear import make_linear
from tapegpt.kernels.ops.product.amx import large_matmul
from tapegpt.kernels.ops.product.matmul import matmul
from tapegpt.kernels.ops.recurrence import previous_backward, previous_forward
from tapegpt.kernels.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward
from tapegpt.kernels.ops.scalar.dot import (
    dot_columns_backward,
    dot_columns_forward,
    dot_rows_backward,
    dot_rows_forward,
)
from tapegpt.kernels.ops.scalar.reduce import max_backward, max_forward
from tapegpt.kernels.ops.scalar.strided import run_backward, run_forward
from tapegpt.kernels.ops.softmax import array_softmax_backward, array_softmax_forward
from tapegpt.kernels.ops.topk import gathered_linear_backward, gathered_linear_forward, topk_forward

KERNELS = {
    op.SCALARS: (scalars_forward, scalars_backward),
    op.MAX: (max_forward, max_backward),
    op.RUN: (run_forward, run_backward),
    op.DOT_ROWS: (dot_rows_forward, dot_rows_backward),
    op.DOT_COLUMNS: (dot_columns_forward, dot_columns_backward),
    op.EMBED: (embed_forward, embed_backward),
    op.LINEAR: make_linear(matmul),
    op.UNIT_LINEAR: make_linear(large_matmul),
    op.RMSNORM: (rmsnorm_forward, rmsnorm_backward),
    **{op.ATTENTION + i: make_attention(2**i) for i in range(5)},
    op.CROSS_ENTROPY: (cross_entropy_forward, cross_entropy_backward),
    op.ARRAY_SOFTMAX: (array_softmax_forward, array_softmax_backward),
    op.ARRAY_RELU: (array_relu_forward, array_relu_backward),
    op.ARRAY_ADD: (array_add_forward, array_add_backward),
    op.ARRAY_SCALE: (array_scale_forward, array_scale_backward),
    op.ARRAY_MEAN: (array_mean_forward, array_mean_backward),
    op.TOPK: (topk_forward, None),
    op.GATHERED_LINEAR: (gathered_linear_forward, gathered_linear_backward),
    op.DROPOUT: (dropout_forward, dropout_backward),
    op.PREVIOUS: (previous_forward, previous_backward),
}


def address(kernel, signature):
    """Where the compiled code of a kernel for this signature lies."""
    kernel.compile(signature.args)
    compiled = kernel.overloads[signature.args]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def kernels_of(records: NDArray[np.uint32]) -> list[int]:
    """The kernels that a program of these records needs, as rows of the table of addresses."""
    opcodes = np.flatnonzero(np.bincount(records[:, 0]))
    called = opcodes[opcodes >= op.FIRST_CALLED].tolist()
    return called if len(called) == len(opcodes) else [*called, op.SCALARS]


def load_kernels(
    table: NDArray[np.int64],
    dtype: np.dtype[np.floating],
    kernels: Iterable[int],
    direction: int,
) -> None:
    """Fill in table[kernel, direction] for these kernels, where it is still 0.

    table: int64 (op.COUNT, 2), addresses.
    """
    floats = handed(types.Array(from_dtype(dtype), 1, "C"))
    called = (forward_signature, backward_signature)[direction](floats)
    for row in kernels:
        kernel = KERNELS.get(row, (None, None))[direction]
        if kernel is not None and table[row, direction] == 0:
            signature = scalars_signature(floats) if row == op.SCALARS else called
            table[row, direction] = address(kernel, signature)
