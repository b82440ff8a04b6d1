"""Explicit SIMD: LLVM vectors, and tiles of them, as values of ordinary jitted code.

A `Vector` lives in one register of the host, a `Tile` of rows x columns vectors in several: the
accumulators of a matrix product. Neither crosses into Python. Loads and stores take an array and
an element index; `+ - * /` work lane by lane and take a scalar on either side.

The lane count is what one vector register of the host holds: 64 bytes with AVX-512, 32 with AVX,
16 with SSE and NEON. Arrays on the tape pad their rows to whole vectors (`padded`), so kernels
have no tails.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from tapegpt.kernels.jit import inlined


def host_vector_bytes() -> int:
    """Bytes in one vector register of the machine that the kernels are compiled for."""
    features = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()
    enabled = {name[1:] for name in features.split(",") if name.startswith("+")}
    if "avx512f" in enabled:
        return 64
    return 32 if "avx" in enabled else 16


VECTOR_BYTES = host_vector_bytes()

# A tile is TILE_ROWS x TILE_COLUMNS accumulators: enough independent chains to cover the latency
# of an FMA, few enough that they and their operands fit the register file (32 with AVX-512, else
# 16). One that spills is three times slower.
TILE_ROWS, TILE_COLUMNS = (12, 2) if VECTOR_BYTES == 64 else (6, 2)


# Vectors in a row from which on it is better that their number is odd: 256 bytes.
LONG_ROW = 256 // VECTOR_BYTES


class Vector(types.Type):
    """`lanes` elements of a float type in one register."""

    def __init__(self, dtype: types.Float):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({self.lanes} x {dtype})")


class Tile(types.Type):
    """rows x columns vectors, row after row."""

    def __init__(self, dtype: types.Float, rows: int, columns: int):
        self.vector = Vector(dtype)
        self.rows = rows
        self.columns = columns
        super().__init__(name=f"Tile({rows} x {columns} {self.vector})")


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


def first_lanes(builder, vector, count):
    """A mask of lanes 0 to count - 1, for an LLVM count that may exceed the lanes."""
    wide = ir.VectorType(ir.IntType(32), vector.lanes)
    undefined = ir.Constant(wide, ir.Undefined)
    narrow = builder.trunc(count, ir.IntType(32))
    limit = builder.insert_element(undefined, narrow, ir.Constant(ir.IntType(32), 0))
    limit = builder.shuffle_vector(limit, undefined, ir.Constant(wide, [0] * vector.lanes))
    return builder.icmp_signed("<", ir.Constant(wide, list(range(vector.lanes))), limit)


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


def element_pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def vector_pointer(context, builder, array_type, array, index, vector):
    pointer = element_pointer(context, builder, array_type, array, index)
    return builder.bitcast(pointer, llvm_vector(vector).as_pointer())


def load_vector(context, builder, array_type, array, index, vector):
    pointer = vector_pointer(context, builder, array_type, array, index, vector)
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def store_vector(context, builder, array_type, array, index, vector, value):
    pointer = vector_pointer(context, builder, array_type, array, index, vector)
    builder.store(value, pointer, align=array_type.dtype.bitwidth // 8)


def store_lanes(context, builder, array_type, array, index, vector, value, count):
    """Store the first `count` lanes, or all if there are fewer: halves, quarters, ... of them."""
    integer = ir.IntType(64)
    whole = builder.icmp_signed(">=", count, ir.Constant(integer, vector.lanes))
    with builder.if_else(whole) as (all_lanes, some_lanes):
        with all_lanes:
            store_vector(context, builder, array_type, array, index, vector, value)
        with some_lanes:
            part = vector.lanes // 2
            while part > 0:
                llvm = ir.VectorType(llvm_float(vector.dtype), part)
                has = builder.icmp_signed(
                    "!=", builder.and_(count, ir.Constant(integer, part)), ir.Constant(integer, 0)
                )
                with builder.if_then(has):
                    mask = ir.Constant(ir.VectorType(ir.IntType(32), part), list(range(part)))
                    first = builder.shuffle_vector(
                        value, ir.Constant(value.type, ir.Undefined), mask
                    )
                    pointer = element_pointer(context, builder, array_type, array, index)
                    pointer = builder.bitcast(pointer, llvm.as_pointer())
                    builder.store(first, pointer, align=vector.dtype.bitwidth // 8)
                lanes_left = [min(i + part, vector.lanes - 1) for i in range(vector.lanes)]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), lanes_left)
                rest = builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)
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
def load(typing_context, array, index):
    """The vector array[index : index + lanes]."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return load_vector(context, builder, sig.args[0], args[0], args[1], vector)

    return vector(array, types.intp), codegen


