"""How a program lies in memory, and which rows of a batch an operation works on.

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

A record of a scalar operation is (opcode, out, a, b), b unused where there is one operand. Every
other record is (opcode, out, at, back), with its arguments at operands[at], operands[at + 1], ...
in the order that the operation's kernel unpacks them. The first argument of an array operation is
its number of rows, or BATCH for the rows of the batch that is being replayed. Some operations on
scalars have several results, the nodes from `out` on: their first argument is how many.

For the reverse sweep an array operation has a second list:

    operands[back : ]  fresh | dout | dx of every differentiable operand | scratch

Bit i of `fresh` says that the i-th of these gradients is written here first, so the kernel
overwrites it instead of adding to it and nobody has to clear it. The others are indices into
`grads`: the nodes themselves, as recorded, or where share_gradients in passes.py has moved them.
"""

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.simd import lanes

BATCH = -1
NONE = -1

# Vectors in a row from which on it is better that their number is odd: 512 bytes.
LONG_ROW = 512 // VECTOR_BYTES


# A window is (first position, last position, first row, last row), the last ones excluded: the
# part of the batch that this sweep covers.
@inlined
def row_range(count, window):
    """First row and the one after the last: all `count` rows, or the batch's rows in the window."""
    if count == BATCH:
        return window[2], window[3]
    return 0, count


@inlined
def padded(array, width):
    """The smallest whole number of vectors, in elements, that holds `width` elements."""
    count = lanes(array)
    return (width + count - 1) // count * count


@inlined
def row_stride(array, width):
    """Elements from one row of an array to the next: whole vectors, an odd number if many.

    A column of long rows a power of two apart would lie in a few sets of the cache.
    """
    elements = padded(array, width)
    if elements >= LONG_ROW * lanes(array) and elements // lanes(array) % 2 == 0:
        elements += lanes(array)
    return elements
