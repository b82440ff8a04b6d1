"""How a program lies in memory, and which rows of a batch an operation works on.

Shapes in the kernels: B documents, T positions, C columns, H heads; R rows, of a packed batch the
positions of all its documents, at most B T.

A tape is five flat arrays:

    values    float[nodes]        value of every node; the parameters come first
    grads     float[nodes]        gradient of the root with respect to every node
    records   uint32[count, 4]    one row per operation, in the order they were recorded
    operands  int64[...]          argument lists of the records that need more than two
    inputs    int64[...]          token ids, positions, targets: what changes between replays,
                                  and the choices that records make

A node id is an index into `values` and `grads`. A scalar node is one id. An array node is a run
of ids that starts on a 64-byte boundary, row after row, each row padded with zeros to whole
vectors:

    values:  | parameters ........ | 3.0 | 2.0 | 6.0 | row 0 ... 0 0 | row 1 ... 0 0 | ...
             ^ 0                   ^ num_params      ^ id of an array node, 2 rows

A record of a scalar operation is (opcode, out, a, b), b unused where there is one operand. That of
a multiply_add has above the OPCODE_BITS of its opcode how many nodes before `out` the sum lies that
it goes on with. Every other record is (opcode, out, at, back), with its arguments from operands[at]
on, in the order of the fields that its file declares. The first argument of an array operation is
its number of rows, or BATCH for the rows of the batch that is being replayed. Some operations on
scalars have several results, the nodes from `out` on: their first argument is how many.

For the reverse sweep an array operation has a second list:

    operands[back : ]  overwrite | dout | dx of every differentiable operand | scratch

Bit i of `overwrite` says that the i-th of these gradients is written here first, so the kernel
overwrites it instead of adding to it and nobody has to clear it. The others are indices into
`grads`: the nodes themselves, as recorded, or where graph/memory_plan.py has moved them.
"""

from typing import NamedTuple

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.simd import lanes

OPCODE_BITS = 12
OPCODE = (1 << OPCODE_BITS) - 1  # where an opcode is, in the first field of a record
FARTHEST_SUM = (1 << (32 - OPCODE_BITS)) - 1  # nodes

BATCH = -1
NONE = -1
# In a record's place for the list that its reverse sweep reads: the operation is left out there.
NOTHING_BACK = 2**32 - 1

# Vectors in a row from which on it is better that their number is odd: 512 bytes.
LONG_ROW = 512 // VECTOR_BYTES


class BatchRange(NamedTuple):
    """The part of the batch that a sweep covers: positions, and their rows, the ends excluded."""

    first_position: int
    end_position: int
    first_row: int
    end_row: int


@inlined
def row_range(rows, batch_range):
    """First row and the one after the last: all `rows`, or those of the batch in its range."""
    if rows == BATCH:
        return batch_range.first_row, batch_range.end_row
    return 0, rows


def stride(width: int, lanes: int) -> int:
    """Elements from one row of an array to the next: whole vectors, an odd number if many.

    A column of long rows a power of two apart would lie in a few sets of the cache.
    """
    vectors = -(-width // lanes)
    if vectors >= LONG_ROW and vectors % 2 == 0:
        vectors += 1
    return vectors * lanes


@inlined
def padded(array, width):
    """The smallest whole number of vectors, in elements, that holds `width` elements."""
    count = lanes(array)
    return (width + count - 1) // count * count


jitted_stride = inlined(stride)


@inlined
def row_stride(array, width):
    """`stride` in a kernel, of rows of `width` elements."""
    return jitted_stride(width, lanes(array))
