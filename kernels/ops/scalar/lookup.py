"""out = `count` nodes, inputs[slot] rows of `stride` nodes beyond the node `base`."""

from typing import NamedTuple

from tapegpt.kernels.compile.jit import inlined
from tapegpt.kernels.op import Column, ListOp, readers


class Args(NamedTuple):
    length: Column
    base: Column
    slot: Column
    stride: Column


args, _ = readers(Args)


@inlined
def lookup_forward(values, operands, inputs, out, at):
    count, base, slot, stride = args(operands, at)
    found = base + inputs[slot] * stride
    for i in range(count):
        values[out + i] = values[found + i]


@inlined
def lookup_backward(values, grads, operands, inputs, out, dout, at):
    count, base, slot, stride = args(operands, at)
    found = base + inputs[slot] * stride
    for i in range(count):
        grads[found + i] += grads[out + i]


LOOKUP = ListOp("lookup", Args, lookup_forward, lookup_backward, several=True)
