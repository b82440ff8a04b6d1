"""Drawing text from a trained model."""

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run
from tapegpt.config import SampleConfig
from tapegpt.corpus import Tokenizer
from tapegpt.errors import UsageError
from tapegpt.footprint import bytes_available, bytes_needed
from tapegpt.kernels.generate import generate
from tapegpt.program import Recording, record

SAMPLES_PER_SWEEP = 64


def sample(run: Run, config: SampleConfig) -> Iterator[str]:
    """Draw config.num_samples texts, prompt included, many at a time.

    The same seed draws the same texts; without one the run's own seed is used.
    """
    tokenizer = Tokenizer(run.characters)
    prompt = encode_prompt(config.prompt, tokenizer, run.model.block_size)
    together = _fitting(run, tokenizer.vocab_size, min(config.num_samples, SAMPLES_PER_SWEEP))
    recording = record(run.model, tokenizer.vocab_size, "vector", run.training.dtype, together)
    for name, weights in recording.weights.items():
        weights[:] = run.tensors[name]
    rng = np.random.default_rng(run.training.seed if config.seed is None else config.seed)
    for first in range(0, config.num_samples, together):
        count = min(together, config.num_samples - first)
        uniforms = rng.random((count, run.model.block_size))
        for tokens in draw(recording, prompt, config, uniforms):
            yield tokenizer.decode(tokens)


def _fitting(run: Run, vocab_size: int, count: int) -> int:
    """As many texts as memory has room for together, up to count."""
    one, two = (
        bytes_needed(run.model, vocab_size, "vector", run.training.dtype, documents)
        for documents in (1, 2)
    )
    return int(max(1, min(count, 1 + (bytes_available() - one) // (two - one))))


def sample_in_turn(
    recording: Recording, tokenizer: Tokenizer, config: SampleConfig, rng: random.Random
) -> Iterator[str]:
    """Draw texts one by one with microgpt's random numbers: one for every token, the last too."""
    block = len(recording.program.logits)
    prompt = encode_prompt(config.prompt, tokenizer, block)
    for _ in range(config.num_samples):
        state = rng.getstate()
        uniforms = np.array([[rng.random() for _ in range(block)]])
        uniforms[0, len(prompt) :] = uniforms[0, : block - len(prompt)].copy()
        (tokens,) = draw(recording, prompt, config, uniforms)
        rng.setstate(state)
        drawn = min(len(tokens) + 1, block) - len(prompt)
        for _ in range(drawn):
            rng.random()
        yield tokenizer.decode(tokens)


def encode_prompt(text: str, tokenizer: Tokenizer, block_size: int) -> NDArray[np.int64]:
    """Token ids of a prompt. Raises `UsageError` if it leaves no position for another token."""
    prompt = tokenizer.encode(text).astype(np.int64)
    if len(prompt) >= block_size:
        raise UsageError(
            f"--prompt {text!r:.60} has {len(prompt)} characters, but the model sees {block_size}"
            f" positions: shorten it to {block_size - 1}"
        )
    return prompt


def draw(
    recording: Recording,
    prompt: NDArray[np.int64],
    config: SampleConfig,
    uniforms: NDArray[np.float64],
) -> Iterator[list[int]]:
    """Token ids of one text for every row of uniforms (count, block), without delimiters."""
    program = recording.program
    samples = np.empty(uniforms.shape, np.int64)
    generate(
        program,
        prompt,
        config.temperature,
        min(config.top_k or program.vocab_size, program.vocab_size),
        config.top_p or 1.0,
        uniforms,
        samples,
    )
    delimiter = program.vocab_size - 1
    for row in map(list, samples):
        end = next((i for i, token in enumerate(row) if token in (delimiter, -1)), len(row))
        yield row[:end]
