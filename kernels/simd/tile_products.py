"""Multiply-adds of whole tiles: the inner loops of matrix products."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegpt.kernels.simd.memory import element_pointer, load_vector
from tapegpt.kernels.simd.tile_rows import check_limits, row_pointer
from tapegpt.kernels.simd.types import (
    broadcast,
    constant,
    llvm_vector,
    multiply_add,
    pack_vectors,
    vectors_of,
)


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
def tile_fma_steps(typing_context, tile, a, a_index, b_index):
    """tile[r, c] + a[a_index + r] * (vector c of row r of a matrix at a[b_index])

    The matrix lies there as a tile does: rows x columns vectors, row after row.
    """

    def codegen(context, builder, sig, args):
        result, array, a_index, b_index = args
        vector = tile.vector
        sums = vectors_of(builder, tile, result)
        for r in range(tile.rows):
            at = builder.add(a_index, ir.Constant(ir.IntType(64), r))
            pointer = element_pointer(context, builder, sig.args[1], array, at)
            element = broadcast(builder, vector, builder.load(pointer))
            for i in range(r * tile.columns, (r + 1) * tile.columns):
                at = builder.add(b_index, ir.Constant(ir.IntType(64), i * vector.lanes))
                right = load_vector(context, builder, sig.args[1], array, at, vector)
                sums[i] = multiply_add(builder, vector, element, right, sums[i])
        return pack_vectors(builder, tile, sums)

    return tile(tile, a, types.intp, types.intp), codegen


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
        rows = vectors_of(builder, tile, result)
        for k in range(square.rows):
            right = builder.extract_value(square_value, k)
            for r in range(tile.rows):
                pointer = builder.gep(starts[r], [ir.Constant(ir.IntType(64), k)])
                check_limits(context, builder, left, pointer)
                element = broadcast(builder, vector, builder.load(pointer))
                rows[r] = multiply_add(builder, vector, element, right, rows[r])
        return pack_vectors(builder, tile, rows)

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
