"""A training run in memory: made from settings or from a saved run, advanced, and saved again."""

import hashlib
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run, RunError
from tapegpt.config import ModelConfig, TrainConfig
from tapegpt.corpus import Tokenizer, shuffled, tokenize
from tapegpt.errors import DivergedError, UsageError
from tapegpt.footprint import bytes_available, bytes_needed, nodes_needed
from tapegpt.kernels.steps import train_steps
from tapegpt.models import parameter_shapes
from tapegpt.program import record
from tapegpt.tape.memory import LARGEST_TAPE

INITIAL_DEVIATION = 0.08  # of the weights, as in microgpt

TABLES = ("wte", "wpe")  # parameters that are looked up, not multiplied with

# A batch that may have more rows than this is packed and swept in turns, and their gradients are
# added up, so that what a sweep writes is still in the cache when it is read.
ROWS_PER_SWEEP = 256


class Trainer:
    """The parameters, their optimizer's state and the corpus, at some step of training.

    Follows microgpt to the last random number: Python's generator is seeded, shuffles the
    documents, then draws the weights row by row, and goes on to draw the samples.
    """

    def __init__(self, model: ModelConfig, training: TrainConfig, documents: Sequence[str]) -> None:
        self.model = model
        self.training = training
        self.step = 0
        self.rng = random.Random(training.seed)
        ordered = shuffled(documents, self.rng)
        self.tokenizer = Tokenizer.from_documents(ordered)
        self.corpus_digest = hashlib.sha256("\n".join(documents).encode()).hexdigest()
        _check_memory(model, training, self.tokenizer.vocab_size)
        corpus = tokenize(ordered, self.tokenizer)
        self._tokens, self._offsets = corpus.tokens, corpus.offsets
        self.recording = record(
            model,
            self.tokenizer.vocab_size,
            training.granularity,
            training.dtype,
            _documents_per_sweep(model, training),
        )
        self._moments = {"adam.m": self.recording.moment(), "adam.v": self.recording.moment()}
        for weights in self.recording.weights.values():
            for row in weights:
                row[:] = [self.rng.gauss(0, INITIAL_DEVIATION) for _ in row]

    @classmethod
    def resumed(cls, run: Run, documents: Sequence[str]) -> "Trainer":
        """Go on from a saved run. Raises `RunError` if it was trained on other documents."""
        trainer = cls(run.model, run.training, documents)
        if trainer.corpus_digest != run.corpus_digest:
            raise RunError(
                f"the run was trained on another corpus of {run.documents} documents:"
                " choose its --data, or another --out"
            )
        for name, weights in trainer.recording.weights.items():
            weights[:] = run.tensors[name]
        for name, moment in trainer._moments.items():
            for tensor, view in trainer.recording.by_name(moment).items():
                view[:] = run.optimizer[name][tensor]
        trainer.step = run.step
        trainer.rng.setstate(run.random_state)
        return trainer

    def advance(self, count: int) -> NDArray[np.float64]:
        """Do `count` steps and return their losses; no steps still compile what they would need.

        Raises `DivergedError` at the first loss, or after the last step for a weight, that is not
        finite.
        """
        config = self.training
        program = self.recording.program
        losses = np.zeros(count)
        done = train_steps(
            program,
            self._tokens,
            self._offsets,
            config.batch_size,
            self.recording.documents_per_sweep,
            self._moments["adam.m"],
            self._moments["adam.v"],
            config.learning_rate,
            config.beta1,
            config.beta2,
            config.epsilon,
            config.steps,
            self.step,
            losses,
        )
        self.step += int(done)
        if done < count:
            raise self._diverged(f"the loss is {losses[done]} at step {self.step + 1}")
        if not np.isfinite(program.machine.values[: program.num_params]).all():
            raise self._diverged(f"a weight is not finite after step {self.step}")
        return losses

    def flops(self, count: int) -> int:
        """Floating-point operations of the next `count` steps that the model itself needs.

        For every position 6 (2 forward, 4 backward) a matrix parameter; for every pair of a
        position with itself or an earlier one 12 n_embd a layer. No padding, no copies, nothing
        of the norms, the loss or the optimizer.
        """
        config = self.training
        documents = np.arange(
            self.step * config.batch_size, (self.step + count) * config.batch_size
        )
        documents %= len(self._offsets) - 1
        lengths = np.diff(self._offsets)[documents] - 1
        lengths = np.minimum(lengths, self.model.block_size)
        pairs = (lengths * (lengths + 1) // 2).sum()
        shapes = parameter_shapes(self.model, self.tokenizer.vocab_size)
        matrices = sum(
            outputs * inputs for name, (outputs, inputs) in shapes.items() if name not in TABLES
        )
        attention = 12 * self.model.n_embd * self.model.n_layer * pairs
        return int(6 * matrices * lengths.sum() + attention)

    def _diverged(self, problem: str) -> DivergedError:
        rate = self.training.learning_rate
        return DivergedError(f"training diverged: {problem}: try a --learning-rate below {rate:g}")

    def snapshot(self) -> Run:
        """What `checkpoint.save` keeps."""
        return Run(
            model=self.model,
            training=self.training,
            characters=self.tokenizer.characters,
            step=self.step,
            random_state=self.rng.getstate(),
            documents=len(self._offsets) - 1,
            corpus_digest=self.corpus_digest,
            tensors=self.recording.weights,
            optimizer={
                name: self.recording.by_name(moment) for name, moment in self._moments.items()
            },
        )


def _documents_per_sweep(model: ModelConfig, training: TrainConfig) -> int:
    return min(training.batch_size, max(1, ROWS_PER_SWEEP // model.block_size))


def _check_memory(model: ModelConfig, training: TrainConfig, vocab_size: int) -> None:
    """Refuse sizes that this machine cannot hold, before anything is allocated."""
    documents = _documents_per_sweep(model, training)
    needed = bytes_needed(model, vocab_size, training.granularity, training.dtype, documents)
    nodes = nodes_needed(model, vocab_size, training.granularity, documents)
    available = bytes_available()
    if needed > available:
        problem = f"about {needed / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB"
    elif nodes > LARGEST_TAPE:
        problem = f"about {nodes:.1e} nodes, a tape holds {LARGEST_TAPE:.1e}"
    else:
        return
    raise UsageError(
        f"the model needs {problem} (--granularity {training.granularity}): make --n-embd"
        f" {model.n_embd}, --n-layer {model.n_layer}, --block-size {model.block_size} or"
        f" --batch-size {training.batch_size} smaller"
    )
