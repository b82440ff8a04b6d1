"""Operations of one's own: a formula, and two functions over rows and columns.

python examples/new_operation.py
"""

import numpy as np

from tapegpt import Tape, elementwise, operation


@elementwise
def swish(x, beta):
    """x sigmoid(beta x) (Ramachandran et al. 2017): the gradient follows from the formula."""
    return x / (1 + (-(x * beta)).exp())


@operation(check=True)  # compares the gradient with differences at the first use
def add_row(out, x, row):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = x[r, c] + row[0, c]


@add_row.backward
def _(dout, out, x, row, dx, drow):
    for r in range(dout.shape[0]):
        for c in range(dout.shape[1]):
            dx[r, c] += dout[r, c]
            drow[0, c] += dout[r, c]


def main():
    rng = np.random.default_rng(0)
    tape = Tape()
    x, beta = tape.parameter(rng.normal(size=(4, 3))), tape.parameter(np.ones((4, 3)))
    row = tape.parameter(rng.normal(size=(1, 3)))
    loss = tape.mean(swish(add_row(x, row), beta))
    tape.backward(loss)
    print("loss", tape.value(loss))
    print("gradient of the row", tape.grad(row))
    return tape.value(loss), tape.grad(row)


if __name__ == "__main__":
    main()
