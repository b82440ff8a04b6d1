"""Explicit SIMD: LLVM vectors, and tiles of them, as values of ordinary jitted code.

A `Vector` lives in one register of the host, a `Tile` of rows x columns vectors in several: the
accumulators of a matrix product. Neither crosses into Python. Loads and stores take an array and
an element index; `+ - * /` work lane by lane and take a scalar on either side.

The lane count is what one vector register of the host holds: 64 bytes with AVX-512, 32 with AVX,
16 with SSE and NEON, 32 or 64 with SVE registers that long. Arrays on the tape pad their rows to
whole vectors (`padded`), so kernels have no tails.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from tapegpt.kernels.jit import inlined
from tapegpt.kernels.vector_width import VECTOR_BYTES, VECTOR_REGISTERS

# Rows and columns of the tiles of accumulators: enough independent chains to cover the latency of
# an FMA, few enough that they and their operands fit the register file. One that spills is three
# times slower.
WIDE_TILE, PAIR_TILE, SINGLE_TILE = (6, 2), (6, 2), (12, 1)
if VECTOR_REGISTERS == 32:
    WIDE_TILE, PAIR_TILE, SINGLE_TILE = (6, 4), (12, 2), (16, 1)

# The same where both operands are vectors, see lanes.py.
LANE_TILE = (4, 4) if VECTOR_REGISTERS == 32 else (2, 4)

# Rows of the tiles for the remainder.
TAIL_ROWS = 4

# Rows of the tiles beside which a whole square of B stays in registers, see square_panel.
SQUARE_ROWS = 8 if VECTOR_REGISTERS == 32 else 6

# A tile keeps the address of every third row of its left operand. With a stride in a register the
# two rows after it are one address mode of x86 away, so twelve rows take five registers.
SPACING = 3


# Vectors in a row from which on it is better that their number is odd: 512 bytes.
LONG_ROW = 512 // VECTOR_BYTES


class Vector(types.Type):
    """`lanes` elements of a float type in one register: as many as it holds, if not told."""

    def __init__(self, dtype: types.Float, lanes: int | None = None):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth if lanes is None else lanes
        super().__init__(name=f"Vector({self.lanes} x {dtype})")


class Tile(types.Type):
    """rows x columns vectors, row after row."""

    def __init__(self, dtype: types.Float, rows: int, columns: int):
        self.vector = Vector(dtype)
        self.rows = rows
        self.columns = columns
        super().__init__(name=f"Tile({rows} x {columns} {self.vector})")


class RowPointers(types.Type):
    """Where every `spacing`-th of `rows` rows begins, and the elements from row to row.

    Also where the array begins and ends, if bounds are to be checked.
    """

    def __init__(self, dtype: types.Float, rows: int, spacing: int):
        self.dtype = dtype
        self.rows = rows
        self.spacing = spacing
        self.count = -(-rows // spacing)
        super().__init__(name=f"RowPointers({rows} x {dtype}, every {spacing})")


class RowOffsets(types.Type):
    """The element offsets of `rows` rows of an array."""

    def __init__(self, rows: int):
        self.rows = rows
        super().__init__(name=f"RowOffsets({rows})")


def llvm_float(dtype):
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def llvm_vector(vector):
    return ir.VectorType(llvm_float(vector.dtype), vector.lanes)


def llvm_integers(vector):
    return ir.VectorType(ir.IntType(vector.dtype.bitwidth), vector.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, llvm_vector(vector))


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        count = tile.rows * tile.columns
        super().__init__(manager, tile, ir.ArrayType(llvm_vector(tile.vector), count))


@register_model(RowOffsets)
class RowOffsetsModel(models.PrimitiveModel):
    def __init__(self, manager, offsets):
        super().__init__(manager, offsets, ir.ArrayType(ir.IntType(64), offsets.rows))


@register_model(RowPointers)
class RowPointersModel(models.StructModel):
    def __init__(self, manager, pointers):
        starts = types.UniTuple(types.CPointer(pointers.dtype), pointers.count)
        members = [("starts", starts), ("stride", types.intp)]
        if config.BOUNDSCHECK:
            members.append(("limits", types.UniTuple(types.intp, 2)))
        super().__init__(manager, pointers, members)


def opaque(builder, value):
    """The same pointer or integer, of which the optimizer knows nothing."""
    function_type = ir.FunctionType(value.type, [value.type])
    return builder.asm(function_type, "", "=r,0", [value], side_effect=False)


def constant(vector, value):
    llvm = llvm_vector(vector)
    return ir.Constant(llvm, [value] * vector.lanes)


def broadcast(builder, vector, scalar):
    """Every lane of the result holds the LLVM value `scalar`."""
    llvm = llvm_vector(vector)
    undefined = ir.Constant(llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def call_intrinsic(builder, name, vector, args, result=None, **options):
    """Call the LLVM intrinsic `name` in its form for `vector`."""
    suffix = f"v{vector.lanes}f{vector.dtype.bitwidth}"
    function_type = ir.FunctionType(result or llvm_vector(vector), [arg.type for arg in args])
    function = cgutils.get_or_insert_function(
        builder.module, function_type, f"llvm.{name}.{suffix}"
    )
    return builder.call(function, args, **options)


def multiply_add(builder, vector, a, b, c):
    # llvm.fma would become a library call per lane on a machine without FMA.
    return call_intrinsic(builder, "fmuladd", vector, [a, b, c])


def lanes_below(builder, vector, numbers, count):
    """A mask of the lanes whose number is below an LLVM count."""
    wide = ir.VectorType(ir.IntType(32), vector.lanes)
    undefined = ir.Constant(wide, ir.Undefined)
    narrow = builder.trunc(count, ir.IntType(32))
    limit = builder.insert_element(undefined, narrow, ir.Constant(ir.IntType(32), 0))
    limit = builder.shuffle_vector(limit, undefined, ir.Constant(wide, [0] * vector.lanes))
    return builder.icmp_signed("<", ir.Constant(wide, list(numbers)), limit)


def add_lanes(builder, vector, value):
    """The sum of the lanes of an LLVM vector value."""
    scalar = llvm_float(vector.dtype)
    zero = ir.Constant(scalar, 0.0)
    # reassoc: pairwise, not lane after lane.
    return call_intrinsic(
        builder,
        "vector.reduce.fadd",
        vector,
        [zero, value],
        result=scalar,
        fastmath=("reassoc",),
    )


def raise_if(context, builder, wrong):
    with cgutils.if_unlikely(builder, wrong):
        message = "a kernel reaches beyond the bounds of an array"
        context.call_conv.return_user_exc(builder, IndexError, (message,))


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
def lanes(typing_context, array):
    """Lanes of a vector of the array's element type, a literal."""
    count = Vector(array.dtype).lanes

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.literal(count)(array), codegen


