"""Opcodes, and what passes need to know about the arguments of each."""

# Scalar operations, inlined into the sweeps.
ADD = 0
MUL = 1
SUB = 2
DIV = 3
NEG = 4
SCALE = 5
POW = 6
EXP = 7
LOG = 8
RELU = 9
TANH = 10
SOFTPLUS = 11
DETACH = 12
SUM = 13
DOT = 14
DOT_RUN = 15
FIRST_SEVERAL = 16  # the two from here on have several results
LOOKUP = 16
SOFTMAX = 17

# Operations called by address, see table.py.
FIRST_CALLED = 18
MAX = 18
RUN = 19
DOT_ROWS = 20
DOT_COLUMNS = 21
EMBED = 22
LINEAR = 23
UNIT_LINEAR = 24  # with products that are large enough for a matrix unit, see amx.py
RMSNORM = 25
ATTENTION = 26  # to 30: for squares of 1, 2, 4, 8 and 16 columns, see lanes.py
CROSS_ENTROPY = 31
ARRAY_SOFTMAX = 32
ARRAY_RELU = 33
ARRAY_ADD = 34
ARRAY_SCALE = 35
ARRAY_MEAN = 36
TOPK = 37
GATHERED_LINEAR = 38
DROPOUT = 39
PREVIOUS = 40
CARRY = 41  # no kernel: where the stretch that PREVIOUS begins ends, see sweep.py

# Rows of the table of addresses: one for every opcode, and one for stretches of scalar records.
SCALARS = 42
COUNT = 43

LINEARS = frozenset((LINEAR, UNIT_LINEAR))

# Operations on scalars with several results.
SEVERAL = frozenset((LOOKUP, SOFTMAX, RUN, DOT_ROWS, DOT_COLUMNS))

# What a reverse sweep does with arrays, as places in the argument list of an operation: those that
# the operation passes a gradient to (to those of weights and tables it always adds, at their own
# place), and those whose gradients are room for its kernel.
DIFFERENTIABLE = {
    EMBED: (),
    LINEAR: (3, 5),
    UNIT_LINEAR: (3, 5),
    RMSNORM: (2,),
    **{ATTENTION + i: (3, 4, 5) for i in range(5)},
    CROSS_ENTROPY: (2,),
    ARRAY_SOFTMAX: (2,),
    ARRAY_RELU: (2,),
    ARRAY_ADD: (2, 3),
    ARRAY_SCALE: (2,),
    ARRAY_MEAN: (2,),
    GATHERED_LINEAR: (3, 7),
    DROPOUT: (2, 6),
    PREVIOUS: (2,),
}
SCRATCH = {ATTENTION + i: (9, 10, 11, 12, 13) for i in range(5)}
