"""Drawing a text that goes on for as long as one likes, a few characters at a time."""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.graph.compile import CompiledModel
from tapegpt.kernels.compile.indirect_call import FORWARD
from tapegpt.kernels.loops.continuation import continue_texts
from tapegpt.sampling import DOCUMENTS, copy_of, kernel_limits, model_of, spelled
from tapegpt.settings import SampleConfig

LENGTH = 500  # characters of a text, where nobody has chosen
MOST_AT_ONCE = 64  # tokens of a call of the kernel, between which what is drawn is shown


class Sampler:
    """Draws one text after the other from a run, each a few characters at a time.

    The same seed draws the same texts; without one the run's own seed is used.
    """

    def __init__(self, run: Run, config: SampleConfig) -> None:
        self._tokenizer, self._of_bytes = run.tokenizer, run.training.bytes
        if config.length is None and not run.training.text:
            config = replace(config, length=run.model.block_size)
        self._config = config
        self._seed = run.training.seed if config.seed is None else config.seed
        self._number = 0  # of the next text
        self._compiled = model_of(run, 1)

    def text(self, prompt: str) -> Iterator[str]:
        """The prompt and what follows. Raises `TapegptError` for a character of no run's text."""
        tokens = encoded(prompt, self._tokenizer, self._of_bytes)
        rng = np.random.default_rng((self._seed, self._number))
        self._number += 1
        return draw_text(self._compiled, self._tokenizer, tokens, self._config, rng)


def sample_text(run: Run, config: SampleConfig) -> Iterator[Iterator[str]]:
    """Draw config.num_samples texts (default 1, of a run of documents 20), piece by piece."""
    sampler = Sampler(run, config)
    for _ in range(config.num_samples or (1 if run.training.text else DOCUMENTS)):
        yield sampler.text(config.prompt)


def texts_of(
    compiled: CompiledModel, tokenizer: Tokenizer, config: SampleConfig, rng: random.Random
) -> Iterator[Iterator[str]]:
    """Draw texts without a prompt from a model as it is, with the random numbers that come next."""
    numbers = copy_of(rng)
    for _ in range(config.num_samples or 1):
        yield draw_text(compiled, tokenizer, np.zeros(0, np.int64), config, numbers)


def encoded(prompt: str, tokenizer: Tokenizer, of_bytes: bool) -> NDArray[np.int64]:
    """The tokens of a prompt, of its bytes where those are the characters.

    Raises `TapegptError` for a character that the run does not know.
    """
    if of_bytes:
        prompt = prompt.encode("utf-8", "surrogateescape").decode("latin-1")
    return tokenizer.encode(spelled(prompt, tokenizer)).astype(np.int64)


def draw_text(
    compiled: CompiledModel,
    tokenizer: Tokenizer,
    prompt: NDArray[np.int64],
    config: SampleConfig,
    rng: np.random.Generator,
) -> Iterator[str]:
    """The prompt, and config.length more characters: fewer where config.stop or a document ends.

    Without a prompt a text begins as after a newline, or after the first character of an alphabet
    that has none. What is drawn does not depend on how it is shown.
    """
    compiled.load([FORWARD])
    program, few_rows = compiled.program, compiled.program_for(1)
    limits = kernel_limits(config, program.vocab_size, program.likelihoods.dtype)
    block = len(program.logits)
    before = [*beginning(tokenizer, len(prompt) == 0), *prompt.tolist()]
    window, filled = _window(compiled, before, block)
    state = np.array([filled, 0])
    shown = _UntilStop(config.stop)
    yield tokenizer.decode(prompt)
    left, at_once = config.length or LENGTH, 1
    while left > 0 and not shown.stopped:
        drawn = np.zeros((1, min(left, at_once)), np.int64)
        continue_texts(program, few_rows, window, state, *limits, rng.random(drawn.shape), drawn)
        left, at_once = left - drawn.size, min(2 * at_once, MOST_AT_ONCE)
        tokens = drawn[0].tolist()
        if tokenizer.delimited and tokenizer.bos in tokens:
            tokens, left = tokens[: tokens.index(tokenizer.bos)], 0
        yield shown.add(tokenizer.decode(tokens), last=left == 0)


def load_continuation(compiled: CompiledModel) -> None:
    """Load, or compile, what drawing a text needs, but for the kernels of the model."""
    program, few_rows = compiled.program, compiled.program_for(1)
    limits = kernel_limits(SampleConfig(), program.vocab_size, program.likelihoods.dtype)
    window, filled = _window(compiled, [0], len(program.logits))
    nothing = np.zeros((1, 0))
    state, drawn = np.array([filled, 0]), nothing.astype(np.int64)
    continue_texts(program, few_rows, window, state, *limits, nothing, drawn)


def _window(
    compiled: CompiledModel, tokens: list[int], block: int
) -> tuple[NDArray[np.int64], int]:
    """The last of these tokens as `continue_texts` takes them, and how many the network sees."""
    table, more = compiled.table, max(0, compiled.program.slots.orders - 1)
    filled = min(len(tokens), block)
    window = np.full((1, more + block), 0 if table is None else table.before)
    kept = tokens[-(more + filled) :]
    window[0, more + filled - len(kept) : more + filled] = kept
    return window, filled


def beginning(tokenizer: Tokenizer, alone: bool) -> list[int]:
    """What the network reads before a prompt, or in place of one."""
    if tokenizer.delimited:
        return [tokenizer.bos]
    return [max(0, tokenizer.characters.find("\n"))] if alone else []


class _UntilStop:
    """Passes a text on up to where the stop begins; what may be its beginning waits."""

    def __init__(self, stop: str | None) -> None:
        self.stopped = False
        self._stop = stop
        self._held = ""

    def add(self, text: str, last: bool) -> str:
        """What of the text so far can be shown now. last: no more will come."""
        if self._stop is None:
            return text
        text = self._held + text
        end = text.find(self._stop)
        if end >= 0:
            self.stopped = True
            return text[:end]
        begins = range(max(0, len(text) - len(self._stop) + 1), len(text))
        wait = next((i for i in begins if self._stop.startswith(text[i:])), len(text))
        if last:
            wait = len(text)
        self._held = text[wait:]
        return text[:wait]
