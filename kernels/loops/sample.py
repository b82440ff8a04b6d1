"""Sampling: the tape is the KV cache, so every position is one sweep over the new rows."""

import math

from tapegpt.kernels import simd
from tapegpt.kernels.compile.indirect_call import read_record
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.interpreter import PREVIOUS, forward_sweep
from tapegpt.kernels.layout import BatchRange, padded
from tapegpt.kernels.ops.attention import ATTENTION, move_document
from tapegpt.kernels.ops.linear import LINEAR, PACKED, pack_linear
from tapegpt.kernels.ops.recurrence import move_state
from tapegpt.kernels.ops.streaming_attention import STREAMING_ATTENTION, move_streamed
from tapegpt.kernels.registry import opcode, opcodes
from tapegpt.kernels.simd.math import exp

STREAMING = opcode(STREAMING_ATTENTION)
PACKED_LINEAR = opcode(LINEAR, PACKED)
FIRST_ATTENTION, LAST_ATTENTION = opcodes(ATTENTION)[0], opcodes(ATTENTION)[-1]


@inlined
def largest(array, first, count):
    """The largest of `count` elements from `first` on."""
    lowest = array.dtype.type(-math.inf)
    maxima = simd.splat(array, lowest)
    for i in range(0, count, simd.lanes(array)):
        maxima = simd.maximum(
            maxima, simd.keep_first(simd.load(array, first + i), count - i, lowest)
        )
    return simd.max_lanes(maxima)


@jit
def weigh(logits, first, row, rows, count, inverse_temperature, weights):
    """weights = e^((logit - largest) / temperature), row by row, and 0 in the padding.

    Rows of `count` logits begin at `first` and every `row` elements after that; those of weights
    follow each other, in whole vectors.
    """
    width, zero = padded(weights, count), weights.dtype.type(0)
    for r in range(rows):
        x = first + r * row
        top = largest(logits, x, count)
        for i in range(0, count, simd.lanes(weights)):
            weight = exp((simd.load(logits, x + i) - top) * inverse_temperature)
            simd.store(weights, r * width + i, simd.keep_first(weight, count - i, zero))


@inlined
def median(a, b, c):
    return max(min(a, b), min(max(a, b), c))


