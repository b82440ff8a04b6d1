"""A program for test_bounds.py, to be run where NUMBA_BOUNDSCHECK is 1.

    python tests/out_of_bounds.py accesses DTYPE     every kind of access
    python tests/out_of_bounds.py operations [NAME]  an operation, or all, with tampered arguments

Prints what it has found as JSON. An access that is not checked ends it with a segmentation fault,
or is in the list of those that went unnoticed.
"""

import json
import sys
from functools import partial
from itertools import product

import numpy as np

from tapegpt.kernels.compile.cpu import MATRIX_UNIT
from tapegpt.kernels.compile.indirect_call import (
    BACKWARD,
    FORWARD,
    as_pointer,
    read_record,
)
from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.ops.product.amx import (
    begin_products,
    clear_sum,
    end_products,
    load_sum,
    store_sum,
)
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
    tile_total,
    tile_zeros,
)
from tapegpt.tape import Input, Tape
from tapegpt.tape.storage import aligned_zeros

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
    return tile_total(tile)


@jit
def load_tile(a, b, n, i):
    return tile_total(tile_load(tile_zeros(a, 2, 2), a, i, row_offsets(0, 2, 3, 2)))


@jit
def load_pieces(a, b, n, i):
    size = lanes(a)
    places = listed_offsets(n, 0, 0, size, 1, size)
    return tile_total(tile_load(tile_zeros(a, 2, 1), a, i, places))


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
    return tile_total(tile)


@jit
def fma_left_further_on(a, b, n, i):
    left = advance(row_pointers(a, 0, 1, 4), i)
    return tile_total(tile_fma(tile_zeros(a, 4, 1), left, b, 0))


@jit
def fma_tail(a, b, n, i):
    left = advance(tail_pointers(a, 0, row_offsets(0, 4, 1, 4)), i)
    return tile_total(tile_fma(tile_zeros(a, 4, 1), left, b, 0))


@jit
def fma_right(a, b, n, i):
    return tile_total(tile_fma(tile_zeros(a, 4, 2), row_pointers(b, 0, 1, 4), a, i))


@jit
def outer_left(a, b, n, i):
    left, right = row_pointers(a, i, 1, 2), row_pointers(b, 0, 1, 2)
    return tile_total(tile_outer(tile_zeros(a, 2, 2), left, right))


@jit
def outer_right(a, b, n, i):
    left, right = row_pointers(b, 0, 1, 2), row_pointers(a, i, 1, 2)
    return tile_total(tile_outer(tile_zeros(a, 2, 2), left, right))


@jit
def square_left(a, b, n, i):
    square = tile_zeros(b, lanes(b), 1)
    return tile_total(square_fma(tile_zeros(a, 2, 1), row_pointers(a, i, 3, 2), square))


@jit
def gathered_rows(a, b, n, i):
    one = splat(a, 1)
    return tile_total(tile_fma_rows(tile_zeros(a, 2, 1), a, n, 0, i, one, one))


@jit
def load_first_three(a, b, n, i):
    return sum_lanes(load_first(a, i, 3))


@jit
def load_tile_first_three(a, b, n, i):
    tile = tile_load_first(tile_zeros(a, 3, 1), a, i, row_offsets(0, 3, 1, 3), 3)
    return tile_total(tile)


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
    except IndexError:
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


