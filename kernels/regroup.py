"""out = x with the columns of every row moved: groups of `old` columns become groups of `new`.

Columns beyond the old width are zero, columns beyond the new one are left out.
"""

from tapegpt.kernels.jit import inlined, jit
from tapegpt.kernels.rows import row_range
from tapegpt.kernels.simd import padded


@inlined
def copy_groups(source, x, old_row, old, target, out, new_row, new, count, first, last, add):
    """The `count` groups of each row from x on, `old` apart, to out on, `new` apart."""
    for r in range(first, last):
        for g in range(count):
            for i in range(min(old, new)):
                value = source[x + r * old_row + g * old + i]
                at = out + r * new_row + g * new + i
                target[at] = target[at] + value if add else value


# operands: rows, groups in a row, old, new, x; what a copy leaves out stays 0
@jit
def regroup_forward(values, operands, inputs, out, at, window):
    count, old, new, x = operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 4]
    old_row, new_row = padded(values, count * old), padded(values, count * new)
    first, last = row_range(operands[at], window)
    copy_groups(values, x, old_row, old, values, out, new_row, new, count, first, last, False)


@jit
def regroup_backward(values, grads, operands, inputs, out, at, fresh, window):
    count, old, new, x = operands[at + 1], operands[at + 2], operands[at + 3], operands[at + 4]
    old_row, new_row = padded(values, count * old), padded(values, count * new)
    first, last = row_range(operands[at], window)
    copy_groups(grads, out, new_row, new, grads, x, old_row, old, count, first, last, not fresh & 1)