@intrinsic
def four(typing_context, array):
    """4, or the lanes of a vector of the array's element type if they are fewer, a literal."""
    count = min(4, Vector(array.dtype).lanes)

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.literal(count)(array), codegen


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


@intrinsic
def one_lane(typing_context, array, scalar):
    """A vector of the array's element type whose only lane holds `scalar`."""
    vector = Vector(array.dtype, 1)

    def codegen(context, builder, sig, args):
        return broadcast(builder, vector, args[1])

    return vector(array, vector.dtype), codegen


@intrinsic
def first_lane(typing_context, a):
    """The first lane, a scalar."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), codegen


@intrinsic
def splat(typing_context, array, scalar):
    """A vector of the array's element type whose lanes all hold `scalar`."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return broadcast(builder, vector, args[1])

    return vector(array, vector.dtype), codegen


@intrinsic
def zeros(typing_context, array):
    """A vector of zeros, of which the optimizer does not know that it is.

    It would turn a loop that stores three of them into a call of memset.
    """
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        zero = opaque(builder, ir.Constant(ir.IntType(vector.dtype.bitwidth), 0))
        return broadcast(builder, vector, builder.bitcast(zero, llvm_float(vector.dtype)))

    return vector(array), codegen


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c"""

    def codegen(context, builder, sig, args):
        return multiply_add(builder, a, *args)

    return a(a, a, a), codegen


def define_operator(function, instruction):
    """`function` on two vectors, or on a vector and a number, is the LLVM `instruction`."""

    @infer_global(function)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [arg for arg in args if isinstance(arg, Vector)]
            if vectors and all(isinstance(arg, (Vector, types.Number)) for arg in args):
                vector = vectors[0]
                scalar = vector.dtype
                cast = [arg if isinstance(arg, Vector) else scalar for arg in args]
                return signature(vector, *cast)
            return None

    def lower(context, builder, sig, args):
        vector = sig.return_type
        operands = [
            arg if isinstance(kind, Vector) else broadcast(builder, vector, arg)
            for kind, arg in zip(sig.args, args, strict=True)
        ]
        return getattr(builder, instruction)(*operands)

    for pattern in [(Vector, Vector), (Vector, types.Float), (types.Float, Vector)]:
        lower_builtin(function, *pattern)(lower)


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")
define_operator(operator.truediv, "fdiv")


@intrinsic
def maximum(typing_context, a, b):
    """The larger of two vectors, lane by lane; a where either is NaN."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return a(a, a), codegen


