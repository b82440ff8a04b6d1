"""RMSNorm of every head by itself: QK-norm (Henry et al. 2020; Dehghani et al. 2023).

    out[r, h] = gain x[r, h] / sqrt(mean(x[r, h]^2) + epsilon)

x, out: (R, H head_dim); scales: (R, H), gain / sqrt(...), kept for backward.

dx[r, h] = scale (dout[r, h] - out[r, h] mean(out[r, h] dout[r, h]) / gain^2)
"""

import math
from typing import NamedTuple

import numpy as np

from tapegpt.kernels import simd
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import row_range, row_stride
from tapegpt.kernels.op import ArrayOp, Differentiable, Room, Rows, ScalarNode, Size, readers
from tapegpt.kernels.simd import FEW


class Args(NamedTuple):
    rows: Rows
    n_head: Size
    head_dim: Size
    x: Differentiable
    gain: ScalarNode
    epsilon: ScalarNode
    scales: Room


args, grads_of = readers(Args)


@inlined
def load_columns(array, at, left):
    """The vector at array[at], of which the first `left` columns count; 0 in the other lanes."""
    return simd.keep_first(simd.load(array, at), left, array.dtype.type(0))


@inlined
def store_columns(array, at, vector, left):
    """Store the first `left` columns of a vector, or all."""
    if left >= simd.lanes(array):
        simd.store(array, at, vector)
    else:
        simd.store_part(array, at, vector, left)


@jit
def exact_scale(values, x, count, gain, epsilon):
    """The scale of a head whose squares overflow or vanish, or that is long: by float64."""
    squares = 0.0
    for i in range(x, x + count):
        squares += np.float64(values[i]) ** 2
    mean = squares / count + epsilon
    return gain / math.sqrt(mean) if 0 < mean < math.inf else math.nan


@jit
def forward(values, operands, inputs, out, at, batch_range):
    rows, n_head, head_dim, x, gain, epsilon, scales = args(operands, at)
    row, size = row_stride(values, n_head * head_dim), simd.lanes(values)
    first, last = row_range(rows, batch_range)
    largest = values.dtype.type(1e37 if values.itemsize == 4 else 1e300)
    for r in range(first, last):
        for h in range(n_head):
            begin = r * row + h * head_dim
            squares = simd.splat(values, 0)
            for c in range(0, head_dim, size):
                part = load_columns(values, x + begin + c, head_dim - c)
                squares = simd.fma(part, part, squares)
            mean = np.float64(simd.sum_lanes(squares)) / head_dim + values[epsilon]
            if 1 / largest < mean < largest and head_dim <= FEW * size:
                scale = values[gain] / math.sqrt(mean)
            else:
                scale = exact_scale(values, x + begin, head_dim, values[gain], values[epsilon])
            factor = values.dtype.type(scale)
            values[scales + r * n_head + h] = factor
            for c in range(0, head_dim, size):
                part = simd.load(values, x + begin + c) * factor
                store_columns(values, out + begin + c, part, head_dim - c)


@jit
def backward(values, grads, operands, inputs, out, at, back, batch_range):
    a, g = args(operands, at), grads_of(operands, back)
    row, size = row_stride(values, a.n_head * a.head_dim), simd.lanes(values)
    first, last = row_range(a.rows, batch_range)
    share = -1 / (np.float64(a.head_dim) * values[a.gain] ** 2)
    for r in range(first, last):
        for h in range(a.n_head):
            begin, scale = r * row + h * a.head_dim, values[a.scales + r * a.n_head + h]
            products = simd.splat(values, 0)
            for c in range(0, a.head_dim, size):
                y = load_columns(values, out + begin + c, a.head_dim - c)
                products = simd.fma(y, simd.load(grads, g.dout + begin + c), products)
            mean = simd.splat(values, values.dtype.type(simd.sum_lanes(products) * share))
            for c in range(0, a.head_dim, size):
                y, dout = simd.load(values, out + begin + c), simd.load(grads, g.dout + begin + c)
                passed = simd.fma(y, mean, dout) * scale
                if not g.overwrite_dx:
                    passed = simd.load(grads, g.dx + begin + c) + passed
                store_columns(grads, g.dx + begin + c, passed, a.head_dim - c)


HEAD_NORM = ArrayOp("head_norm", Args, forward, backward, backward_reads=("out",), row_by_row=True)
