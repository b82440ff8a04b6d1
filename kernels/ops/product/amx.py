"""The matrix product on a matrix unit: AMX, which multiplies tiles of bfloat16 numbers.

A float32 number has 24 significant bits and a bfloat16 number 8, so every x is a sum of three,
x = x1 + x2 + x3, each some 2^-8 of the one before. Of the nine products in x y

    x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1)

are enough: the three left out come to 2^-24 of x y at most, what rounding it to float32 costs. The
unit adds in float32, and rounds less often than multiply-adds do: of a whole product the errors are
half as large. It takes subnormal numbers as 0, so that x below 2^-110 has fewer bits, and the
largest numbers, from 3.39e38 on, become NaN. (Henry, Tang, Heinecke 2019: Leveraging the bfloat16
Artificial Intelligence Datatype For Higher-Precision Computations)

A tile is 1 KB, 16 rows of 16 pairs of numbers. Of both matrices it holds what is 16 by 32 there,
steps k and k + 16 of the product as a pair:

    of A, a row a row:      a(r, 0) a(r, 16) | a(r, 1) a(r, 17) | ... | a(r, 15) a(r, 31)
    of B, a column a pair:  b(k, 0) b(k + 16, 0) | b(k, 1) b(k + 16, 1) | ...         in row k

so that both are made of whole vectors, without shuffles. The three parts of a tile lie one after
the other; what is beyond the depth of the product is 0 in A.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import NONE
from tapegpt.kernels.ops.product.matmul import activated, matmul
from tapegpt.kernels.ops.product.matrix import IDENTITY, Left, Result, Right, moved
from tapegpt.kernels.simd.memory import element_pointer, store_vector
from tapegpt.kernels.simd.types import llvm_integers, llvm_vector

SIDE, DEPTH = 16, 32  # rows of a tile of A and columns of one of B, and the steps that both hold
PART = SIDE * DEPTH // 2  # a tile, in the room of float32 numbers
PARTS = 3 * PART

# A panel of A, so many rows and steps of it at most, is packed at once, and beside it what meets
# these steps in 16 columns of B.
PANEL_ROWS, PANEL_DEPTH = 256, 128

# Products with fewer rows, columns or steps than this take longer than without the unit.
AMX_LEAST = 64

# Which parts of A and B are multiplied, the smallest products first: they round less.
PRODUCTS = ((0, 2), (1, 1), (2, 0), (0, 1), (1, 0), (0, 0))

# Registers for tiles: the sum, and the parts of a tile of A and of one of B.
SUM, A1, B1 = 0, 1, 4


def call_amx(builder, name, *arguments):
    """Call an instruction of the matrix unit; plain integers are numbers of registers."""
    values = [ir.Constant(ir.IntType(8), i) if isinstance(i, int) else i for i in arguments]
    function_type = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(
        cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}"), values
    )


def byte_pointer(context, builder, array_type, array, index, extent):
    """Where array[index] lies, as instructions of the matrix unit take it; see element_pointer."""
    pointer = element_pointer(context, builder, array_type, array, index, extent)
    return builder.bitcast(pointer, ir.IntType(8).as_pointer())


@intrinsic
def begin_products(typing_context):
    """Set up the registers of the matrix unit, all of them for whole tiles."""

    def codegen(context, builder, sig, args):
        palette, row_bytes, rows = bytes([1]), bytes([4 * SIDE, 0]), bytes([SIDE])
        settings = palette.ljust(16, b"\0")
        settings += (8 * row_bytes).ljust(32, b"\0") + (8 * rows).ljust(16, b"\0")
        settings = cgutils.make_bytearray(bytearray(settings))
        variable = cgutils.global_constant(builder.module, "tile_settings", settings)
        call_amx(builder, "ldtilecfg", builder.bitcast(variable, ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def end_products(typing_context):
    """Leave the matrix unit as it is where nobody uses it."""

    def codegen(context, builder, sig, args):
        call_amx(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def clear_sum(typing_context):
    """The sum is 0."""

    def codegen(context, builder, sig, args):
        call_amx(builder, "tilezero", SUM)
        return context.get_dummy_value()

    return types.void(), codegen


def define_move(name):
    """An intrinsic f(array, index, row) between the sum and 16 vectors, `row` elements apart."""

    @intrinsic
    def move_sum(typing_context, array, index, row):
        def codegen(context, builder, sig, args):
            array_value, index, row = args
            side, itemsize = (ir.Constant(ir.IntType(64), n) for n in (SIDE - 1, 4))
            extent = builder.add(builder.mul(row, side), ir.Constant(ir.IntType(64), SIDE))
            pointer = byte_pointer(context, builder, array, array_value, index, extent)
            call_amx(builder, name, SUM, pointer, builder.mul(row, itemsize))
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp), codegen

    return move_sum


load_sum, store_sum = define_move("tileloadd64"), define_move("tilestored64")


@intrinsic
def add_products(typing_context, array, left, right):
    """Add to the sum the product of a tile of A and one of B, at array[left] and array[right]."""

    def codegen(context, builder, sig, args):
        array_value, left, right = args

        def load_part(register, start, part):
            at = builder.add(start, ir.Constant(ir.IntType(64), part * PART))
            stride = ir.Constant(ir.IntType(64), 4 * SIDE)
            pointer = byte_pointer(context, builder, array, array_value, at, PART)
            call_amx(builder, "tileloadd64", register + part, pointer, stride)

        loaded = set()
        for i, j in PRODUCTS:
            for register, start, part in ((A1, left, i), (B1, right, j)):
                if (register, part) not in loaded:
                    load_part(register, start, part)
                    loaded.add((register, part))
            call_amx(builder, "tdpbf16ps", SUM, A1 + i, B1 + j)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


def split(builder, vector, value):
    """The three parts of float32 numbers, in the upper halves of integers.

    Two of them are rounded, what is left then fits the third. What is not finite makes it NaN.
    """
    integers, floats = llvm_integers(vector), llvm_vector(vector)
    half = ir.Constant(integers, [0x8000] * vector.lanes)
    upper = ir.Constant(integers, [0xFFFF0000] * vector.lanes)
    parts = []
    for _ in range(2):
        bits = builder.bitcast(value, integers)
        parts.append(builder.and_(builder.add(bits, half), upper))
        value = builder.fsub(value, builder.bitcast(parts[-1], floats))
    parts.append(builder.and_(builder.bitcast(value, integers), upper))
    return parts


@intrinsic
def store_parts(typing_context, array, index, low, high):
    """Store a row of the three parts of a tile at array[index]: pairs of lanes of two vectors."""

    def codegen(context, builder, sig, args):
        array_value, index, low_value, high_value = args
        halves = split(builder, low, low_value), split(builder, low, high_value)
        sixteen = ir.Constant(llvm_integers(low), [16] * low.lanes)
        for i, (first, second) in enumerate(zip(*halves, strict=True)):
            pairs = builder.or_(builder.lshr(first, sixteen), second)
            pairs = builder.bitcast(pairs, llvm_vector(low))
            at = builder.add(index, ir.Constant(ir.IntType(64), i * PART))
            store_vector(context, builder, array, array_value, at, low, pairs)
        return context.get_dummy_value()

    return types.void(array, types.intp, low, high), codegen


@jit
def pack_rows(a, rows, depth, array, packed):
    """Rows of A, whose steps lie side by side, as tiles: all steps of 16 rows, then of the next."""
    for row in range(0, rows, SIDE):
        for k in range(0, depth, DEPTH):
            for r in range(SIDE):
                at = a.begin + min(row + r, rows - 1) * a.row + k
                low = simd.load_first(a.array, at, depth - k)
                high = simd.load_first(a.array, at + SIDE, depth - k - SIDE)
                store_parts(array, packed + r * SIDE, low, high)
            packed += PARTS


@jit
def pack_transposed(a, rows, depth, array, packed, room):
    """The same where rows of A lie side by side, by way of two squares at `room`."""
    places = simd.row_offsets(0, SIDE, SIDE, SIDE)
    for row in range(0, rows, SIDE):
        for k in range(0, depth, DEPTH):
            for step in (k, k + SIDE):
                steps = simd.row_offsets(min(step, depth - 1), depth, a.step, SIDE)
                square = simd.tile_load_first(
                    simd.tile_zeros(a.array, SIDE, 1), a.array, a.begin + row, steps, rows - row
                )
                square = simd.keep_first(simd.tile_transpose(square), depth - step, 0)
                simd.tile_store(array, room + (step - k) * SIDE, places, square, SIDE)
            for r in range(0, PART, SIDE):
                low, high = simd.load(array, room + r), simd.load(array, room + PART + r)
                store_parts(array, packed + r, low, high)
            packed += PARTS


@jit
def pack_columns(b, depth, packed):
    """A vector's width of B as tiles. What is beyond the depth does not matter: in A it is 0."""
    for k in range(0, depth, DEPTH):
        for step in range(k, k + SIDE):
            low = simd.load(b.array, b.begin + min(step, depth - 1) * b.row)
            high = simd.load(b.array, b.begin + min(step + SIDE, depth - 1) * b.row)
            store_parts(b.array, packed + (step - k) * SIDE, low, high)
        packed += PARTS


