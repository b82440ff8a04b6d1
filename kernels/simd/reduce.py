"""From the lanes of a vector to one number, and to running totals."""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegpt.kernels.simd.lanewise import lanewise
from tapegpt.kernels.simd.types import (
    add_lanes,
    broadcast,
    call_intrinsic,
    constant,
    llvm_float,
    vectors_of,
)

# Sums of more numbers are made of sums of so many, which float64 adds up: in a float32 sum of
# millions a number is rounded to that sum's last places, and four digits are lost.
FEW = 64


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
def sum_lanes(typing_context, a):
    """The sum of all lanes of a vector, or of a tile, a scalar."""

    def codegen(context, builder, sig, args):
        total = reduce(builder.fadd, vectors_of(builder, a, args[0]))
        return add_lanes(builder, a.vector, total)

    return a.dtype(a), codegen


@lanewise
def totals(builder, vector, a):
    """The sum of all lanes, in every lane."""
    distance = vector.lanes // 2
    mask = ir.VectorType(ir.IntType(32), vector.lanes)
    while distance > 0:
        partners = ir.Constant(mask, [lane ^ distance for lane in range(vector.lanes)])
        a = builder.fadd(a, builder.shuffle_vector(a, a, partners))
        distance //= 2
    return a


@intrinsic
def max_lanes(typing_context, a):
    """The largest lane, a scalar."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(
            builder, "vector.reduce.fmax", a, args, result=llvm_float(a.dtype), fastmath=("nnan",)
        )

    return a.dtype(a), codegen


@lanewise
def running_sums(builder, vector, a):
    """The sum of lanes 0 to i, for every lane i."""
    zeros, lanes = constant(vector, 0.0), vector.lanes
    mask = ir.VectorType(ir.IntType(32), lanes)
    distance = 1
    while distance < lanes:
        # Lane numbers below `lanes` are of the zeros, the others are of the total.
        before = ir.Constant(mask, [lanes + i - distance for i in range(lanes)])
        a = builder.fadd(a, builder.shuffle_vector(zeros, a, before))
        distance *= 2
    return a


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
def lowest_bit(typing_context, bits):
    """The number of the lowest bit that is set."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.intp), codegen
