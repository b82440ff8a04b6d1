"""The operands of matrix products: where they lie, and how."""

from typing import Any, NamedTuple

from tapegpt.kernels.compile.jit import inlined

# The activation of start + A B: none, or ReLU. Any other number is the index in B's array of a mask
# with the layout of out: 0 is stored where the mask is not positive.
IDENTITY, RELU = -1, -2


class Left(NamedTuple):
    """A: element (r, k) lies at array[begin + r row + k step]. A transposed A costs nothing."""

    array: Any
    begin: int
    row: int
    step: int


class Right(NamedTuple):
    """B, or its transpose: whole padded rows, array[begin + k row : ]."""

    array: Any
    begin: int
    row: int
    transposed: bool


class Result(NamedTuple):
    """out = activation(start + A B): whole padded rows, array[begin + r row : ].

    start: its index in `array`, with the layout of out; `begin` to accumulate, -1 for zero.
    """

    array: Any
    begin: int
    row: int
    start: int
    activation: int


class Shape(NamedTuple):
    """A is rows x depth, B depth x columns."""

    rows: int
    depth: int
    columns: int


@inlined
def moved(index, distance):
    """The index `distance` elements on; a negative one means no index, and stays."""
    return index if index < 0 else index + distance


@inlined
def part_of(out, distance):
    """The part of a result that begins `distance` elements after it."""
    return Result(
        out.array,
        out.begin + distance,
        out.row,
        moved(out.start, distance),
        moved(out.activation, distance),
    )