@jit
def pack_transposed_columns(b, depth, columns, packed, room):
    """The same of a transposed B, whose columns are `columns` rows of it, if there are so many."""
    array = b.array
    places = simd.row_offsets(0, SIDE, SIDE, SIDE)
    sources = simd.row_offsets(0, columns, b.row, SIDE)
    for k in range(0, depth, DEPTH):
        for step in (k, k + SIDE):
            square = simd.tile_load_first(
                simd.tile_zeros(array, SIDE, 1), array, b.begin + step, sources, depth - step
            )
            square = simd.keep_first(simd.tile_transpose(square), columns, 0)
            simd.tile_store(array, room + (step - k) * SIDE, places, square, SIDE)
        for r in range(0, PART, SIDE):
            low, high = simd.load(array, room + r), simd.load(array, room + PART + r)
            store_parts(array, packed + r, low, high)
        packed += PARTS


@jit
def finish(array, sums, out, rows):
    """Add the start, if any, to the first `rows` rows of a tile, and store what becomes of it."""
    for r in range(rows):
        y = simd.load(array, sums + r * SIDE)
        if out.start >= 0:
            y = simd.load(out.array, out.start + r * out.row) + y
        y = activated(y, array, out.activation, r * out.row)
        simd.store(out.array, out.begin + r * out.row, y)