@inlined
def keep_likeliest(weights, first, count, top_k, top_p, copy):
    """Zero the weights beyond the top_k largest, or beyond a share of top_p of their sum.

    The largest stay, just enough of them to reach that share, and of equal weights the first. As
    quickselect: a pivot halves the candidates, elements low to high - 1 of a copy at weights[copy].
    """
    total = simd.splat(weights, 0)
    for i in range(0, count, simd.lanes(weights)):
        weight = simd.load(weights, first + i)
        simd.store(weights, copy + i, weight)
        total = total + weight
    needed = top_p * simd.sum_lanes(total)
    least, of_least = (
        weights.dtype.type(math.inf),
        0,
    )  # larger weights stay, and `of_least` equal ones
    kept, mass = 0, 0.0
    low, high = copy, copy + count
    while low < high and kept < top_k and mass < needed:
        pivot = median(weights[low], weights[(low + high) // 2], weights[high - 1])
        # Larger ones to the front, without a branch, which nobody could predict.
        larger, larger_mass = low, 0.0
        for i in range(low, high):
            weight = weights[i]
            weights[i], weights[larger] = weights[larger], weight
            larger += weight > pivot
        for i in range(low, larger):
            larger_mass += weights[i]
        count_larger = larger - low
        if count_larger > 0 and (kept + count_larger >= top_k or mass + larger_mass >= needed):
            high = larger
            continue
        kept, mass, least, of_least = kept + count_larger, mass + larger_mass, pivot, 0
        # Then its equals.
        low = larger
        for i in range(larger, high):
            if weights[i] == pivot:
                weights[i], weights[low] = weights[low], pivot
                low += 1
                if kept < top_k and mass < needed:
                    kept, mass, of_least = kept + 1, mass + pivot, of_least + 1
    for i in range(first, first + count):
        if weights[i] == least and of_least > 0:
            of_least -= 1
        elif weights[i] <= least:
            weights[i] = 0


@inlined
def choose(weights, first, count, uniform, totals):
    """The first index whose cumulative share exceeds `uniform`, as Python's random.choices.

    Leaves running totals at weights[totals], and after that.
    """
    total = weights.dtype.type(0)
    for i in range(0, count, simd.lanes(weights)):
        simd.store(weights, totals + i, simd.running_sums(simd.load(weights, first + i)) + total)
        total = weights[totals + i + simd.lanes(weights) - 1]
    limit = weights.dtype.type(uniform * total)
    index = 0
    for i in range(0, count, simd.lanes(weights)):
        index += simd.count_at_most(simd.load(weights, totals + i), limit)
    # Rounding can lift the limit to the total, beyond the last token with a weight.
    index = min(index, count - 1)
    while index > 0 and weights[first + index] == 0:
        index -= 1
    return index


@jit
def next_token(weights, first, count, top_k, top_p, uniform, totals):
    """Draw one of `count` tokens, whose weights begin at `first`, whole vectors.

    totals: the index in weights of scratch for as many numbers.
    """
    if top_k < count or top_p < 1:
        keep_likeliest(weights, first, count, top_k, top_p, totals)
    return choose(weights, first, count, uniform, totals)


@jit
def pack_linears(tape_arrays):
    """Pack the weights of the linears for a few rows, as they are now."""
    for i in range(len(tape_arrays.records)):
        code, _, at, _ = read_record(tape_arrays.records, i)
        if code == PACKED_LINEAR:
            pack_linear(tape_arrays.values, tape_arrays.operands, at)


@inlined
def close_gaps(program, begin, p, alive, samples):
    """Move documents into the places of those that end at position p; returns how many go on."""
    tape_arrays, documents = program.tape_arrays, program.documents
    i = 0
    while i < alive:
        if samples[documents[i], p] != program.vocab_size - 1:
            i += 1
            continue
        alive -= 1
        if i < alive:
            documents[i] = documents[alive]
            for r in range(begin, program.logit_ends[p]):
                code, _, at, _ = read_record(tape_arrays.records, r)
                if FIRST_ATTENTION <= code <= LAST_ATTENTION:
                    power = code - FIRST_ATTENTION
                    move_document(
                        tape_arrays.values, tape_arrays.operands, at, power, alive, i, p + 1
                    )
                elif code == STREAMING:
                    move_streamed(tape_arrays.values, tape_arrays.operands, at, alive, i, p + 1)
                elif code == PREVIOUS:
                    move_state(tape_arrays.values, tape_arrays.operands, at, alive, i)
    return alive


@inlined
def token_before(program, samples, text, p):
    """What comes before position p of the samples: the delimiter at the start and before that."""
    return program.vocab_size - 1 if p <= 0 else samples[text, p - 1]


@jit
def generate(program, prompt, inverse_temperature, top_k, top_p, uniforms, in_turn, samples):
    """Continue `prompt` once for each row of samples, as many together as a sweep can hold.

    uniforms: float64 (count * block,) in [0, 1). Text i takes those from i * block on, one for
    every token; in_turn texts are drawn one by one, and each takes what the one before left.
    samples: int64 (count, block), filled with token ids, the last one (the delimiter) included;
    what comes after it stays as it is. The delimiter also starts every text.
    Returns how many tokens were drawn.
    """
    count, block = samples.shape
    values, inputs = program.tape_arrays.values, program.tape_arrays.inputs
    slots = program.slots
    documents, weights, vocab_size = program.documents, program.likelihoods, program.vocab_size
    width, drawn = padded(weights, vocab_size), 0
    together = 1 if in_turn else len(documents)
    for first_text in range(0, count, together):
        alive = min(together, count - first_text)
        for i in range(alive):
            documents[i] = first_text + i
        p = 0
        while alive > 0 and p < block:
            begin, end = program.ends[p if program.unrolled else 0], program.logit_ends[p]
            # All positions can use the same rows: attention keeps a copy of keys and values, and a
            # state is read before it is overwritten.
            row = p if program.unrolled else 0
            inputs[slots.starts + p] = row
            inputs[slots.starts + p + 1] = row + alive
            for i in range(alive):
                inputs[slots.tokens + row + i] = token_before(program, samples, documents[i], p)
                inputs[slots.positions + row + i] = p
                for k in range(slots.look_back):
                    earlier = token_before(program, samples, documents[i], p - 1 - k)
                    inputs[slots.earlier + k * slots.capacity + row + i] = earlier
                if slots.orders > 0:
                    inputs[slots.folds + row + i] = 0
                for k in range(slots.orders):
                    last = token_before(program, samples, documents[i], p - k)
                    inputs[slots.history + k * slots.capacity + row + i] = last
            forward_sweep(program.tape_arrays, begin, end, BatchRange(p, p + 1, row, row + alive))
            if p < len(prompt):
                for i in range(alive):
                    samples[documents[i], p] = prompt[p]
            else:
                # All weights, then all tokens: the dependency chains of the texts overlap.
                logits, row = program.logits[p], program.logits_row
                weigh(values, logits, row, alive, vocab_size, inverse_temperature, weights)
                for i in range(alive):
                    text = documents[i]
                    uniform = uniforms[drawn if in_turn else text * block + p - len(prompt)]
                    samples[text, p] = next_token(
                        weights, i * width, vocab_size, top_k, top_p, uniform, alive * width
                    )
                    drawn += 1
            alive = close_gaps(program, begin, p, alive, samples)
            p += 1
    return drawn
