"""Threads that train one model together.

Every thread has a copy of the program to run its part of a batch on:

    thread     values                 grads
    0          parameters | ...       gradient of its part of the batch | ...
    1          copy       | ...       gradient of its part              | ...

Then each thread adds up one part of these gradients, in those of thread 0, and updates that part of
the parameters, which all others copy for the next step. Sums go by the numbers of the threads, so
equal runs of as many threads give equal bits.
"""

import sys
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from tapegpt.kernels import simd
from tapegpt.kernels.compile.indirect_call import as_pointer
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.simd.memory import element_pointer

# What a thread reports to the others, a column each.
LOSS, SQUARES, SUMMED, FAULTS = 0, 1, 2, 3

NOBODY_COMES = 2**62  # so many arrivals release every thread that waits

LOOKS = 1000  # at the arrivals, before a thread yields the processor

yield_processor = types.ExternalFunction(
    "SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32()
)


class ThreadGroup(NamedTuple):
    """What the threads of a training share."""

    values: NDArray[np.floating]  # (nodes,), of thread 0
    grads: NDArray[np.floating]  # (nodes,), of thread 0
    other_grads: NDArray[np.floating]  # (threads - 1, nodes)
    reports: NDArray[np.float64]  # (threads, 8): a cache line each
    arrivals: NDArray[np.int64]  # (1,): how often a thread has come to a meeting


@intrinsic
def arrive(typing_context, arrivals):
    """Count one arrival more; returns how many there are now."""

    def codegen(context, builder, sig, args):
        one = ir.Constant(ir.IntType(64), 1)
        at = element_pointer(context, builder, sig.args[0], args[0], one.type(0))
        return builder.add(builder.atomic_rmw("add", at, one, "acq_rel"), one)

    return types.int64(arrivals), codegen


@intrinsic
def arrived(typing_context, arrivals):
    """How many arrivals of all threads there are by now."""

    def codegen(context, builder, sig, args):
        at = element_pointer(context, builder, sig.args[0], args[0], ir.IntType(64)(0))
        return builder.load_atomic(at, "acquire", 8)

    return types.int64(arrivals), codegen


@jit
def all_reduce_sum(group, thread, column, number):
    """The sum of every thread's number: a barrier, which no thread leaves before all have come.

    It orders memory: what any thread wrote before the barrier, all can read after it. Two sums in a
    row need different columns, or a slow thread would read the numbers of the second.
    """
    threads, reports = len(group.reports), group.reports
    reports[thread, column] = number
    mine = arrive(group.arrivals)
    last = min((mine + threads - 1) // threads * threads, NOBODY_COMES)
    looks = 0
    while arrived(group.arrivals) < last:
        looks += 1
        if looks % LOOKS == 0:
            yield_processor()
    total = 0.0
    for i in range(threads):
        total += reports[i, column]
    return total


@inlined
def partition(count, thread, threads):
    """A thread's share of 0 to count - 1: the first, and one past the last."""
    return count * thread // threads, count * (thread + 1) // threads


@inlined
def broadcast_parameters(program, group, thread):
    """Copy the parameters into the program of a thread."""
    values, parameters = as_pointer(program.tape_arrays.values), as_pointer(group.values)
    if thread > 0:
        for i in range(0, program.num_params, simd.lanes(values)):
            simd.store(values, i, simd.load(parameters, i))


@inlined
def add_gradients(group, begin, end):
    """Add the gradients of the other threads to those of the first, and clear them."""
    total, grads = as_pointer(group.grads), as_pointer(group.other_grads)
    others, nodes = group.other_grads.shape
    for first in range(0, others * nodes, nodes):
        for i in range(begin, end, simd.lanes(grads)):
            simd.store(total, i, simd.load(total, i) + simd.load(grads, first + i))
            simd.store(grads, first + i, simd.splat(grads, 0))