OPERATIONS = {
    "add": lambda t, s, x, w: t.add(s, s),
    "mul": lambda t, s, x, w: t.mul(s, s),
    "sub": lambda t, s, x, w: t.sub(s, s),
    "div": lambda t, s, x, w: t.div(s, s),
    "neg": lambda t, s, x, w: t.neg(s),
    "scale": lambda t, s, x, w: t.scale(s, 2.0),
    "pow": lambda t, s, x, w: t.pow(s, 2.0),
    "exp": lambda t, s, x, w: t.exp(s),
    "log": lambda t, s, x, w: t.log(s),
    "relu": lambda t, s, x, w: t.relu(s),
    "tanh": lambda t, s, x, w: t.tanh(s),
    "softplus": lambda t, s, x, w: t.softplus(s),
    "detach": lambda t, s, x, w: t.detach(s),
    "lookup": lambda t, s, x, w: t.lookup([s], t.input([0], 1), 0, 1),
    "sum": lambda t, s, x, w: t.sum([s] * 21),
    "max": lambda t, s, x, w: t.max([s] * 21),
    "dot": lambda t, s, x, w: t.dot([s, s, 0], [s, s, s]),
    "dot_run": lambda t, s, x, w: t.dot(range(40), range(40)),
    "softmax_of": lambda t, s, x, w: t.softmax_of([s] * 21),
    "run": lambda t, s, x, w: t.runs("mul", range(40), range(40)),
    "dot_rows": lambda t, s, x, w: t.dots(ROWS, VECTORS),
    "dot_columns": lambda t, s, x, w: t.dots(COLUMNS, VECTORS),
    "embed": lambda t, s, x, w: t.embed((w, [0, 1, 0]), (x, [0, 1, 2])),
    "linear": lambda t, s, x, w: t.linear(x, w, t.array(np.ones((3, 4)))),
    "rmsnorm": lambda t, s, x, w: t.rmsnorm(x),
    "attention": lambda t, s, x, w: t.attention(x, x, x, 2),
    "wide attention": lambda t, s, x, w: t.attention(*[t.array(np.ones((3, 32)))] * 3, 1),
    "cross_entropy": lambda t, s, x, w: t.cross_entropy(x, [0, 1, 0]),
    "softmax": lambda t, s, x, w: t.softmax(x),
    "relu, array": lambda t, s, x, w: t.relu(x),
    "add, array": lambda t, s, x, w: t.add(x, x),
    "scale, array": lambda t, s, x, w: t.scale(x, 2.0),
    "mean": lambda t, s, x, w: t.mean(x),
    "topk": lambda t, s, x, w: t.topk(x, 2),
    "gathered_linear": lambda t, s, x, w: t.gathered_linear(x, t.topk(x, 2), t.parameter_of_six),
    "dropout": lambda t, s, x, w: t.dropout(x, 0.5, t.input([3], 9), x),
    "recurrence": lambda t, s, x, w: t.carry(t.relu(t.add(t.previous(6), t.batch_rows))),
}
ROWS, COLUMNS = np.arange(60).reshape(20, 3), np.arange(60).reshape(3, 20).T
VECTORS = np.tile(range(3), (20, 1))


def make_tape(name):
    """A tape with an operation, its first record and operand, and a root that depends on it."""
    tape = Tape("float32")
    s = int(tape.variables(np.ones(80))[0])
    x, w = tape.array(np.ones((3, 6))), tape.array(np.ones((4, 6)))
    tape.parameter_of_six = tape.array(np.ones((6, 4)))
    batch = tape.batch(2, 3, 4)
    for place, first in enumerate((0, 2, 3, 4), batch.starts):
        tape._inputs[place] = first
    tape.batch_rows = tape.embed((w, batch.tokens))
    begin = len(tape._records), len(tape._operands)
    result = OPERATIONS[name](tape, s, x, w)
    node = int(np.ravel(result)[0]) if not isinstance(result, Input) else s
    end = len(tape._records), len(tape._operands)
    root = tape.mean(node) if tape.shape(node) else node
    return tape, root, begin, end


def check_operations(names):
    """How often tampering with an argument was noticed, forward and backward."""
    tried, noticed = 0, {name: [0, 0] for name in names}
    for name in names:
        _, _, begin, end = make_tape(name)
        places = [("_records", i) for i in range(begin[0], end[0]) if i % 4 > 0]
        places += [("_operands", i) for i in range(begin[1], end[1])]
        for (numbers, i), value in product(places, (2**32 - 1, -1, 2**40, -(2**40))):
            if numbers == "_records" and value != 2**32 - 1:
                continue
            for direction in (FORWARD, BACKWARD):
                tape, root, _, _ = make_tape(name)
                tape.backward(root)
                getattr(tape, numbers)[i] = value
                sweep = tape.forward if direction == FORWARD else partial(tape.backward, root)
                # The last line tells what ended the process.
                print(name, numbers, i - begin[numbers == "_operands"], value, file=sys.stderr)
                tried += 1
                noticed[name][direction] += raises(sweep)
    return {"tried": tried, "noticed": noticed}


if __name__ == "__main__":
    if sys.argv[1] == "accesses":
        print(json.dumps(check_accesses(sys.argv[2])))
    else:
        print(json.dumps(check_operations(sys.argv[2:] or OPERATIONS)))
