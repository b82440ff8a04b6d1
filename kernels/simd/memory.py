"""Loads and stores of vectors; each takes an array, or a pointer, and an element index."""

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.simd.types import Vector, constant, lanes_below, llvm_vector, raise_if


def element_pointer(context, builder, array_type, array, index, extent=1):
    """Where array[index] lies, of an array or of a pointer to its first element.

    Of an array, if bounds are to be checked, the `extent` elements from there on must be in it,
    unless that is None.
    """
    if isinstance(array_type, types.Array):
        array = context.make_array(array_type)(context, builder, array)
        if config.BOUNDSCHECK and extent is not None:
            if isinstance(extent, int):
                extent = ir.Constant(ir.IntType(64), extent)
            # As unsigned numbers negative ones are large.
            last = builder.sub(array.nitems, extent)
            raise_if(context, builder, builder.icmp_signed("<", last, ir.Constant(last.type, 0)))
            raise_if(context, builder, builder.icmp_unsigned(">", index, last))
        array = array.data
    return builder.gep(array, [index])


def vector_pointer(context, builder, array_type, array, index, vector, extent=None):
    extent = vector.lanes if extent is None else extent
    pointer = element_pointer(context, builder, array_type, array, index, extent)
    return builder.bitcast(pointer, llvm_vector(vector).as_pointer())


