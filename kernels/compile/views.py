"""Arrays on the tape as two-dimensional arrays of jitted code, for kernels that users write."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.simd.memory import element_pointer


@intrinsic
def matrix(typing_context, array, at, rows, width, row):
    """The rows x width elements from array[at] on, rows `row` elements apart; none is copied."""
    made = types.Array(array.dtype, 2, "A")

    def codegen(context, builder, sig, args):
        values, at, rows, width, row = args
        size = array.dtype.bitwidth // 8
        item = ir.Constant(ir.IntType(64), size)
        # The step from column to column is a constant, so that LLVM can make vectors of a loop.
        strides = [builder.mul(row, item), item]
        view = context.make_array(made)(context, builder)
        context.populate_array(
            view,
            data=element_pointer(context, builder, array, values, at, None),
            shape=cgutils.pack_array(builder, [rows, width]),
            strides=cgutils.pack_array(builder, strides),
            itemsize=item,
            meminfo=None,
        )
        return view._getvalue()

    return made(array, *[types.intp] * 4), codegen


@inlined
def rows_of(array, at, rows, width, batch_range):
    """An array node, all its rows or those of the batch range."""
    first, last = row_range(rows, batch_range)
    row = row_stride(array, width)
    return matrix(array, at + first * row, last - first, width, row)
