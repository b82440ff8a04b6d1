"""Tiles of vectors: load, store, transpose and sum."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.simd.memory import element_pointer, load_masked, store_first, store_vector
from tapegpt.kernels.simd.types import (
    Tile,
    constant,
    lanes_below,
    llvm_float,
    pack_vectors,
    vectors_of,
)


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
        rows = vectors_of(builder, tile, args[0])
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
        return pack_vectors(builder, tile, rows)

    return tile(tile), codegen


@intrinsic
def tile_column_sums(typing_context, tile):
    """The sum of all rows of a tile: a tile of one row."""
    result = Tile(tile.dtype, 1, tile.columns)

    def codegen(context, builder, sig, args):
        vectors = vectors_of(builder, tile, args[0])
        rows = [vectors[i : i + tile.columns] for i in range(0, len(vectors), tile.columns)]
        while len(rows) > 1:
            half = len(rows) // 2
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [[builder.fadd(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]
        return pack_vectors(builder, result, rows[0])

    return result(tile), codegen


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
        rows = vectors_of(builder, tile, args[0])
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


@intrinsic
def tile_keep_pieces(typing_context, tile, count):
    """Of a tile transposed after it was loaded in pieces: zeros where piece `count` and later are.

    Pieces are as wide as the tile has rows, and numbered row after row.
    """
    pieces = tile.vector.lanes // tile.rows
    numbers = [i % tile.rows * pieces + i // tile.rows for i in range(tile.vector.lanes)]

    def codegen(context, builder, sig, args):
        vector, zero = tile.vector, constant(tile.vector, 0.0)
        kept = lanes_below(builder, vector, numbers, args[1])
        rows = [builder.select(kept, row, zero) for row in vectors_of(builder, tile, args[0])]
        return pack_vectors(builder, tile, rows)

    return tile(tile, types.intp), codegen


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