def load_vector(context, builder, array_type, array, index, vector):
    pointer = vector_pointer(context, builder, array_type, array, index, vector)
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def store_vector(context, builder, array_type, array, index, vector, value):
    pointer = vector_pointer(context, builder, array_type, array, index, vector)
    builder.store(value, pointer, align=array_type.dtype.bitwidth // 8)


def store_masked(context, builder, array_type, array, index, value, count):
    """Store the first `count` elements of an LLVM vector in one instruction."""
    vector = Vector(array_type.dtype, value.type.count)
    pointer = vector_pointer(context, builder, array_type, array, index, vector, count)
    alignment = ir.Constant(ir.IntType(32), array_type.dtype.bitwidth // 8)
    mask = lanes_below(builder, vector, range(vector.lanes), count)
    arguments = [value, pointer, alignment, mask]
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    suffix = f"v{vector.lanes}f{vector.dtype.bitwidth}.p0"
    function = cgutils.get_or_insert_function(
        builder.module, function_type, f"llvm.masked.store.{suffix}"
    )
    builder.call(function, arguments)


def load_masked(context, builder, array_type, array, index, vector, count):
    """Load the first `count` elements of a vector, none or all, in one instruction."""
    none, every = (ir.Constant(ir.IntType(64), n) for n in (0, vector.lanes))
    count = builder.select(builder.icmp_signed("<", count, every), count, every)
    count = builder.select(builder.icmp_signed(">", count, none), count, none)
    if config.BOUNDSCHECK:  # where nothing is read the index may be any
        index = builder.select(builder.icmp_signed(">", count, none), index, none)
    pointer = vector_pointer(context, builder, array_type, array, index, vector, count)
    alignment = ir.Constant(ir.IntType(32), array_type.dtype.bitwidth // 8)
    mask = lanes_below(builder, vector, range(vector.lanes), count)
    arguments = [pointer, alignment, mask, constant(vector, 0.0)]
    function_type = ir.FunctionType(llvm_vector(vector), [argument.type for argument in arguments])
    suffix = f"v{vector.lanes}f{vector.dtype.bitwidth}.p0"
    function = cgutils.get_or_insert_function(
        builder.module, function_type, f"llvm.masked.load.{suffix}"
    )
    return builder.call(function, arguments)


def store_first(context, builder, array_type, array, index, value, count):
    """Store the first `count` elements of an LLVM vector, or all: halves, quarters, ... of them."""
    integer = ir.IntType(64)
    size = value.type.count
    undefined = ir.Constant(value.type, ir.Undefined)

    def store_part(part):
        pointer = element_pointer(context, builder, array_type, array, index, part.type.count)
        pointer = builder.bitcast(pointer, part.type.as_pointer())
        builder.store(part, pointer, align=array_type.dtype.bitwidth // 8)

    whole = builder.icmp_signed(">=", count, ir.Constant(integer, size))
    with builder.if_else(whole) as (all_elements, some_elements):
        with all_elements:
            store_part(value)
        with some_elements:
            part = size // 2
            # Such machines have masks; of one element nothing is left, and LLVM has none for it.
            if VECTOR_BYTES == 64 and size > 1:
                store_masked(context, builder, array_type, array, index, value, count)
                part = 0
            while part > 0:
                has = builder.icmp_signed(
                    "!=", builder.and_(count, ir.Constant(integer, part)), ir.Constant(integer, 0)
                )
                with builder.if_then(has):
                    mask = ir.Constant(ir.VectorType(ir.IntType(32), part), list(range(part)))
                    store_part(builder.shuffle_vector(value, undefined, mask))
                left = [min(i + part, size - 1) for i in range(size)]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), size), left)
                rest = builder.shuffle_vector(value, undefined, mask)
                value = builder.select(has, rest, value)
                index = builder.select(has, builder.add(index, ir.Constant(integer, part)), index)
                part //= 2


@intrinsic
def load(typing_context, array, index):
    """The vector array[index : index + lanes]."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return load_vector(context, builder, sig.args[0], args[0], args[1], vector)

    return vector(array, types.intp), codegen


@intrinsic
def load_first(typing_context, array, index, count):
    """The vector array[index : index + count], zeros in the other lanes; count may be anything."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        array_value, index, count = args
        return load_masked(context, builder, array, array_value, index, vector, count)

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store(typing_context, array, index, value):
    """array[index : index + lanes] = value"""

    def codegen(context, builder, sig, args):
        store_vector(context, builder, sig.args[0], args[0], args[1], value, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def prefetch(typing_context, array, index):
    """Ask for what lies at array[index], if anything does, to be in the cache when it is wanted."""

    def codegen(context, builder, sig, args):
        pointer = element_pointer(context, builder, sig.args[0], args[0], args[1], None)
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type] + [integer] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        reading, near, data = (ir.Constant(integer, i) for i in (0, 3, 1))
        builder.call(function, [pointer, reading, near, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def store_part(typing_context, array, index, value, count):
    """array[index : index + count] = the first lanes of `value`; count may exceed the lanes."""

    def codegen(context, builder, sig, args):
        store_first(context, builder, sig.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), codegen


def listed_pointer(context, builder, sig, args, lane):
    """Where array[integers[at + lane]] lies, for the first arguments array, integers, at."""
    array, integers, at = args[:3]
    at = builder.add(at, ir.Constant(ir.IntType(64), lane))
    index = builder.load(element_pointer(context, builder, sig.args[1], integers, at))
    return element_pointer(context, builder, sig.args[0], array, index)


@intrinsic(prefer_literal=True)
def load_listed(typing_context, array, integers, at, lanes):
    """array[integers[at]], array[integers[at + 1]], ..., in a vector of `lanes` lanes."""
    vector = Vector(array.dtype, lanes.literal_value)

    def codegen(context, builder, sig, args):
        result = ir.Constant(llvm_vector(vector), ir.Undefined)
        for lane in range(vector.lanes):
            pointer = listed_pointer(context, builder, sig, args, lane)
            number = ir.Constant(ir.IntType(32), lane)
            result = builder.insert_element(result, builder.load(pointer), number)
        return result

    return vector(array, integers, types.intp, lanes), codegen


@intrinsic
def add_listed(typing_context, array, integers, at, value):
    """Add the lanes of `value` to array[integers[at]], array[integers[at + 1]], ..., in turn."""

    def codegen(context, builder, sig, args):
        for lane in range(value.lanes):
            pointer = listed_pointer(context, builder, sig, args, lane)
            term = builder.extract_element(args[3], ir.Constant(ir.IntType(32), lane))
            builder.store(builder.fadd(builder.load(pointer), term), pointer)
        return context.get_dummy_value()

    return types.void(array, integers, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def load_lanes(typing_context, array, index, lanes):
    """The vector array[index : index + lanes], of any number of lanes."""
    vector = Vector(array.dtype, lanes.literal_value)

    def codegen(context, builder, sig, args):
        return load_vector(context, builder, sig.args[0], args[0], args[1], vector)

    return vector(array, types.intp, lanes), codegen