@intrinsic
def relu(typing_context, a):
    """max(0, a), lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        zero = constant(a, 0.0)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return a(a), codegen


@intrinsic
def absolute(typing_context, a):
    """|a|, lane by lane."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "fabs", a, args)

    return a(a), codegen


@intrinsic
def clamp(typing_context, x, low, high):
    """x between low and high, lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        x_value, low, high = args
        raised = builder.select(builder.fcmp_ordered("<", x_value, low), low, x_value)
        return builder.select(builder.fcmp_ordered(">", raised, high), high, raised)

    return x(x, x, x), codegen


@intrinsic
def where_positive(typing_context, condition, value):
    """`value` in the lanes where `condition` > 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = constant(value, 0.0)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return value(condition, value), codegen


@intrinsic
def where_nonzero(typing_context, condition, value):
    """`value` in the lanes where `condition` is not 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = constant(value, 0.0)
        return builder.select(builder.fcmp_unordered("!=", args[0], zero), args[1], zero)

    return value(condition, value), codegen


@intrinsic
def within(typing_context, a, limit):
    """Whether every lane lies between -limit and limit; false where one is NaN."""

    def codegen(context, builder, sig, args):
        size = call_intrinsic(builder, "fabs", a, [args[0]])
        inside = builder.fcmp_ordered("<", size, broadcast(builder, a, args[1]))
        lanes = builder.bitcast(inside, ir.IntType(a.lanes))
        return builder.icmp_unsigned("==", lanes, ir.Constant(lanes.type, -1))

    return types.boolean(a, a.dtype), codegen


@intrinsic
def smallest_normal(typing_context, array):
    """The smallest positive number of the array's element type that is not subnormal."""

    def codegen(context, builder, sig, args):
        exponent = {types.float32: -126, types.float64: -1022}[array.dtype]
        return ir.Constant(llvm_float(array.dtype), 2.0**exponent)

    return array.dtype(array), codegen


@intrinsic
def keep_first(typing_context, value, count, other):
    """Lanes 0 to count - 1 of `value`, then the number `other` (count may exceed the lanes)."""

    def codegen(context, builder, sig, args):
        kept = lanes_below(builder, value, range(value.lanes), args[1])
        return builder.select(kept, args[0], broadcast(builder, value, args[2]))

    return value(value, types.intp, value.dtype), codegen


# Far below all that matters, far above the subnormal numbers, with which arithmetic takes a hundred
# times as long.
TINY = {types.float32: 1e-30, types.float64: 1e-290}


@intrinsic
def clear_tiny(typing_context, a):
    """0 in the lanes where the size of a is below TINY, else a."""

    def codegen(context, builder, sig, args):
        size = call_intrinsic(builder, "fabs", a, args)
        near = builder.fcmp_ordered("<", size, constant(a, TINY[a.dtype]))
        return builder.select(near, constant(a, 0.0), args[0])

    return a(a), codegen