def amx_room(rows: int, depth: int) -> int:
    """Elements that amx_matmul packs a panel in."""
    tiles = -(-min(depth, PANEL_DEPTH) // DEPTH) * PARTS
    return 2 * PART + tiles * (1 + -(-min(rows, PANEL_ROWS) // SIDE))


@jit
def amx_matmul(a, b, out, shape, room):
    """As matmul, for an A of row or step 1; room: where amx_room elements fit in B's array."""
    array, rows, depth = b.array, shape.rows, shape.depth
    begin_products()
    for k in range(0, max(1, depth), PANEL_DEPTH):
        steps = min(PANEL_DEPTH, depth - k)
        tiles = (steps + DEPTH - 1) // DEPTH * PARTS
        right, left = room + 2 * PART, room + 2 * PART + tiles
        first = out.start if k == 0 else out.begin
        last = out.activation if k + steps == depth else IDENTITY
        for top in range(0, rows, PANEL_ROWS):
            height = min(PANEL_ROWS, rows - top)
            panel = Left(a.array, a.begin + top * a.row + k * a.step, a.row, a.step)
            if a.step == 1:
                pack_rows(panel, height, steps, array, left)
            else:
                pack_transposed(panel, height, steps, array, left, room)
            for column in range(0, shape.columns, SIDE):
                if b.transposed:
                    corner = Right(array, b.begin + column * b.row + k, b.row, True)
                    pack_transposed_columns(corner, steps, shape.columns - column, right, room)
                else:
                    corner = Right(array, b.begin + k * b.row + column, b.row, False)
                    pack_columns(corner, steps, right)
                for row in range(0, height, SIDE):
                    place = (top + row) * out.row + column
                    start = moved(first, place)
                    whole = height - row >= SIDE
                    if whole and start >= 0:
                        load_sum(out.array, start, out.row)
                        start = NONE
                    else:
                        clear_sum()
                    for i in range(0, tiles, PARTS):
                        add_products(array, left + row // SIDE * tiles + i, right + i)
                    if whole and last == IDENTITY:
                        store_sum(out.array, out.begin + place, out.row)
                    else:
                        store_sum(array, room, SIDE)
                        tile = Result(
                            out.array, out.begin + place, out.row, start, moved(last, place)
                        )
                        finish(array, room, tile, min(SIDE, height - row))
    end_products()


@jit
def large_matmul(a, b, out, shape, room):
    """As matmul, on the matrix unit if the product is large."""
    if min(shape.rows, shape.depth, shape.columns) >= AMX_LEAST:
        amx_matmul(a, b, out, shape, room)
    else:
        matmul(a, b, out, shape, room)
