"""A program for test_bounds.py, to be run where NUMBA_BOUNDSCHECK is 1 and with its path.

    python out_of_bounds.py accesses DTYPE     every kind of access
    python out_of_bounds.py operations [NAME]  an operation, or all, with tampered arguments

Prints what it has found as JSON. An access that is not checked ends it with a segmentation fault,
or is in the list of those that went unnoticed.
"""

import json
import sys
from functools import partial
from itertools import product

import numpy as np
from ops.catalogue import CATALOGUE, Draw, Recorded

from tapegpt.kernels.compile.cpu import MATRIX_UNIT
from tapegpt.kernels.compile.indirect_call import (
    BACKWARD,
    FORWARD,
    as_pointer,
    read_record,
)
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.layout import OPCODE
from tapegpt.kernels.ops.product.amx import (
    begin_products,
    clear_sum,
    end_products,
    load_sum,
    store_sum,
)
from tapegpt.kernels.ops.scalar.formulas import Formula
from tapegpt.kernels.registry import OPERATIONS, array_op
from tapegpt.kernels.simd import (
    add_listed,
    advance,
    lanes,
    listed_offsets,
    load,
    load_first,
    load_lanes,
    load_listed,
    row_offsets,
    row_pointers,
    splat,
    square_fma,
    store,
    store_part,
    sum_lanes,
    tail_pointers,
    tile_fma,
    tile_fma_rows,
    tile_load,
    tile_load_first,
    tile_outer,
    tile_store,
    tile_store_pieces,
    tile_zeros,
)
from tapegpt.tape import Tape
from tapegpt.tape.alignment import aligned_zeros

ONE_ROW = np.zeros(16, np.int64)  # offsets

# Every kind of access from the element i on: of the array `a`, with `b` for what else is read, and
# `n` for a list.


@jit
def get(a, b, n, i):
    return as_pointer(a)[i]


@jit
def put(a, b, n, i):
    as_pointer(a)[i] = 1
    return a[0]


@jit
def one_record(a, b, n, i):
    return read_record(as_pointer(n), i)[0]


@jit
def load_vector(a, b, n, i):
    return sum_lanes(load(a, i))


@jit
def load_four(a, b, n, i):
    return sum_lanes(load_lanes(a, i, 4))


@jit
def store_vector(a, b, n, i):
    store(a, i, splat(a, 1))
    return a[0]


@jit
def store_three(a, b, n, i):
    store_part(a, i, splat(a, 1), 3)
    return a[0]


@jit
def listed(a, b, n, i):
    n[0] = n[1] = i
    return sum_lanes(load_listed(a, n, 0, 2))


@jit
def listed_places(a, b, n, i):
    return sum_lanes(load_listed(a, n, i, 2))


@jit
def add_to_listed(a, b, n, i):
    n[0] = n[1] = i
    add_listed(a, n, 0, load_lanes(b, 0, 2))
    return a[0]


@jit
def offsets(a, b, n, i):
    tile = tile_load(tile_zeros(a, 2, 1), a, 0, listed_offsets(n, i, 0, 2, 1, 2))
    return sum_lanes(tile)


@jit
def load_tile(a, b, n, i):
    return sum_lanes(tile_load(tile_zeros(a, 2, 2), a, i, row_offsets(0, 2, 3, 2)))


@jit
def load_pieces(a, b, n, i):
    size = lanes(a)
    places = listed_offsets(n, 0, 0, size, 1, size)
    return sum_lanes(tile_load(tile_zeros(a, 2, 1), a, i, places))


@jit
def store_tile(a, b, n, i):
    tile_store(a, i, row_offsets(0, 2, 3, 2), tile_zeros(a, 2, 2), 2)
    return a[0]


@jit
def store_pieces(a, b, n, i):
    size = lanes(a)
    places = listed_offsets(n, 0, 0, size, 1, size)
    tile_store_pieces(a, i, places, tile_zeros(a, 2, 1), size, 1)
    return a[0]


@jit
def fma_left(a, b, n, i):
    tile = tile_fma(tile_zeros(a, 4, 1), row_pointers(a, i, 2, 4), b, 0)
    return sum_lanes(tile)


@jit
def fma_left_further_on(a, b, n, i):
    left = advance(row_pointers(a, 0, 1, 4), i)
    return sum_lanes(tile_fma(tile_zeros(a, 4, 1), left, b, 0))


@jit
def fma_tail(a, b, n, i):
    left = advance(tail_pointers(a, 0, row_offsets(0, 4, 1, 4)), i)
    return sum_lanes(tile_fma(tile_zeros(a, 4, 1), left, b, 0))


@jit
def fma_right(a, b, n, i):
    return sum_lanes(tile_fma(tile_zeros(a, 4, 2), row_pointers(b, 0, 1, 4), a, i))


@jit
def outer_left(a, b, n, i):
    left, right = row_pointers(a, i, 1, 2), row_pointers(b, 0, 1, 2)
    return sum_lanes(tile_outer(tile_zeros(a, 2, 2), left, right))


@jit
def outer_right(a, b, n, i):
    left, right = row_pointers(b, 0, 1, 2), row_pointers(a, i, 1, 2)
    return sum_lanes(tile_outer(tile_zeros(a, 2, 2), left, right))


