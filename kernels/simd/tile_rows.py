"""Where the rows of a tile lie in memory: offsets from one index, or pointers that advance."""

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from tapegpt.kernels.simd.memory import element_pointer
from tapegpt.kernels.simd.types import SPACING, RowOffsets, RowPointers, opaque, raise_if


@intrinsic(prefer_literal=True)
def row_offsets(typing_context, first, limit, stride, rows):
    """Offsets of rows first, first + 1, ..., `rows` of them, `stride` elements apart.

    Rows from `limit` on repeat row limit - 1, so a tile at the lower edge of an array computes
    some rows twice instead of reading beyond it; `tile_store` leaves those out.
    """
    offsets = RowOffsets(rows.literal_value)

    def codegen(context, builder, sig, args):
        first, limit, stride, _ = args
        last = builder.sub(limit, ir.Constant(ir.IntType(64), 1))
        result = ir.Constant(ir.ArrayType(ir.IntType(64), offsets.rows), ir.Undefined)
        for r in range(offsets.rows):
            row = builder.add(first, ir.Constant(ir.IntType(64), r))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            result = builder.insert_value(result, builder.mul(row, stride), r)
        return result

    return offsets(types.intp, types.intp, types.intp, rows), codegen


@intrinsic(prefer_literal=True)
def listed_offsets(typing_context, integers, index, first, limit, every, rows):
    """The offsets integers[index + i] for i = first, first + every, ..., `rows` of them.

    i beyond limit - every repeats that one.
    """
    offsets = RowOffsets(rows.literal_value)

    def codegen(context, builder, sig, args):
        array, index, first, limit, every, _ = args
        last = builder.sub(limit, every)
        result = ir.Constant(ir.ArrayType(ir.IntType(64), offsets.rows), ir.Undefined)
        for r in range(offsets.rows):
            i = builder.add(first, builder.mul(every, ir.Constant(ir.IntType(64), r)))
            i = builder.select(builder.icmp_signed("<", i, last), i, last)
            at = element_pointer(context, builder, sig.args[0], array, builder.add(index, i))
            result = builder.insert_value(result, builder.load(at), r)
        return result

    return offsets(integers, *[types.intp] * 4, rows), codegen


def array_limits(context, builder, array_type, array):
    """The addresses where an array begins and ends, where bounds are to be checked."""
    if not config.BOUNDSCHECK:
        return None
    array = context.make_array(array_type)(context, builder, array)
    address = ir.IntType(64)
    end = builder.gep(array.data, [array.nitems])
    limits = [builder.ptrtoint(pointer, address) for pointer in (array.data, end)]
    return cgutils.pack_array(builder, limits)


def check_limits(context, builder, pointers, pointer):
    """Raise IndexError where an element of RowPointers is to be read beyond their array."""
    if config.BOUNDSCHECK:
        place = builder.ptrtoint(pointer, ir.IntType(64))
        begin, end = cgutils.unpack_tuple(builder, pointers.limits, 2)
        outside = builder.or_(
            builder.icmp_unsigned("<", place, begin), builder.icmp_unsigned(">=", place, end)
        )
        raise_if(context, builder, outside)


def make_pointers(context, builder, pointers, starts, stride, limits):
    # Left to itself the optimizer keeps an address for every row, more than there are registers.
    value = cgutils.create_struct_proxy(pointers)(context, builder)
    starts = [opaque(builder, start) for start in starts]
    value.starts = cgutils.pack_array(builder, starts)
    value.stride = stride
    if limits is not None:
        value.limits = limits
    return value._getvalue()


def row_pointer(builder, pointers, value, r):
    """Where row r begins, of the struct of RowPointers."""
    start = builder.extract_value(value.starts, r // pointers.spacing)
    distance = builder.mul(value.stride, ir.Constant(ir.IntType(64), r % pointers.spacing))
    return builder.gep(start, [distance])


@intrinsic(prefer_literal=True)
def row_pointers(typing_context, array, index, stride, rows):
    """Pointers to `rows` rows of an array, the first at `index`, `stride` elements apart."""
    pointers = RowPointers(array.dtype, rows.literal_value, SPACING)

    def codegen(context, builder, sig, args):
        # Where there is nothing to read the rows may begin anywhere.
        first = element_pointer(context, builder, sig.args[0], args[0], args[1], None)
        limits = array_limits(context, builder, sig.args[0], args[0])
        apart = builder.mul(args[2], ir.Constant(ir.IntType(64), SPACING))
        starts = [first]
        while len(starts) < pointers.count:
            starts.append(builder.gep(starts[-1], [apart]))
        return make_pointers(context, builder, pointers, starts, args[2], limits)

    return pointers(array, types.intp, types.intp, rows), codegen


@intrinsic
def tail_pointers(typing_context, array, index, offsets):
    """Pointers to the rows of an array at index + offsets."""
    pointers = RowPointers(array.dtype, offsets.rows, 1)

    def codegen(context, builder, sig, args):
        # Where there is nothing to read the rows may begin anywhere.
        first = element_pointer(context, builder, sig.args[0], args[0], args[1], None)
        limits = array_limits(context, builder, sig.args[0], args[0])
        starts = [
            builder.gep(first, [builder.extract_value(args[2], r)]) for r in range(offsets.rows)
        ]
        stride = ir.Constant(ir.IntType(64), 0)
        return make_pointers(context, builder, pointers, starts, stride, limits)

    return pointers(array, types.intp, offsets), codegen


@intrinsic
def advance(typing_context, pointers, step):
    """The same rows, `step` elements further on."""

    def codegen(context, builder, sig, args):
        value = cgutils.create_struct_proxy(pointers)(context, builder, args[0])
        starts = [
            builder.gep(start, [args[1]])
            for start in cgutils.unpack_tuple(builder, value.starts, pointers.count)
        ]
        limits = value.limits if config.BOUNDSCHECK else None
        return make_pointers(context, builder, pointers, starts, value.stride, limits)

    return pointers(pointers, types.intp), codegen