@intrinsic
def tiny(typing_context, array):
    """TINY in every lane of a vector of the array's element type."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return constant(vector, TINY[vector.dtype])

    return vector(array), codegen


def inverse_square_root(builder, vector, value):
    """1 / sqrt(value): exact in float64, in float32 within a few units in the last place.

    LLVM may take the machine's estimate and refine it, in half the time.
    """
    estimates = ("afn", "arcp", "nsz") if vector.dtype == types.float32 else ()
    root = call_intrinsic(builder, "sqrt", vector, [value], fastmath=estimates)
    return builder.fdiv(constant(vector, 1.0), root, flags=estimates)


@intrinsic
def inverse_root(typing_context, a):
    """1 / sqrt(a), lane by lane, for normal positive numbers; see inverse_square_root."""

    def codegen(context, builder, sig, args):
        return inverse_square_root(builder, a, args[0])

    return a(a), codegen


@intrinsic
def quick_root(typing_context, a):
    """sqrt(a), lane by lane, for numbers from 0 on; as exact as inverse_square_root."""

    def codegen(context, builder, sig, args):
        if a.dtype == types.float64:
            return call_intrinsic(builder, "sqrt", a, args)
        above = builder.fadd(args[0], constant(a, TINY[a.dtype]))  # 1 / sqrt(0) is infinite
        return builder.fmul(args[0], inverse_square_root(builder, a, above))

    return a(a), codegen


@intrinsic
def sum_lanes(typing_context, a):
    """The sum of all lanes, a scalar."""

    def codegen(context, builder, sig, args):
        return add_lanes(builder, a, args[0])

    return a.dtype(a), codegen


@intrinsic
def totals(typing_context, a):
    """The sum of all lanes, in every lane."""

    def codegen(context, builder, sig, args):
        result, distance = args[0], a.lanes // 2
        mask = ir.VectorType(ir.IntType(32), a.lanes)
        while distance > 0:
            partners = ir.Constant(mask, [lane ^ distance for lane in range(a.lanes)])
            result = builder.fadd(result, builder.shuffle_vector(result, result, partners))
            distance //= 2
        return result

    return a(a), codegen


@intrinsic
def max_lanes(typing_context, a):
    """The largest lane, a scalar."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(
            builder, "vector.reduce.fmax", a, args, result=llvm_float(a.dtype), fastmath=("nnan",)
        )

    return a.dtype(a), codegen


@intrinsic
def running_sums(typing_context, a):
    """The sum of lanes 0 to i, for every lane i."""

    def codegen(context, builder, sig, args):
        zeros = constant(a, 0.0)
        mask = ir.VectorType(ir.IntType(32), a.lanes)
        total = args[0]
        distance = 1
        while distance < a.lanes:
            # Lane numbers below `lanes` are of the zeros, the others are of the total.
            before = ir.Constant(mask, [a.lanes + i - distance for i in range(a.lanes)])
            total = builder.fadd(total, builder.shuffle_vector(zeros, total, before))
            distance *= 2
        return total

    return a(a), codegen


@intrinsic
def count_at_most(typing_context, a, limit):
    """How many lanes are at most the number `limit`."""

    def codegen(context, builder, sig, args):
        counted = builder.fcmp_ordered("<=", args[0], broadcast(builder, a, args[1]))
        bits = builder.bitcast(counted, ir.IntType(a.lanes))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.intp(a, a.dtype), codegen


@intrinsic
def lanes_above(typing_context, a, limit):
    """A bit for every lane, the first one lowest: whether it is above the number `limit`."""

    def codegen(context, builder, sig, args):
        above = builder.fcmp_ordered(">", args[0], broadcast(builder, a, args[1]))
        return builder.zext(builder.bitcast(above, ir.IntType(a.lanes)), ir.IntType(64))

    return types.intp(a, a.dtype), codegen


@intrinsic
def keep_chosen(typing_context, value, bits):
    """The lanes of `value` whose bit is set, the first one lowest, and 0 in the others."""

    def codegen(context, builder, sig, args):
        mask = builder.trunc(args[1], ir.IntType(value.lanes))
        kept = builder.bitcast(mask, ir.VectorType(ir.IntType(1), value.lanes))
        return builder.select(kept, args[0], constant(value, 0.0))

    return value(value, types.intp), codegen


@intrinsic
def lowest_bit(typing_context, bits):
    """The number of the lowest bit that is set."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.intp), codegen


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


@intrinsic(prefer_literal=True)
def tile_zeros(typing_context, array, rows, columns):
    """A tile of zeros of the array's element type; rows and columns are literals."""
    tile = Tile(array.dtype, rows.literal_value, columns.literal_value)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(array, rows, columns), codegen


