"""Drawing text from a trained model."""

import random
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.corpus import Tokenizer
from tapegpt.errors import TapegptError, UsageError
from tapegpt.graph.compile import CompiledModel
from tapegpt.kernels.loops.sample import generate
from tapegpt.recorders.memory_estimate import bytes_needed, nodes_needed, sizes_to_shrink
from tapegpt.runs.network import network_of
from tapegpt.settings import SampleConfig
from tapegpt.system.host import bytes_available
from tapegpt.tape.storage import LARGEST_TAPE

DOCUMENTS = 20  # how many are drawn, where nobody has chosen
SAMPLES_PER_SWEEP = 128  # the keys and values of more leave the nearest caches
SAMPLES_PER_CALL = 512  # of the kernel, which goes by itself from one sweep to the next


def sample(run: Run, config: SampleConfig) -> Iterator[str]:
    """Draw config.num_samples texts (default 20), prompt included, many at a time.

    The same seed draws the same texts; without one the run's own seed is used.
    """
    tokenizer = run.tokenizer
    block, total = run.model.block_size, config.num_samples or DOCUMENTS
    prompt = encode_prompt(config.prompt, tokenizer, block)
    compiled = model_of(run, min(total, SAMPLES_PER_SWEEP))
    rng = np.random.default_rng(run.training.seed if config.seed is None else config.seed)
    for first in range(0, total, SAMPLES_PER_CALL):
        count = min(SAMPLES_PER_CALL, total - first)
        samples, _ = draw(compiled, prompt, config, rng.random((count, block)))
        yield from decode(samples, run.characters)


def model_of(run: Run, together: int) -> CompiledModel:
    """The run's model with the weights that it predicts with, for so many texts at most.

    Raises `TapegptError` where memory does not hold one.
    """
    together = _fitting(run, run.vocab_size, together)
    try:
        return network_of(run, together)
    except MemoryError as error:
        raise _too_large(run) from error


def _fitting(run: Run, vocab_size: int, count: int) -> int:
    """As many texts as memory has room for together, up to count; `TapegptError` for not one."""
    one, two = (
        bytes_needed(run.model, vocab_size, "vector", run.training.dtype, documents)
        for documents in (1, 2)
    )
    available = bytes_available()
    # Half of what is needed are gradients, which sampling leaves untouched.
    if one > 2 * available or nodes_needed(run.model, vocab_size, "vector", 1) > LARGEST_TAPE:
        raise _too_large(run)
    return int(max(1, min(count, 1 + (available - one) // (two - one))))


def _too_large(run: Run) -> TapegptError:
    sizes = ", ".join(sizes_to_shrink(run.model))
    return TapegptError(
        f"the run ({sizes}) is too large for this machine's memory: sample it on a larger one,"
        " or train a smaller model"
    )


def sample_in_turn(
    compiled: CompiledModel, tokenizer: Tokenizer, config: SampleConfig, rng: random.Random
) -> Iterator[str]:
    """Draw texts one by one with microgpt's random numbers: one for every token, the last too."""
    block = len(compiled.program.logits)
    prompt = encode_prompt(config.prompt, tokenizer, block)
    total = config.num_samples or DOCUMENTS
    for first in range(0, total, SAMPLES_PER_CALL):
        count = min(SAMPLES_PER_CALL, total - first)
        uniforms = copy_of(rng).random((count, block))
        samples, drawn = draw(compiled, prompt, config, uniforms, in_turn=True)
        for _ in range(drawn):
            rng.random()
        yield from decode(samples, tokenizer.characters)


def copy_of(rng: random.Random) -> np.random.Generator:
    """NumPy's generator of the same numbers, from where this one stands."""
    _, (*key, position), _ = rng.getstate()
    bits = np.random.MT19937()
    bits.state = {
        "bit_generator": "MT19937",
        "state": {"key": np.array(key, np.uint32), "pos": position},
    }
    return np.random.Generator(bits)


def encode_prompt(text: str, tokenizer: Tokenizer, block_size: int) -> NDArray[np.int64]:
    """Token ids of a prompt. Raises `UsageError` if it leaves no position for another token."""
    prompt = tokenizer.encode(spelled(text, tokenizer)).astype(np.int64)
    if len(prompt) >= block_size:
        raise UsageError(
            f"--prompt {text!r:.60} has {len(prompt)} characters, but the model sees {block_size}"
            f" positions: shorten it to {block_size - 1}, or choose a --length"
        )
    return prompt


def spelled(text: str, tokenizer: Tokenizer) -> str:
    """The text with accented letters composed or decomposed, where only that is in the alphabet."""
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    known = set(tokenizer.characters)
    return next((form for form in forms if known.issuperset(form)), text)


def draw(
    compiled: CompiledModel,
    prompt: NDArray[np.int64],
    config: SampleConfig,
    uniforms: NDArray[np.float64],
    in_turn: bool = False,
) -> tuple[NDArray[np.int64], int]:
    """Token ids of as many texts as uniforms has rows, int64 like it, and how many were drawn.

    A row is the prompt, what follows, the delimiter if there is room, and then -1. A text uses
    its row of uniforms from the start, or in_turn what the texts before left of all of them. To
    draw none still compiles what drawing needs, but for the kernels of the model.
    """
    program, rows = compiled.program, 1 if in_turn else compiled.documents_per_sweep
    if len(uniforms) > 0:
        program = compiled.program_for(rows)
    samples = np.full(uniforms.shape, -1, np.int64)
    limits = kernel_limits(config, program.vocab_size, program.likelihoods.dtype)
    drawn = generate(program, prompt, *limits, uniforms.ravel(), in_turn, samples)
    return samples, drawn


def kernel_limits(
    config: SampleConfig, vocab_size: int, dtype: np.dtype[np.floating]
) -> tuple[float, int, float]:
    """The inverse of the temperature, top_k and top_p as the kernel takes them: finite numbers."""
    top_k = min(config.top_k or vocab_size, vocab_size) if config.temperature > 0 else 1
    coldest = float(np.finfo(dtype).max)
    inverse = min(1 / config.temperature, coldest) if config.temperature > 0 else coldest
    return inverse, top_k, float(config.top_p or 1)


def decode(samples: NDArray[np.int64], characters: str) -> list[str]:
    """The texts of rows that end at the delimiter, at -1, or with the row."""
    # A NumPy string ends before its padding of NULs, which the last two ids stand for.
    alphabet = np.array([characters + "\0\0"]).view("U1")
    texts: list[str] = alphabet[samples].view(f"U{samples.shape[1]}")[:, 0].tolist()
    return texts