@intrinsic
def store(typing_context, array, index, value):
    """array[index : index + lanes] = value"""

    def codegen(context, builder, sig, args):
        store_vector(context, builder, sig.args[0], args[0], args[1], value, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def splat(typing_context, array, scalar):
    """A vector of the array's element type whose lanes all hold `scalar`."""
    vector = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        return broadcast(builder, vector, args[1])

    return vector(array, vector.dtype), codegen


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
def keep_first(typing_context, value, count, other):
    """Lanes 0 to count - 1 of `value`, then the number `other` (count may exceed the lanes)."""

    def codegen(context, builder, sig, args):
        kept = first_lanes(builder, value, args[1])
        return builder.select(kept, args[0], broadcast(builder, value, args[2]))

    return value(value, types.intp, value.dtype), codegen


@intrinsic
def sqrt(typing_context, a):
    """Square roots, lane by lane."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "sqrt", a, args)

    return a(a), codegen


@intrinsic
def floor(typing_context, a):
    """The largest whole numbers not above, lane by lane."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "floor", a, args)

    return a(a), codegen


@intrinsic
def sum_lanes(typing_context, a):
    """The sum of all lanes, a scalar."""

    def codegen(context, builder, sig, args):
        return add_lanes(builder, a, args[0])

    return a.dtype(a), codegen


@intrinsic
def max_lanes(typing_context, a):
    """The largest lane, a scalar."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(
            builder, "vector.reduce.fmax", a, args, result=llvm_float(a.dtype), fastmath=("nnan",)
        )

    return a.dtype(a), codegen


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
def group_offsets(typing_context, first, limit, width, per_row, stride, rows):
    """Offsets of groups of `width` columns, numbered row after row, per_row of them to a row.

    As row_offsets, from group `limit` on they repeat group limit - 1.
    """
    offsets = RowOffsets(rows.literal_value)

    def codegen(context, builder, sig, args):
        first, limit, width, per_row, stride, _ = args
        last = builder.sub(limit, ir.Constant(ir.IntType(64), 1))
        result = ir.Constant(ir.ArrayType(ir.IntType(64), offsets.rows), ir.Undefined)
        for r in range(offsets.rows):
            group = builder.add(first, ir.Constant(ir.IntType(64), r))
            group = builder.select(builder.icmp_signed("<", group, last), group, last)
            row = builder.udiv(group, per_row)
            column = builder.sub(group, builder.mul(row, per_row))
            offset = builder.add(builder.mul(row, stride), builder.mul(column, width))
            result = builder.insert_value(result, offset, r)
        return result

    integers = [types.intp] * 5
    return offsets(*integers, rows), codegen


@intrinsic(prefer_literal=True)
def tile_zeros(typing_context, array, rows, columns):
    """A tile of zeros of the array's element type; rows and columns are literals."""
    tile = Tile(array.dtype, rows.literal_value, columns.literal_value)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(array, rows, columns), codegen


@intrinsic
def tile_load(typing_context, tile, array, index, offsets):
    """A tile like `tile` from array[index + offset of each row], consecutive vectors of a row."""

    def codegen(context, builder, sig, args):
        _, array_value, index, offsets_value = args
        vector = tile.vector
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for r in range(tile.rows):
            start = builder.add(index, builder.extract_value(offsets_value, r))
            for c in range(tile.columns):
                at = builder.add(start, ir.Constant(ir.IntType(64), c * vector.lanes))
                value = load_vector(context, builder, array, array_value, at, vector)
                result = builder.insert_value(result, value, r * tile.columns + c)
        return result

    return tile(tile, array, types.intp, offsets), codegen


@intrinsic
def tile_fma(typing_context, tile, a, a_index, offsets, b, b_index):
    """tile[r, c] + a[a_index + offsets[r]] * (vector c of b from b_index on)"""

    def codegen(context, builder, sig, args):
        result, a_value, a_index, offsets_value, b_value, b_index = args
        vector = tile.vector
        right = []
        for c in range(tile.columns):
            at = builder.add(b_index, ir.Constant(ir.IntType(64), c * vector.lanes))
            right.append(load_vector(context, builder, b, b_value, at, vector))
        for r in range(tile.rows):
            at = builder.add(a_index, builder.extract_value(offsets_value, r))
            scalar = builder.load(element_pointer(context, builder, a, a_value, at))
            left = broadcast(builder, vector, scalar)
            for c in range(tile.columns):
                i = r * tile.columns + c
                accumulator = builder.extract_value(result, i)
                accumulator = multiply_add(builder, vector, left, right[c], accumulator)
                result = builder.insert_value(result, accumulator, i)
        return result

    return tile(tile, a, types.intp, offsets, b, types.intp), codegen


@intrinsic
def tile_add(typing_context, a, b):
    """a + b"""

    def codegen(context, builder, sig, args):
        result, other = args
        for i in range(a.rows * a.columns):
            value = builder.fadd(builder.extract_value(result, i), builder.extract_value(other, i))
            result = builder.insert_value(result, value, i)
        return result

    return a(a, b), codegen


@intrinsic
def tile_transpose(typing_context, tile):
    """The transpose of a tile of one column that has as many rows as a vector has lanes.

    Blocks of 1, 2, 4, ... lanes change places between rows that are as far apart.
    """
    vector = tile.vector
    size = vector.lanes

    def codegen(context, builder, sig, args):
        mask = ir.VectorType(ir.IntType(32), size)
        rows = [builder.extract_value(args[0], r) for r in range(size)]
        distance = 1
        while distance < size:
            # A lane number below `size` is of the upper row, the others are of the lower one.
            upper, lower = [], []
            for i in range(size):
                upper.append(size + i - distance if i & distance else i)
                lower.append(size + i if i & distance else i + distance)
            upper, lower = ir.Constant(mask, upper), ir.Constant(mask, lower)
            for r in range(size):
                if not r & distance:
                    pair = rows[r], rows[r + distance]
                    rows[r] = builder.shuffle_vector(*pair, upper)
                    rows[r + distance] = builder.shuffle_vector(*pair, lower)
            distance *= 2
        result = args[0]
        for r in range(size):
            result = builder.insert_value(result, rows[r], r)
        return result

    return tile(tile), codegen


@intrinsic
def tile_keep_first(typing_context, tile, count):
    """Lanes 0 to count - 1 of every vector, zeros beyond."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(llvm_float(tile.vector.dtype), 0.0)
        kept = first_lanes(builder, tile.vector, args[1])
        result = args[0]
        for i in range(tile.rows * tile.columns):
            value = builder.extract_value(result, i)
            value = builder.select(kept, value, broadcast(builder, tile.vector, zero))
            result = builder.insert_value(result, value, i)
        return result

    return tile(tile, types.intp), codegen


@intrinsic
def tile_grow(typing_context, tile, factor):
    """tile * factor + factor, vector by vector."""

    def codegen(context, builder, sig, args):
        result, factor_value = args
        for i in range(tile.rows * tile.columns):
            value = builder.extract_value(result, i)
            value = multiply_add(builder, tile.vector, value, factor_value, factor_value)
            result = builder.insert_value(result, value, i)
        return result

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


@intrinsic
def tile_store_first(typing_context, array, index, offsets, tile, count, columns):
    """The first `columns` lanes of the first `count` rows of a tile of one column, likewise."""
    vector = tile.vector

    def codegen(context, builder, sig, args):
        array_value, index, offsets_value, tile_value, count, columns = args
        done = builder.append_basic_block("tile_stored")
        for r in range(tile.rows):
            start = builder.add(index, builder.extract_value(offsets_value, r))
            value = builder.extract_value(tile_value, r)
            store_lanes(context, builder, array, array_value, start, vector, value, columns)
            following = builder.append_basic_block(f"tile_row_{r + 1}")
            more = builder.icmp_signed(">", count, ir.Constant(ir.IntType(64), r + 1))
            builder.cbranch(more, following, done)
            builder.position_at_end(following)
        builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(array, types.intp, offsets, tile, types.intp, types.intp), codegen


@intrinsic
def tile_store(typing_context, array, index, offsets, tile, count):
    """array[index + offset of each row] = the first `count` rows of the tile."""

    def codegen(context, builder, sig, args):
        array_value, index, offsets_value, tile_value, count = args
        vector = tile.vector
        done = builder.append_basic_block("tile_stored")
        for r in range(tile.rows):
            start = builder.add(index, builder.extract_value(offsets_value, r))
            for c in range(tile.columns):
                at = builder.add(start, ir.Constant(ir.IntType(64), c * vector.lanes))
                value = builder.extract_value(tile_value, r * tile.columns + c)
                store_vector(context, builder, array, array_value, at, vector, value)
            following = builder.append_basic_block(f"tile_row_{r + 1}")
            more = builder.icmp_signed(">", count, ir.Constant(ir.IntType(64), r + 1))
            builder.cbranch(more, following, done)
            builder.position_at_end(following)
        builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(array, types.intp, offsets, tile, types.intp), codegen


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
