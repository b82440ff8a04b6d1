"""Calling an operation's kernel through a table of addresses.

Linked into the sweeps, every kernel would be compiled again for each of them, whether a program
uses it or not. Called by address it is compiled and cached once, when a program first needs it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FORWARD, BACKWARD = 0, 1


def forward_signature(floats):
    """The argument types of every forward kernel, for the array type `floats`."""
    integers = types.Array(types.int64, 1, "C")
    window = types.UniTuple(types.int64, 4)
    return (floats, integers, integers, types.int64, types.int64, window)


def backward_signature(floats):
    """The argument types of every backward kernel, for the array type `floats`."""
    integers = types.Array(types.int64, 1, "C")
    window = types.UniTuple(types.int64, 4)
    return (floats, floats, integers, integers, types.int64, types.int64, types.int64, window)


def call_address(context, builder, address, argument_types, arguments):
    """Call the compiled kernel at `address`; an exception in it goes on to the caller."""
    function_type = context.call_conv.get_function_type(types.none, argument_types)
    kernel = builder.inttoptr(address, function_type.as_pointer())
    status, _ = context.call_conv.call_function(
        builder, kernel, types.none, argument_types, arguments
    )
    with cgutils.if_unlikely(builder, status.is_error):
        context.call_conv.return_status_propagate(builder, status)
    return context.get_dummy_value()


@intrinsic
def read_record(typing_context, records, i):
    """(opcode, out, a, b) of record i, without the arithmetic for negative indices."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        start = builder.mul(args[1], ir.Constant(ir.IntType(64), 4))
        fields = [
            builder.load(builder.gep(data, [builder.add(start, ir.Constant(ir.IntType(64), k))]))
            for k in range(4)
        ]
        return context.make_tuple(builder, sig.return_type, fields)

    return types.UniTuple(types.uint32, 4)(records, types.intp), codegen


@intrinsic
def call_forward(typing_context, address, values, operands, inputs, out, at, window):
    """kernel(values, operands, inputs, out, at, window), the kernel's address given."""
    signature = forward_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, args[0], signature, args[1:])

    return types.void(types.int64, *signature), codegen


@intrinsic
def call_backward(typing_context, address, values, grads, operands, inputs, out, at, fresh, window):
    """kernel(values, grads, operands, inputs, out, at, fresh, window), likewise."""
    signature = backward_signature(values)

    def codegen(context, builder, sig, args):
        return call_address(context, builder, args[0], signature, args[1:])

    return types.void(types.int64, *signature), codegen