@jit
def square_left(a, b, n, i):
    square = tile_zeros(b, lanes(b), 1)
    return sum_lanes(square_fma(tile_zeros(a, 2, 1), row_pointers(a, i, 3, 2), square))


@jit
def gathered_rows(a, b, n, i):
    one = splat(a, 1)
    return sum_lanes(tile_fma_rows(tile_zeros(a, 2, 1), a, n, 0, i, one, one))


@jit
def load_first_three(a, b, n, i):
    return sum_lanes(load_first(a, i, 3))


@jit
def load_tile_first_three(a, b, n, i):
    tile = tile_load_first(tile_zeros(a, 3, 1), a, i, row_offsets(0, 3, 1, 3), 3)
    return sum_lanes(tile)


@jit
def load_of_matrix_unit(a, b, n, i):
    begin_products()
    load_sum(a, i, 1)
    end_products()
    return a[0]


@jit
def store_of_matrix_unit(a, b, n, i):
    begin_products()
    clear_sum()
    store_sum(a, i, 1)
    end_products()
    return a[0]


def accesses(size):
    """How many elements each access takes, of `a` or of the list, if vectors have `size` lanes."""
    of_unit = {load_of_matrix_unit: 15 + 16, store_of_matrix_unit: 15 + 16}
    return {
        **(of_unit if MATRIX_UNIT and size == 16 else {}),
        load_first_three: 3,
        load_tile_first_three: 5,
        get: 1,
        put: 1,
        load_vector: size,
        load_four: 4,
        store_vector: size,
        store_three: 3,
        listed: 1,
        add_to_listed: 1,
        load_tile: 3 + 2 * size,
        load_pieces: 2,
        store_tile: 3 + 2 * size,
        store_pieces: 1,
        fma_left: 7,
        fma_left_further_on: 4,
        fma_tail: 4,
        fma_right: 2 * size,
        outer_left: size + 1,
        outer_right: size + 1,
        square_left: 3 + size,
        gathered_rows: size,
    }, {listed_places: 2, offsets: 2}


def raises(function, *arguments):
    try:
        function(*arguments)
    except (IndexError, ValueError):  # beyond an array, or a loop whose step is 0
        return True
    return False


def check_accesses(dtype):
    """The accesses that raise within an array, or do not beyond it: (name, place, length)."""
    count, wrong = 5 * 16 + 3, []
    of_array, of_list = accesses(Tape(dtype).lanes)
    tried = 0
    for function, extent in {**of_array, **of_list}.items():
        length = count if function in of_array else len(ONE_ROW)
        for i, outside in (
            (0, False),
            (length - extent, False),
            (-1, True),
            (length - extent + 1, True),
            (2**40, True),
            (-(2**40), True),
        ):
            a, b = (aligned_zeros(count, np.dtype(dtype)) for _ in range(2))
            tried += 1
            if raises(function, a, b, ONE_ROW.copy(), i) != outside:
                wrong.append([function.__name__, i, length])
    # A record is four numbers.
    records = np.zeros((5, 4), np.uint32)
    for i, outside in ((0, False), (4, False), (5, True), (-1, True), (2**40, True)):
        tried += 1
        if raises(one_record, a, b, records, i) != outside:
            wrong.append(["read_record", i, len(records)])
    return {"tried": tried, "wrong": wrong}


# Beyond every array of these tapes, and near enough for a loop that reads nothing to end.
FAR = 2**20


def record_case(name):
    """A small case of an operation, swept once."""
    draw = Draw(seed=1, most=7)
    return Recorded(CATALOGUE[name](draw), draw, "float32")


def numbers_of(recorded):
    """All numbers that say what an operation does: (its name, name of the list, place in it)."""
    (first, begin), (_, end) = recorded.extent
    lists = {}
    for i, (opcode, _, at, back) in enumerate(recorded.records().tolist(), first):
        operation = OPERATIONS[opcode & OPCODE]
        for place in range(4 * i + 1, 4 * i + 4):
            yield operation.name, "_records", place
        if not isinstance(operation, Formula):
            lists[at] = operation.name
        if array_op(opcode & OPCODE):
            lists[back] = operation.name
    for place in range(begin, end):
        yield lists[max(start for start in lists if start <= place)], "_operands", place


def check_operations(names):
    """How often tampering with a number was noticed, by operation, forward and backward."""
    tried, noticed = 0, {}
    for name in names:
        numbers = list(numbers_of(record_case(name)))
        for (operation, array, place), value in product(numbers, (2**32 - 1, -1, FAR, -FAR)):
            if array == "_records" and value != 2**32 - 1:
                continue
            for direction in (FORWARD, BACKWARD):
                recorded = record_case(name)
                tape = recorded.tape
                getattr(tape, array)[place] = value
                backward = partial(tape.backward, recorded.root)
                # The last line tells what ended the process.
                print(name, array, place, value, file=sys.stderr)
                tried += 1
                counts = noticed.setdefault(operation, [0, 0])
                counts[direction] += raises(tape.forward if direction == FORWARD else backward)
    return {"tried": tried, "noticed": noticed}


if __name__ == "__main__":
    if sys.argv[1] == "accesses":
        print(json.dumps(check_accesses(sys.argv[2])))
    else:
        print(json.dumps(check_operations(sys.argv[2:] or CATALOGUE)))
