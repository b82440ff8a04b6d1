"""Sampling: the tape is the KV cache, so every position is one sweep over the new rows."""

import math

from tapegpt.kernels.jit import jit
from tapegpt.kernels.steps import update_constants
from tapegpt.kernels.sweep import forward_sweep


@jit
def weigh(logits, first, temperature, probabilities):
    """probabilities = e^((logit - largest) / temperature); returns their sum."""
    largest = logits[first]
    for i in range(len(probabilities)):
        largest = max(largest, logits[first + i])
    total = 0.0
    for i in range(len(probabilities)):
        probabilities[i] = math.exp((logits[first + i] - largest) / temperature)
        total += probabilities[i]
    return total


@jit
def largest_index(array, first, count):
    """Index, from `first` on, of the largest of `count` elements; the first of equals."""
    best = 0
    for i in range(1, count):
        if array[first + i] > array[first + best]:
            best = i
    return best


@jit
def keep_likeliest(probabilities, total, top_k, top_p):
    """Zero all but the top_k largest, and all that the likeliest of share top_p do not need."""
    # A probability that stays is marked by its sign while the next largest is looked for.
    kept, mass = 0, 0.0
    while kept < top_k and mass < top_p * total:
        best = largest_index(probabilities, 0, len(probabilities))
        mass += probabilities[best]
        probabilities[best] = -probabilities[best]
        kept += 1
    for i in range(len(probabilities)):
        probabilities[i] = max(0.0, -probabilities[i])
    return mass


@jit
def choose(probabilities, total, uniform):
    """The first index whose cumulative share exceeds `uniform`, as Python's random.choices."""
    cumulative = 0.0
    likely = 0
    for i in range(len(probabilities)):
        cumulative += probabilities[i]
        if cumulative > uniform * total:
            return i
        if probabilities[i] > 0:
            likely = i
    return likely


@jit
def next_token(values, first, temperature, top_k, top_p, uniform, probabilities):
    """Draw a token from the logits that start at node `first`; temperature 0 takes the largest.

    probabilities: float64 (vocab_size,), to work in.
    """
    if temperature == 0:
        return largest_index(values, first, len(probabilities))
    total = weigh(values, first, temperature, probabilities)
    if top_k < len(probabilities) or top_p < 1:
        total = keep_likeliest(probabilities, total, top_k, top_p)
    return choose(probabilities, total, uniform)


@jit
def generate(program, prompt, temperature, top_k, top_p, uniforms, samples):
    """Continue `prompt` once for each row of samples, at most as many as a sweep can hold.

    uniforms: float64 (count, block) in [0, 1), one for every token that may be drawn.
    samples: int64 (count, block), filled with token ids, the last one (the delimiter) included;
    what comes after it is -1. The delimiter also starts every document.
    """
    count, block = samples.shape
    delimiter = program.vocab_size - 1
    inputs, starts = program.machine.inputs, program.starts
    update_constants(program)
    samples[:] = -1
    inputs[starts] = 0
    for p in range(block):
        begin = inputs[starts + p]
        inputs[starts + p + 1] = begin + count
        for i in range(count):
            inputs[program.tokens + begin + i] = delimiter if p == 0 else max(0, samples[i, p - 1])
            inputs[program.positions + begin + i] = p
        window = (p, p + 1, begin, begin + count)
        forward_sweep(
            program.machine,
            program.ends[p if program.unrolled else 0],
            program.logit_ends[p],
            window,
        )
        alive = 0
        for i in range(count):
            if p > 0 and (samples[i, p - 1] == delimiter or samples[i, p - 1] < 0):
                continue
            if p < len(prompt):
                samples[i, p] = prompt[p]
            else:
                samples[i, p] = next_token(
                    program.machine.values,
                    program.logits[p] + (begin + i) * program.logits_row,
                    temperature,
                    top_k,
                    top_p,
                    uniforms[i, p],
                    program.probabilities,
                )
            alive += samples[i, p] != delimiter
        if alive == 0:
            return