def load_pieces(context, builder, array_type, array, starts, vector):
    """A vector out of consecutive elements from each of the LLVM indices `starts`."""
    width = vector.lanes // len(starts)
    piece = ir.VectorType(llvm_float(vector.dtype), width)
    parts = []
    for start in starts:
        pointer = element_pointer(context, builder, array_type, array, start, width)
        pointer = builder.bitcast(pointer, piece.as_pointer())
        parts.append(builder.load(pointer, align=vector.dtype.bitwidth // 8))
    while len(parts) > 1:
        width *= 2
        mask = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(low, high, mask) for low, high in pairs]
    return parts[0]


@intrinsic
def tile_load(typing_context, tile, array, index, offsets):
    """A tile like `tile` from array[index + offset of each row], consecutive vectors of a row.

    With several offsets a row, the rows of a tile of one column are put together from pieces.
    """
    pieces = offsets.rows // tile.rows

    def codegen(context, builder, sig, args):
        _, array_value, index, offsets_value = args
        vector = tile.vector
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        starts = [
            builder.add(index, builder.extract_value(offsets_value, i)) for i in range(offsets.rows)
        ]
        for r in range(tile.rows):
            for c in range(tile.columns):
                column = ir.Constant(ir.IntType(64), c * vector.lanes)
                begins = [
                    builder.add(start, column) for start in starts[r * pieces : (r + 1) * pieces]
                ]
                value = load_pieces(context, builder, array, array_value, begins, vector)
                result = builder.insert_value(result, value, r * tile.columns + c)
        return result

    return tile(tile, array, types.intp, offsets), codegen


@intrinsic
def tile_load_first(typing_context, tile, array, index, offsets, count):
    """As tile_load, the first `count` elements of every row, zeros beyond: a tile of one column."""

    def codegen(context, builder, sig, args):
        result, array_value, index, offsets_value, count = args
        for r in range(tile.rows):
            start = builder.add(index, builder.extract_value(offsets_value, r))
            row = load_masked(context, builder, array, array_value, start, tile.vector, count)
            result = builder.insert_value(result, row, r)
        return result

    return tile(tile, array, types.intp, offsets, types.intp), codegen


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


@intrinsic
def tile_fma(typing_context, tile, pointers, b, b_index):
    """tile[r, c] + (element of row r that is pointed to) * (vector c of b from b_index on)"""

    def codegen(context, builder, sig, args):
        result, left, b_value, b_index = args
        vector = tile.vector
        left = cgutils.create_struct_proxy(pointers)(context, builder, left)
        right = []
        for c in range(tile.columns):
            at = builder.add(b_index, ir.Constant(ir.IntType(64), c * vector.lanes))
            right.append(load_vector(context, builder, b, b_value, at, vector))
        for r in range(tile.rows):
            pointer = row_pointer(builder, pointers, left, r)
            check_limits(context, builder, left, pointer)
            element = broadcast(builder, vector, builder.load(pointer))
            for c in range(tile.columns):
                i = r * tile.columns + c
                accumulator = builder.extract_value(result, i)
                accumulator = multiply_add(builder, vector, element, right[c], accumulator)
                result = builder.insert_value(result, accumulator, i)
        return result

    return tile(tile, pointers, b, types.intp), codegen


@intrinsic
def square_fma(typing_context, tile, pointers, square):
    """tile[r] + sum over k of (element k of row r that is pointed to) * square[k]

    Both tiles have one column.
    """

    def codegen(context, builder, sig, args):
        result, left, square_value = args
        vector = tile.vector
        left = cgutils.create_struct_proxy(pointers)(context, builder, left)
        starts = [row_pointer(builder, pointers, left, r) for r in range(tile.rows)]
        rows = [builder.extract_value(result, r) for r in range(tile.rows)]
        for k in range(square.rows):
            right = builder.extract_value(square_value, k)
            for r in range(tile.rows):
                pointer = builder.gep(starts[r], [ir.Constant(ir.IntType(64), k)])
                check_limits(context, builder, left, pointer)
                element = broadcast(builder, vector, builder.load(pointer))
                rows[r] = multiply_add(builder, vector, element, right, rows[r])
        for r in range(tile.rows):
            result = builder.insert_value(result, rows[r], r)
        return result

    return tile(tile, pointers, square), codegen


@intrinsic
def tile_outer(typing_context, tile, left, right):
    """tile[r, c] + (vector that row r of `left` points to) * (vector of row c of `right`)"""
    vector = tile.vector

    def codegen(context, builder, sig, args):
        result = args[0]

        def load_row(pointers, value, r):
            value = cgutils.create_struct_proxy(pointers)(context, builder, value)
            pointer = row_pointer(builder, pointers, value, r)
            check_limits(context, builder, value, pointer)
            last = builder.gep(pointer, [ir.Constant(ir.IntType(64), vector.lanes - 1)])
            check_limits(context, builder, value, last)
            pointer = builder.bitcast(pointer, llvm_vector(vector).as_pointer())
            return builder.load(pointer, align=vector.dtype.bitwidth // 8)

        columns = [load_row(right, args[2], c) for c in range(tile.columns)]
        for r in range(tile.rows):
            row = load_row(left, args[1], r)
            for c in range(tile.columns):
                i = r * tile.columns + c
                accumulator = builder.extract_value(result, i)
                accumulator = multiply_add(builder, vector, row, columns[c], accumulator)
                result = builder.insert_value(result, accumulator, i)
        return result

    return tile(tile, left, right), codegen


@intrinsic
def tile_fma_rows(typing_context, tile, a, integers, at, column, x, condition):
    """tile[r] + (vector of a from integers[at + r] + column on) * x, for a tile of one column.

    Only in the lanes where `condition` is not 0; whatever a holds in the others does not matter.
    """

    def codegen(context, builder, sig, args):
        result, a_value, integers_value, at, column, x_value, condition = args
        vector = tile.vector
        zero = constant(vector, 0.0)
        wanted = builder.fcmp_unordered("!=", condition, zero)
        for r in range(tile.rows):
            place = builder.add(at, ir.Constant(ir.IntType(64), r))
            pointer = element_pointer(context, builder, sig.args[2], integers_value, place)
            start = builder.add(builder.load(pointer), column)
            row = load_vector(context, builder, a, a_value, start, vector)
            row = builder.select(wanted, row, zero)
            accumulator = builder.extract_value(result, r)
            accumulator = multiply_add(builder, vector, row, x_value, accumulator)
            result = builder.insert_value(result, accumulator, r)
        return result

    return tile(tile, a, integers, types.intp, types.intp, x, condition), codegen


def map_vectors(builder, tile, function, *values):
    """The tile of function(a vector of each of the LLVM values of like tiles), one by one."""
    result = values[0]
    for i in range(tile.rows * tile.columns):
        vectors = [builder.extract_value(value, i) for value in values]
        result = builder.insert_value(result, function(*vectors), i)
    return result


@intrinsic
def tile_relu(typing_context, tile):
    """max(0, tile), element by element; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        zero = constant(tile.vector, 0.0)

        def relu_vector(value):
            return builder.select(builder.fcmp_ordered("<", value, zero), zero, value)

        return map_vectors(builder, tile, relu_vector, *args)

    return tile(tile), codegen


@intrinsic
def tile_where_positive(typing_context, condition, tile):
    """The elements of the tile where those of `condition` are positive, else 0."""

    def codegen(context, builder, sig, args):
        zero = constant(tile.vector, 0.0)

        def where_vector(condition_value, value):
            return builder.select(builder.fcmp_ordered(">", condition_value, zero), value, zero)

        return map_vectors(builder, tile, where_vector, *args)

    return tile(condition, tile), codegen


@intrinsic
def tile_add(typing_context, a, b):
    """a + b"""

    def codegen(context, builder, sig, args):
        return map_vectors(builder, a, builder.fadd, *args)

    return a(a, b), codegen


@intrinsic
def tile_add_product(typing_context, tile, a, b):
    """tile + a * b, element by element."""

    def codegen(context, builder, sig, args):
        def add_product(value, a_value, b_value):
            return multiply_add(builder, tile.vector, a_value, b_value, value)

        return map_vectors(builder, tile, add_product, *args)

    return tile(tile, a, b), codegen


@intrinsic
def tile_fma_lanes(typing_context, tile, a, factors):
    """tile[r] + a[r] * (lane r of the vector `factors`), for tiles of one column."""
    vector = tile.vector

    def codegen(context, builder, sig, args):
        result, a_value, factors = args
        mask = ir.VectorType(ir.IntType(32), vector.lanes)
        for r in range(tile.rows):
            lane = ir.Constant(mask, [r] * vector.lanes)
            factor = builder.shuffle_vector(factors, factors, lane)
            row = builder.extract_value(a_value, r)
            value = multiply_add(builder, vector, row, factor, builder.extract_value(result, r))
            result = builder.insert_value(result, value, r)
        return result

    return tile(tile, a, factors), codegen


@intrinsic
def tile_transpose(typing_context, tile):
    """The transposes of the squares that a tile of one column is made of, side by side.

    It has as many rows as a square has lanes: 1, 2, 4, ..., at most those of a vector. Blocks of
    1, 2, 4, ... lanes change places between rows that are as far apart.
    """
    vector = tile.vector
    size = vector.lanes

    def codegen(context, builder, sig, args):
        mask = ir.VectorType(ir.IntType(32), size)
        rows = [builder.extract_value(args[0], r) for r in range(tile.rows)]
        distance = 1
        while distance < tile.rows:
            # A lane number below `size` is of the upper row, the others are of the lower one.
            upper, lower = [], []
            for i in range(size):
                upper.append(size + i - distance if i & distance else i)
                lower.append(size + i if i & distance else i + distance)
            upper, lower = ir.Constant(mask, upper), ir.Constant(mask, lower)
            for r in range(tile.rows):
                if not r & distance:
                    pair = rows[r], rows[r + distance]
                    rows[r] = builder.shuffle_vector(*pair, upper)
                    rows[r + distance] = builder.shuffle_vector(*pair, lower)
            distance *= 2
        result = args[0]
        for r in range(tile.rows):
            result = builder.insert_value(result, rows[r], r)
        return result

    return tile(tile), codegen


@intrinsic
def tile_row_sums(typing_context, tile):
    """A vector whose lane i is the sum of row i of a tile, for tiles of one column.

    It has as many rows as a vector has lanes, or half of them, or a quarter, ...; where there are
    fewer, lanes begin with row 0 again after the last one.
    """
    vector = tile.vector
    size = vector.lanes

    def codegen(context, builder, sig, args):
        mask = ir.VectorType(ir.IntType(32), size)
        rows = [builder.extract_value(args[0], r) for r in range(tile.rows)]
        distance = 1
        while distance < size:
            if len(rows) > 1:
                # Of two rows each keeps every other block of lanes, and the others are added.
                kept = [size + i if i & distance else i for i in range(size)]
                added = [size + i - distance if i & distance else i + distance for i in range(size)]
            else:
                kept, added = list(range(size)), [i ^ distance for i in range(size)]
                rows *= 2
            kept, added = ir.Constant(mask, kept), ir.Constant(mask, added)
            rows = [
                builder.fadd(
                    builder.shuffle_vector(low, high, kept),
                    builder.shuffle_vector(low, high, added),
                )
                for low, high in zip(rows[::2], rows[1::2], strict=True)
            ]
            distance *= 2
        return rows[0]

    return vector(tile), codegen


def keep_lanes(builder, tile, value, numbers, count):
    """The tile with zeros in the lanes whose number is not below an LLVM count."""
    kept, zero = lanes_below(builder, tile.vector, numbers, count), constant(tile.vector, 0.0)
    return map_vectors(builder, tile, lambda vector: builder.select(kept, vector, zero), value)


@intrinsic
def tile_keep_first(typing_context, tile, count):
    """Lanes 0 to count - 1 of every vector, zeros beyond."""

    def codegen(context, builder, sig, args):
        return keep_lanes(builder, tile, args[0], range(tile.vector.lanes), args[1])

    return tile(tile, types.intp), codegen


@intrinsic
def tile_keep_pieces(typing_context, tile, count):
    """Of a tile transposed after it was loaded in pieces: zeros where piece `count` and later are.

    Pieces are as wide as the tile has rows, and numbered row after row.
    """
    pieces = tile.vector.lanes // tile.rows
    numbers = [i % tile.rows * pieces + i // tile.rows for i in range(tile.vector.lanes)]

    def codegen(context, builder, sig, args):
        return keep_lanes(builder, tile, args[0], numbers, args[1])

    return tile(tile, types.intp), codegen


@intrinsic
def tile_grow(typing_context, tile, factor):
    """tile * factor + factor, vector by vector."""

    def codegen(context, builder, sig, args):
        tile_value, factor_value = args

        def grow(value):
            return multiply_add(builder, tile.vector, value, factor_value, factor_value)

        return map_vectors(builder, tile, grow, tile_value)

    return tile(tile, factor), codegen


@intrinsic
def tile_total(typing_context, tile):
    """The sum of all elements, a scalar."""
    vector = tile.vector

    def codegen(context, builder, sig, args):
        total = builder.extract_value(args[0], 0)
        for i in range(1, tile.rows * tile.columns):
            total = builder.fadd(total, builder.extract_value(args[0], i))
        return add_lanes(builder, vector, total)

    return vector.dtype(tile), codegen


def in_turn(builder, store_one, available, count):
    """Emit store_one(0), store_one(1), ..., of which only the first LLVM `count` are carried out.

    At least one is; `available` are emitted.
    """
    done = builder.append_basic_block("stored")
    for i in range(available):
        store_one(i)
        following = builder.append_basic_block(f"store_{i + 1}")
        more = builder.icmp_signed(">", count, ir.Constant(ir.IntType(64), i + 1))
        builder.cbranch(more, following, done)
        builder.position_at_end(following)
    builder.branch(done)
    builder.position_at_end(done)


@intrinsic
def tile_store(typing_context, array, index, offsets, tile, count):
    """array[index + offset of each row] = the first `count` rows of the tile."""

    def codegen(context, builder, sig, args):
        array_value, index, offsets_value, tile_value, count = args
        vector = tile.vector

        def store_row(r):
            start = builder.add(index, builder.extract_value(offsets_value, r))
            for c in range(tile.columns):
                at = builder.add(start, ir.Constant(ir.IntType(64), c * vector.lanes))
                value = builder.extract_value(tile_value, r * tile.columns + c)
                store_vector(context, builder, array, array_value, at, vector, value)

        in_turn(builder, store_row, tile.rows, count)
        return context.get_dummy_value()

    return types.void(array, types.intp, offsets, tile, types.intp), codegen


@intrinsic
def tile_store_pieces(typing_context, array, index, offsets, tile, count, columns):
    """Store a tile of one column as `tile_load` loads it in pieces: the first `count` pieces,
    `columns` elements of each, or all if there are fewer.
    """
    pieces = offsets.rows // tile.rows

    def codegen(context, builder, sig, args):
        array_value, index, offsets_value, tile_value, count, columns = args
        width = tile.vector.lanes // pieces

        def store_piece(i):
            row = builder.extract_value(tile_value, i // pieces)
            first = i % pieces * width
            mask = ir.VectorType(ir.IntType(32), width)
            mask = ir.Constant(mask, list(range(first, first + width)))
            piece = builder.shuffle_vector(row, ir.Constant(row.type, ir.Undefined), mask)
            start = builder.add(index, builder.extract_value(offsets_value, i))
            store_first(context, builder, array, array_value, start, piece, columns)

        in_turn(builder, store_piece, offsets.rows, count)
        return context.get_dummy_value()

    return types.void(array, types.intp, offsets, tile, types.intp, types.intp), codegen


@inlined
def padded(array, width):
    """The smallest whole number of vectors, in elements, that holds `width` elements."""
    count = lanes(array)
    return (width + count - 1) // count * count


@inlined
def row_stride(array, width):
    """Elements from one row of an array to the next: whole vectors, an odd number if many.

    A column of long rows a power of two apart would lie in a few sets of the cache.
    """
    elements = padded(array, width)
    if elements >= LONG_ROW * lanes(array) and elements // lanes(array) % 2 == 0:
        elements += lanes(array)
    return elements
