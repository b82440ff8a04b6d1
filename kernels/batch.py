"""Packing documents into the inputs of a program."""

from tapegpt.kernels.jit import jit


@jit
def pack_batch(program, tokens, offsets, first, count, document_share, token_share):
    """Lay out documents first to first + count - 1 (around the end of the corpus), position-major.

    tokens[offsets[d] : offsets[d + 1]] is document d with its delimiters; only the first `block`
    positions are used. Rows are sorted so that all documents' position 0 come first, then
    position 1, and so on; documents in order of falling length, so that those still alive at a
    position are a prefix of those before. Each token of a document that has n of them weighs
    document_share / n + token_share in the loss. Returns the window of the whole batch.
    """
    inputs, starts = program.machine.inputs, program.starts
    block, documents = len(program.ends) - 1, len(offsets) - 1

    # inputs[starts + n] counts the documents of n positions; then, summed from the long end, the
    # documents alive at position n - 1, that is the rows of that position; then the first rows.
    for p in range(block + 1):
        inputs[starts + p] = 0
    for d in range(first, first + count):
        d = d % documents
        inputs[starts + min(block, offsets[d + 1] - offsets[d] - 1)] += 1
    for p in range(block - 1, 0, -1):
        inputs[starts + p] += inputs[starts + p + 1]
    longest = 0
    for p in range(1, block + 1):
        if inputs[starts + p] > 0:
            longest = p
        inputs[starts + p] += inputs[starts + p - 1]

    # A document of n positions goes after all longer ones, and after those already placed.
    for p in range(block + 1):
        program.placed[p] = 0
    for d in range(first, first + count):
        d = d % documents
        n = min(block, offsets[d + 1] - offsets[d] - 1)
        alive_after = 0
        if n < block:
            alive_after = inputs[starts + n + 1] - inputs[starts + n]
        rank = alive_after + program.placed[n]
        program.placed[n] += 1
        for p in range(n):
            row = inputs[starts + p] + rank
            inputs[program.tokens + row] = tokens[offsets[d] + p]
            inputs[program.positions + row] = p
            inputs[program.targets + row] = tokens[offsets[d] + p + 1]
            for k in range(program.look_back):
                earlier = tokens[offsets[d] + max(0, p - 1 - k)]
                inputs[program.earlier + k * program.capacity + row] = earlier
            program.machine.values[program.weights + row] = document_share / n + token_share
    return 0, longest, 0, inputs[starts + longest]
