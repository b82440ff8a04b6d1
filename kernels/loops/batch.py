"""Packing documents into the inputs of a program."""

from tapegpt.kernels.compile.indirect_call import as_pointer
from tapegpt.kernels.compile.jit import inlined, jit
from tapegpt.kernels.layout import BatchRange


@inlined
def following(d, documents):
    """The document after d, around the end of the corpus (a division takes far longer)."""
    return d + 1 if d + 1 < documents else 0


@jit
def pack_batch(program, tokens, offsets, folds, first, count, document_share, token_share):
    """Lay out documents first to first + count - 1 (around the end of the corpus), position-major.

    tokens[offsets[d] : offsets[d + 1]] is document d with its delimiters; only the first `block`
    positions are used. Rows are sorted so that all documents' position 0 come first, then
    position 1, and so on; documents in order of falling length, so that those still alive at a
    position are a prefix of those before. Each token of a document that has n of them weighs
    document_share / n + token_share in the loss. folds: of every token, which counts leave out, or
    nothing. Returns the range of the whole batch.
    """
    block, documents = len(program.ends) - 1, len(offsets) - 1
    values, inputs = as_pointer(program.tape_arrays.values), as_pointer(program.tape_arrays.inputs)
    has_folds = len(folds) > 0
    tokens, offsets, placed = as_pointer(tokens), as_pointer(offsets), as_pointer(program.placed)
    folds = as_pointer(folds)
    slots = program.slots
    starts = slots.starts

    # inputs[starts + n] counts the documents of n positions; then, summed from the long end, the
    # documents alive at position n - 1, that is the rows of that position; then the first rows.
    for p in range(block + 1):
        inputs[starts + p] = placed[p] = 0
    d = first % documents
    for _ in range(count):
        inputs[starts + min(block, offsets[d + 1] - offsets[d] - 1)] += 1
        d = following(d, documents)
    for p in range(block - 1, 0, -1):
        inputs[starts + p] += inputs[starts + p + 1]
    longest = 0
    for p in range(1, block + 1):
        if inputs[starts + p] > 0:
            longest = p
        inputs[starts + p] += inputs[starts + p - 1]

    # A document of n positions goes after all longer ones, and after those already placed.
    d = first % documents
    for _ in range(count):
        begin = offsets[d]
        n = min(block, offsets[d + 1] - begin - 1)
        alive_after = 0
        if n < block:
            alive_after = inputs[starts + n + 1] - inputs[starts + n]
        rank = alive_after + placed[n]
        placed[n] += 1
        weight = values.dtype.type(document_share / n + token_share)
        for p in range(n):
            row = inputs[starts + p] + rank
            inputs[slots.tokens + row] = tokens[begin + p]
            inputs[slots.positions + row] = p
            inputs[slots.targets + row] = tokens[begin + p + 1]
            values[program.weights + row] = weight
            for k in range(slots.look_back):
                earlier = tokens[begin + max(0, p - 1 - k)]
                inputs[slots.earlier + k * slots.capacity + row] = earlier
            if slots.orders > 0:
                inputs[slots.folds + row] = folds[begin + p + 1] if has_folds else 0
                for k in range(slots.orders):
                    last = tokens[begin + max(-slots.before, p - k)]
                    inputs[slots.history + k * slots.capacity + row] = last
        d = following(d, documents)
    return BatchRange(0, longest, 0, inputs[starts + longest])
