"""Calling an operation's kernel through a table of addresses.

Linked into the sweeps, every kernel would be compiled again for each of them, whether a program
uses it or not. Called by address it is compiled and cached once, when a program first needs it.

Kernels get pointers to the first elements of the tape's arrays. An array is seven numbers, which a
call would have to pass on one by one, and indexing it allows for negative indices. Where bounds are
to be checked they do get arrays, for which negative indices are wrong too.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.imputils import lower_getattr
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, lower_builtin, models, register_model

from tapegpt.kernels.layout import BatchRange
from tapegpt.kernels.simd.memory import element_pointer

FORWARD, BACKWARD = 0, 1


class Bounded(types.Array):
    """An array without negative indices."""

    def __init__(self, array):
        super().__init__(array.dtype, array.ndim, array.layout, name=f"Bounded({array})")


register_model(Bounded)(models.ArrayModel)


@lower_builtin(operator.getitem, Bounded, types.Integer)
def bounded_get(context, builder, sig, args):
    index = context.cast(builder, args[1], sig.args[1], types.intp)
    return builder.load(element_pointer(context, builder, sig.args[0], args[0], index))


@lower_builtin(operator.setitem, Bounded, types.Integer, types.Any)
def bounded_set(context, builder, sig, args):
    index = context.cast(builder, args[1], sig.args[1], types.intp)
    value = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
    builder.store(value, element_pointer(context, builder, sig.args[0], args[0], index))


def kernel_type(array):
    """The type as which kernels get an array."""
    return Bounded(array) if config.BOUNDSCHECK else types.CPointer(array.dtype)


@infer_getattr
class PointerAttributes(AttributeTemplate):
    """pointer.dtype and pointer.itemsize, as arrays have them."""

    key = types.CPointer

    def resolve_dtype(self, pointer):
        return types.DType(pointer.dtype)

    def resolve_itemsize(self, pointer):
        return types.intp


@lower_getattr(types.CPointer, "dtype")
def pointer_dtype(context, builder, pointer, value):
    return context.get_dummy_value()


@lower_getattr(types.CPointer, "itemsize")
def pointer_itemsize(context, builder, pointer, value):
    return ir.Constant(ir.IntType(64), pointer.dtype.bitwidth // 8)


@intrinsic
def as_pointer(typing_context, array):
    """An array as kernels get it."""

    def codegen(context, builder, sig, args):
        if isinstance(sig.return_type, Bounded):
            return args[0]
        return context.make_array(array)(context, builder, args[0]).data

    return kernel_type(array)(array), codegen


def array_at(dtype, ndim):
    """An intrinsic f(address, count): the array of so many integers there, in rows of 4 if of two
    dimensions.
    """
    array = types.Array(dtype, ndim, "C")

    @intrinsic
    def view(typing_context, address, count):
        def codegen(context, builder, sig, args):
            # Here, because it imports much that a start from the cache does not need.
            from numba.np.arrayobj import populate_array

            item = ir.Constant(ir.IntType(64), dtype.bitwidth // 8)
            shape = [args[1]]
            if ndim == 2:
                four = ir.Constant(ir.IntType(64), 4)
                shape = [builder.sdiv(args[1], four), four]
            strides = [item] if ndim == 1 else [builder.mul(item, shape[1]), item]
            made = context.make_array(array)(context, builder)
            data = builder.inttoptr(args[0], made.data.type)
            populate_array(made, data, shape, strides, item, None)
            return made._getvalue()

        return array(types.int64, types.int64), codegen

    return view


records_at, integers_at = array_at(types.uint32, 2), array_at(types.int64, 1)

INTEGERS = kernel_type(types.Array(types.int64, 1, "C"))
RECORDS = kernel_type(types.Array(types.uint32, 2, "C"))
BATCH_RANGE = types.NamedUniTuple(types.int64, 4, BatchRange)


def forward_signature(floats):
    """What a forward kernel returns and takes, for values of the type `floats`."""
    return types.none(floats, INTEGERS, INTEGERS, types.int64, types.int64, BATCH_RANGE)


def backward_signature(floats):
    """What a backward kernel returns and takes."""
    integers = (types.int64, types.int64, types.int64)
    return types.none(floats, floats, INTEGERS, INTEGERS, *integers, BATCH_RANGE)


def scalars_signature(floats):
    """What a sweep over a stretch of scalar records returns and takes."""
    return types.int64(floats, floats, RECORDS, INTEGERS, INTEGERS, types.int64, types.int64)


def matrices_signature(floats):
    """What the update of matrices returns and takes, see loops/muon.py."""
    integer, number = types.int64, types.float64
    arrays = (floats, floats, floats, floats, integer, INTEGERS)
    return number(*arrays, integer, integer, number, number, number, types.boolean)


def call_address(context, builder, signature, address, arguments):
    """Call the compiled kernel at `address`; an exception in it goes on to the caller."""
    convention = context.call_conv
    function_type = convention.get_function_type(signature.return_type, signature.args)
    kernel = builder.inttoptr(address, function_type.as_pointer())
    status, result = convention.call_function(
        builder, kernel, signature.return_type, signature.args, arguments
    )
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return result


@intrinsic
def read_record(typing_context, records, i):
    """(opcode, out, a, b) of record i, without the arithmetic for negative indices."""

    def codegen(context, builder, sig, args):
        start = builder.mul(args[1], ir.Constant(ir.IntType(64), 4))
        first = element_pointer(context, builder, records, args[0], start, 4)
        fields = [
            builder.load(builder.gep(first, [ir.Constant(ir.IntType(64), k)])) for k in range(4)
        ]
        return context.make_tuple(builder, sig.return_type, fields)

    return types.UniTuple(types.uint32, 4)(records, types.intp), codegen


@intrinsic
def call_forward(typing_context, address, values, operands, inputs, out, at, batch_range):
    """kernel(values, operands, inputs, out, at, batch_range), the kernel's address given."""
    signature = forward_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, signature, args[0], args[1:])

    return signature.return_type(types.int64, *signature.args), codegen


@intrinsic
def call_backward(
    typing_context, address, values, grads, operands, inputs, out, at, back, batch_range
):
    """kernel(values, grads, operands, inputs, out, at, back, batch_range), likewise."""
    signature = backward_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, signature, args[0], args[1:])

    return signature.return_type(types.int64, *signature.args), codegen


@intrinsic
def call_matrices(
    typing_context,
    address,
    values,
    grads,
    momenta,
    rooms,
    begin,
    matrices,
    count,
    thread,
    momentum,
    rate,
    decay,
    cautious,
):
    """kernel(values, grads, momenta, rooms, begin, matrices, count, ...), likewise."""
    signature = matrices_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, signature, args[0], args[1:])

    return signature.return_type(types.int64, *signature.args), codegen


@intrinsic
def call_scalars(typing_context, address, values, grads, records, operands, inputs, i, end):
    """kernel(values, grads, records, operands, inputs, i, end), likewise."""
    signature = scalars_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, signature, args[0], args[1:])

    return signature.return_type(types.int64, *signature.args), codegen
