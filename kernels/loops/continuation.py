"""Texts that go on and on: the network sees as many of the last tokens as a block holds.

    window     t0 t1 t2 t3 t4 t5 t6 t7 t8     full: one more token follows from these
    then       t7 t8 t9 .  .  .  .  .  .      its last tokens begin the next window, a third of it

Until a window is full, each token is one sweep over one more position: the tape is the KV cache.
Positions are learned from the beginning of a window, so the keys and values of the tokens that stay
are computed again, all in one sweep: one position more for every two tokens that are drawn. To keep
half a block would be one for every token.
"""

from tapegpt.kernels.compile.jit import jit
from tapegpt.kernels.interpreter import forward_sweep
from tapegpt.kernels.layout import BatchRange, padded
from tapegpt.kernels.loops.sample import next_token, weigh


@jit
def read_window(program, window, first, filled):
    """Replay positions first to filled - 1 of all windows after those before.

    window: see `continue_texts`. Returns where the logits of the last position begin: text i's are
    i logits_row after that.
    """
    inputs, slots, texts = program.tape_arrays.inputs, program.slots, len(window)
    before = max(0, slots.orders - 1)
    for p in range(first, filled):
        row = p if program.unrolled else (p - first) * texts
        inputs[slots.starts + p] = row
        inputs[slots.starts + p + 1] = row + texts
        for i in range(texts):
            inputs[slots.tokens + row + i] = window[i, before + p]
            inputs[slots.positions + row + i] = p
            for k in range(slots.look_back):
                place = slots.earlier + k * slots.capacity + row + i
                inputs[place] = window[i, before + max(0, p - 1 - k)]
            if slots.orders > 0:
                inputs[slots.folds + row + i] = 0
            for k in range(slots.orders):
                place = slots.history + k * slots.capacity + row + i
                inputs[place] = window[i, before + p - k]
    first_row = first if program.unrolled else 0
    batch = BatchRange(first, filled, first_row, first_row + (filled - first) * texts)
    begin = program.ends[first if program.unrolled else 0]
    forward_sweep(program.tape_arrays, begin, program.logit_ends[filled - 1], batch)
    last_row = 0 if program.unrolled else (filled - 1 - first) * texts
    return program.logits[filled - 1] + last_row * program.logits_row


@jit
def continue_texts(
    program, few_rows, window, state, inverse_temperature, top_k, top_p, uniforms, drawn
):
    """Draw one token after the other for each text.

    few_rows: the program that goes on by one position, with the same values.

    window: int64 (texts, before + block), of which state[0] tokens are there, one at least, after
    those that counts alone know: one less than a context has. Of these the program knows state[1].
    Both are changed: the next call goes on. uniforms: float64 (texts, tokens) in [0, 1); drawn:
    int64, the same, filled.
    """
    before = max(0, program.slots.orders - 1)
    texts, block = len(window), window.shape[1] - before
    values, weights = program.tape_arrays.values, program.likelihoods
    vocab_size = program.vocab_size
    width, kept = padded(weights, vocab_size), (block + 2) // 3
    for n in range(drawn.shape[1]):
        filled, known = state[0], state[1]
        if filled - known == 1:
            logits = read_window(few_rows, window, known, filled)
        else:
            logits = read_window(program, window, 0, filled)
        weigh(values, logits, program.logits_row, texts, vocab_size, inverse_temperature, weights)
        for i in range(texts):
            drawn[i, n] = next_token(
                weights, i * width, vocab_size, top_k, top_p, uniforms[i, n], texts * width
            )
        state[0], state[1] = filled + 1, filled
        if filled == block:
            for i in range(texts):
                for p in range(before + kept - 1):
                    window[i, p] = window[i, block - kept + 1 + p]
            state[0], state[1] = kept, 0
        for i in range(texts):
            window[i, before + state[0] - 1] = drawn[i, n]
