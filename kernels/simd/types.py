"""Vectors and tiles of them, as types of jitted code, and the LLVM that all of simd/ emits.

A `Vector` lives in one register of the host, a `Tile` of rows x columns vectors in several: the
accumulators of a matrix product. Neither crosses into Python.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import models, register_model

from tapegpt.kernels.compile.cpu import VECTOR_BYTES, VECTOR_REGISTERS

# Rows and columns of the tiles of accumulators: enough dependency chains to cover the latency of
# an FMA, few enough that they and their operands fit the register file. One that spills is three
# times slower.
WIDE_TILE, PAIR_TILE, SINGLE_TILE = (6, 2), (6, 2), (12, 1)

if VECTOR_REGISTERS == 32:
    WIDE_TILE, PAIR_TILE, SINGLE_TILE = (6, 4), (12, 2), (16, 1)

# The same where both operands are vectors, see lane_batching.py.
LANE_TILE = (4, 4) if VECTOR_REGISTERS == 32 else (2, 4)

# Rows of the tiles for the remainder.
TAIL_ROWS = 4

# Rows of the tiles beside which a whole square of B stays in registers, see square_panel.
SQUARE_ROWS = 8 if VECTOR_REGISTERS == 32 else 6

# A tile keeps the address of every third row of its left operand. With a stride in a register the
# two rows after it are one address mode of x86 away, so twelve rows take five registers.
SPACING = 3


class Lanewise(types.Type):
    """What arithmetic goes through lane by lane: rows x columns of one vector type."""


class Vector(Lanewise):
    """`lanes` elements of a float type in one register: as many as it holds, if not told."""

    rows = columns = 1

    def __init__(self, dtype: types.Float, lanes: int | None = None):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth if lanes is None else lanes
        super().__init__(name=f"Vector({self.lanes} x {dtype})")

    @property
    def vector(self):
        return self


class Tile(Lanewise):
    """rows x columns vectors, row after row."""

    def __init__(self, dtype: types.Float, rows: int, columns: int):
        self.dtype = dtype
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
    """The same pointer or integer, hidden from the optimizer."""
    function_type = ir.FunctionType(value.type, [value.type])
    return builder.asm(function_type, "", "=r,0", [value], side_effect=False)


def vectors_of(builder, kind, value):
    """The LLVM vectors that a vector or a tile is made of, row after row."""
    if isinstance(kind, Vector):
        return [value]
    return [builder.extract_value(value, i) for i in range(kind.rows * kind.columns)]


def pack_vectors(builder, kind, vectors):
    """The value of a vector or a tile that is made of these LLVM vectors."""
    if isinstance(kind, Vector):
        return vectors[0]
    return cgutils.pack_array(builder, vectors)


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
        builder, "vector.reduce.fadd", vector, [zero, value], result=scalar, fastmath=("reassoc",)
    )


def raise_if(context, builder, wrong):
    with cgutils.if_unlikely(builder, wrong):
        message = "a kernel reaches beyond the bounds of an array"
        context.call_conv.return_user_exc(builder, IndexError, (message,))
