"""Muon: a matrix moves by the orthogonal matrix nearest to its momentum (Jordan et al. 2024).

With g the gradient, m the momentum and w the matrix, (R, C):

    m = momentum m + (1 - momentum) g,   u = momentum m + (1 - momentum) g
    w = (1 - rate weight_decay) w - rate sqrt(max(1, R / C)) U V^T,    where u = U S V^T

With cautious decay (L. Chen and others 2025) weight_decay is 0 where w and U V^T differ in sign.

U V^T is approached by steps x = (a + b A + c A^2) x, A = x x^T, of Newton-Schulz's form, each with
coefficients of its own (Polar Express, Amsel and others 2025). The singular values of x must not
exceed 1, and should not be much less. So x begins as u / s, where s^8 is the sum of the eighth
powers of the singular values of u: the squared Frobenius norm of (u u^T)^2, which the first step
needs.

After every step x is a polynomial of the first A, times the first x. So the steps are taken by
square matrices, which are symmetric and commute, and x is multiplied once, at the end: half of the
work for a matrix that is four times as long as wide. Of a symmetric product only what is on and
below the diagonal is computed, block by block. Where R > C, A is x^T x, and x is multiplied from
the right.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import DTypeLike, NDArray

from tapegpt.kernels import simd
from tapegpt.kernels.compile.indirect_call import kernel_type, matrices_signature
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import NONE, padded, row_stride, stride
from tapegpt.kernels.ops.product.matmul import matmul, matmul_room, transpose
from tapegpt.kernels.ops.product.matrix import IDENTITY, Left, Result, Right, Shape
from tapegpt.kernels.registry import address

# a, b and c of every step, by the method of Polar Express for singular values from 0.0091 to 1.
# Those end between 0.69 and 1.30. Smaller ones end smaller: 82 times what they were, at most.
COEFFICIENTS = (
    (8.1308, -23.7671, 17.5625),
    (3.6836, -2.7558, 0.5399),
    (2.7328, -2.0352, 0.4589),
)
STEPS = len(COEFFICIENTS)

# Of s^2, so that rounding brings no singular value above 1: the steps make 3.6 of 1.001.
MARGIN = 1.002

SMALLEST = 1e-30  # a matrix whose momenta are no larger only decays

BLOCK = 32  # columns of a symmetric product that are computed together

# The columns of the list of matrices: the first node, the shape, and the thread that moves it.
FIRST, ROWS, COLUMNS, OWNER = 0, 1, 2, 3


class Muon(NamedTuple):
    """The matrices of a model, and what else their update takes."""

    matrices: NDArray[np.int64]  # flat: four numbers a matrix, see FIRST
    # Flat: begin and end of every stretch of other weights, whole vectors.
    others: NDArray[np.int64]
    other_rate: float  # of those, by the rate of the matrices
    rooms: NDArray[np.floating]  # (threads * room,)
    room: int
    kernel: int  # the address of move_matrices


def kernel_address(dtype: np.dtype[np.floating]) -> int:
    """Where the compiled move_matrices for arrays of this type lies."""
    floats = kernel_type(types.Array(from_dtype(dtype), 1, "C"))
    return int(address(move_matrices, matrices_signature(floats)))


def no_matrices(dtype: DTypeLike) -> Muon:
    """What optimizers without matrices have."""
    all_weights = np.array([0, np.iinfo(np.int64).max])
    return Muon(np.zeros(0, np.int64), all_weights, 1.0, np.zeros(0, dtype), 0, 0)


class Work(NamedTuple):
    """Where in the room of a thread its arrays lie."""

    x: int  # (R, C)
    result: int  # (R, C)
    a: int  # (side, side), side the lesser of R and C
    step: int
    product: int
    spare: int
    panel: int


def room_for(rows: int, columns: int, lanes: int) -> int:
    """Elements that a thread needs to move a matrix of this shape."""
    side, longest = min(rows, columns), max(rows, columns)
    packed = matmul_room(longest, longest, longest, lanes, transposed=True)
    return 2 * rows * stride(columns, lanes) + 4 * side * stride(side, lanes) + packed


@inlined
def places(array, begin, rows, columns):
    """The Work that begins at array[begin]."""
    side = min(rows, columns)
    size, square = rows * row_stride(array, columns), side * row_stride(array, side)
    a = begin + 2 * size
    return Work(begin, begin + size, a, a + square, a + 2 * square, a + 3 * square, a + 4 * square)


@jit
def mirror(array, x, side, row):
    """Copy what is below the diagonal of a (side, side) matrix to what is above it."""
    for j in range(0, side - BLOCK, BLOCK):
        below = Right(array, x + (j + BLOCK) * row + j, row, False)
        transpose(below, side - j - BLOCK, BLOCK, x + j * row + j + BLOCK, row)


@jit
def symmetric_product(array, x, y, out, side, panel):
    """out = x y, all (side, side), where that is symmetric."""
    row = row_stride(array, side)
    for j in range(0, side, BLOCK):
        matmul(
            Left(array, x + j * row, row, 1),
            Right(array, y + j, row, False),
            Result(array, out + j * row + j, row, NONE, IDENTITY),
            Shape(side - j, side, min(BLOCK, side - j)),
            panel,
        )
    mirror(array, out, side, row)


@jit
def gram(array, x, out, rows, columns, panel):
    """out = x x^T, or x^T x where x (rows, columns) has more rows than columns."""
    side, x_row = min(rows, columns), row_stride(array, columns)
    row = row_stride(array, side)
    for j in range(0, side, BLOCK):
        result = Result(array, out + j * row + j, row, NONE, IDENTITY)
        count = min(BLOCK, side - j)
        if rows > columns:
            left, right = Left(array, x + j, 1, x_row), Right(array, x + j, x_row, False)
            matmul(left, right, result, Shape(side - j, rows, count), panel)
        else:
            begin = x + j * x_row
            left, right = Left(array, begin, x_row, 1), Right(array, begin, x_row, True)
            matmul(left, right, result, Shape(side - j, columns, count), panel)
    mirror(array, out, side, row)


@jit
def norm(array, x, side):
    """The Frobenius norm of a (side, side) matrix."""
    size, row, squares = simd.lanes(array), row_stride(array, side), 0.0
    for r in range(side):
        of_row = simd.splat(array, 0)
        for i in range(0, side, size):
            of_lanes = simd.keep_first(simd.load(array, x + r * row + i), side - i, 0)
            of_row = simd.fma(of_lanes, of_lanes, of_row)
        squares += simd.sum_lanes(of_row)
    return math.sqrt(squares)


@jit
def scale(array, x, side, factor):
    """Multiply a (side, side) matrix."""
    factors = simd.splat(array, factor)
    for i in range(x, x + side * row_stride(array, side), simd.lanes(array)):
        simd.store(array, i, simd.load(array, i) * factors)


@jit
def orthogonalise(array, work, rows, columns):
    """result = s U V^T, about, of x = U S V^T. Returns s. Of x = 0 that is 0, without a result."""
    side, size = min(rows, columns), simd.lanes(array)
    row = row_stride(array, side)
    a, step, product, spare = work.a, work.step, work.product, work.spare
    gram(array, work.x, a, rows, columns, work.panel)
    symmetric_product(array, a, a, step, side, work.panel)
    square = MARGIN * norm(array, step, side) ** 0.5  # of s
    if square == 0:
        return 0.0
    scale(array, a, side, 1 / square)
    scale(array, step, side, 1 / square**2)
    for k in range(STEPS):
        if k > 0:
            symmetric_product(array, a, a, step, side, work.panel)
        of_one, of_a, of_square = COEFFICIENTS[k]
        for i in range(0, side * row, size):
            part = simd.load(array, step + i) * array.dtype.type(of_square)
            part = simd.fma(simd.load(array, a + i), simd.splat(array, of_a), part)
            simd.store(array, step + i, part)
        for i in range(side):
            array[step + i * row + i] += array.dtype.type(of_one)
        if k == 0:
            for i in range(0, side * row, size):
                simd.store(array, product + i, simd.load(array, step + i))
        else:
            symmetric_product(array, step, product, spare, side, work.panel)
            product, spare = spare, product
        if k + 1 < STEPS:
            symmetric_product(array, step, a, spare, side, work.panel)
            symmetric_product(array, spare, step, a, side, work.panel)
    x_row = row_stride(array, columns)
    result = Result(array, work.result, x_row, NONE, IDENTITY)
    if rows > columns:
        left, right = Left(array, work.x, x_row, 1), Right(array, product, row, False)
        matmul(left, right, result, Shape(rows, columns, columns), work.panel)
    else:
        left, right = Left(array, product, row, 1), Right(array, work.x, x_row, False)
        matmul(left, right, result, Shape(rows, rows, columns), work.panel)
    return math.sqrt(square)


@jit
def move_matrix(
    values, grads, momenta, rooms, begin, first, shape, momentum, rate, decay, cautious
):
    """Move the matrix at values[first], and clear its gradient.

    rooms[begin : ]: room_for so many elements. decay: the share that weights lose; cautious: only
    where the step brings them nearer to 0. Returns the sum of the weights afterwards, finite if
    they are.
    """
    rows, columns = shape
    work, size = places(rooms, begin, rows, columns), simd.lanes(values)
    row = row_stride(values, columns)
    old, new = simd.splat(values, momentum), simd.splat(values, 1 - momentum)
    largest = zero = simd.splat(values, 0)
    for i in range(0, rows * row, size):
        g = simd.load(grads, first + i) * new
        m = simd.clear_tiny(simd.fma(simd.load(momenta, first + i), old, g))
        u = simd.fma(m, old, g)
        simd.store(momenta, first + i, m)
        simd.store(grads, first + i, zero)
        simd.store(rooms, work.x + i, u)
        largest = simd.maximum(largest, simd.absolute(u))
    # The largest element becomes 1, so that eighth powers neither overflow nor vanish. NaN is never
    # the largest, but stays in x.
    most = np.float64(simd.max_lanes(largest))
    inverse = values.dtype.type(1 / most if most > SMALLEST else 0.0)
    for i in range(work.x, work.x + rows * row, size):
        simd.store(rooms, i, simd.load(rooms, i) * inverse)
    length = orthogonalise(rooms, work, rows, columns)
    moves = length != 0  # also where that is NaN
    step = -rate * math.sqrt(max(1.0, rows / columns)) / length if moves else 0.0
    kept, lost = simd.splat(values, 1 - decay), simd.splat(values, -decay)
    factor, total = simd.splat(values, step), zero
    for r in range(0, rows * row, row):
        for i in range(r, r + padded(values, columns), size):  # beyond that nothing is defined
            w = simd.load(values, first + i)
            if not cautious:
                w = w * kept
            elif moves:
                direction = simd.load(rooms, work.result + i)
                w = simd.fma(simd.where_positive(w * direction, w), lost, w)
            if moves:
                w = simd.fma(simd.load(rooms, work.result + i), factor, w)
            simd.store(values, first + i, w)
            total = total + w
    return np.float64(simd.sum_lanes(total))


@jit
def move_matrices(
    values, grads, momenta, rooms, begin, matrices, count, thread, momentum, rate, decay, cautious
):
    """Move a thread's matrices of the list; returns the sum of their weights.

    count: of the integers in the list, which has four for every matrix.
    """
    total = 0.0
    for at in range(0, count, 4):
        if matrices[at + OWNER] == thread:
            total += move_matrix(
                values,
                grads,
                momenta,
                rooms,
                begin,
                matrices[at + FIRST],
                (matrices[at + ROWS], matrices[at + COLUMNS]),
                momentum,
                rate,
                decay,
                cautious,
            )
    return total
